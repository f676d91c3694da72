"""PostEdit (Tian et al. 2024, arXiv 2410.04844): no inversion. A few-step model looks at the noised
source under the target prompt, Langevin dynamics draw what it predicts back to a measurement of the
source, and a mixture with the source is noised again, less each time.

Written from the paper and the settings of its authors' code; there are no recordings of it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ie_jax.diffusion.consistency import Latents, add_noise, alpha_sigma
from ie_jax.methods.cfg import guided, two_halves
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import AnyContext

STEPS, GUIDANCE, BELOW, KEPT, LANGEVIN = 5, 4.0, 0.5, 0.25, 25_000
"""Published: steps, guidance, the share of timesteps at which they start, the share of the source
in what is noised again, Langevin steps of each."""
RATE, LAST_RATE = 1e-5, 1e-7
"""Of a Langevin step: of the first step, and what it falls to."""
MEASURED, ERROR, HIDDEN = 0.05, 0.01, 0.01
"""Standard deviation of the measurement's noise, and the one that Langevin dynamics take it for;
the largest share of hidden cells."""


class Measurement(NamedTuple):
    """What is seen of the source."""

    seen: Float[Array, "b h w 1"]
    """1 where a cell is seen, else 0."""
    latent: Latents


def timesteps(steps: int, below: float = BELOW, total: int = 1000) -> Int[Array, " n"]:
    """501, 401, 301, 201, 101, as published, or another number of them."""
    first = round(below * total)
    return jnp.asarray([1 + first - k * first // steps for k in range(steps)])


def rates(steps: int) -> Float[Array, " n"]:
    """A Langevin step's rate in each step."""
    return RATE + jnp.arange(steps) / steps * (LAST_RATE - RATE)


def measure(z: Latents, keys: Key[Array, " b"]) -> Measurement:
    """A noisy measurement of the source, up to a hundredth of whose cells is hidden."""

    def of_one(z: Float[Array, "h w c"], key: Array) -> tuple[Array, Array]:
        share, order, noise = jax.random.split(key, 3)
        cells = z.shape[0] * z.shape[1]
        count = jnp.floor(cells * jax.random.uniform(share, maxval=HIDDEN))
        seen = (jax.random.permutation(order, cells) >= count).reshape(*z.shape[:2], 1)
        return seen, seen * z + MEASURED * jax.random.normal(noise, z.shape)

    seen, latent = jax.vmap(of_one)(z, keys)
    return Measurement(seen.astype(jnp.float32), latent)


def langevin(
    predicted: Latents,
    measurement: Measurement,
    sigma: Float[Array, "b 1 1 1"],
    rate: Float[Array, ""],
    steps: Int[Array, ""] | int,
    noise: Latents,
) -> Latents:
    """Where so many Langevin steps lead from a prediction.

    A step is x - rate * gradient + sqrt(2 rate) * noise. The energy is quadratic and no cell
    depends on another: the end of all steps has a normal distribution, from which this draws.

    Args:
        sigma: how far the prediction is trusted.
        noise: standard normal.
    """
    precision = measurement.seen / ERROR**2 + 1 / sigma**2
    towards = measurement.seen * measurement.latent / ERROR**2 + predicted / sigma**2
    middle, decay = towards / precision, 1 - rate * precision
    variance = 2 * rate * (1 - decay ** (2 * steps)) / (1 - decay**2)
    return middle + decay**steps * (predicted - middle) + jnp.sqrt(variance) * noise


def postedit(
    network: ControlledNetwork,
    z: Latents,
    noise: Float[Array, "n 2 b h w c"],
    measurement: Measurement,
    empty: AnyContext,
    target: AnyContext,
    abar: Float[Array, " T"],
    w: Float[Array, " b"],
    t: Int[Array, " n"],
    langevin_steps: Int[Array, ""] | int = LANGEVIN,
    kept: float | Float[Array, ""] = KEPT,
) -> Float[Array, "n b h w c"]:
    """The clean latent that each step predicts; the last one is the result.

    Args:
        noise: of each step, what it noises by, and what Langevin dynamics add.
        w: of classifier-free guidance, where 1 is none.
        kept: share of the source in what is noised again.
    """

    def step(start: Latents, now: tuple[Array, Array, Array]) -> tuple[Latents, Latents]:
        t, rate, (added, shaken) = now
        at = jnp.broadcast_to(t, z.shape[:1])
        alpha, sigma = alpha_sigma(abar, at)
        noised = add_noise(abar, start, added, at)
        eps = guided(*two_halves(network, noised, t, empty, target)[:2], w)
        predicted = (noised - sigma * eps) / alpha
        back = langevin(predicted, measurement, sigma, rate, langevin_steps, shaken)
        return (1 - kept) * back + kept * z, predicted

    z = z.astype(jnp.float32)
    return lax.scan(step, z, (t, rates(len(t)), noise))[1]
