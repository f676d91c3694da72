"""GNRi, guided Newton-Raphson inversion (Samuel et al. 2024, arXiv 2312.12540): each inversion step
of SDXL-Turbo looks for the latent that the network's own step leads back from, with a prior that
keeps it near the noised source.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents, per_image
from ie_jax.diffusion.euler import Steps, up
from ie_jax.methods.turbo import at_level
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import AnyContext

ITERATIONS, PRIOR, BELOW, GUIDANCE = 2, 0.1, 0.6, 1.2
"""Published: iterations of a step, weight of the prior, the share of timesteps that inversion and
generation keep to, guidance of the edit."""


class Iteration(NamedTuple):
    """A guess, and what comes of it."""

    taken: Latents
    eps: Latents
    reached: Latents
    """What the step leads to by the noise predicted in the guess."""
    residual: Float[Array, " b"]
    """How far that is from the guess, and from the prior; the mean over a latent."""
    following: Latents
    """The next guess."""


Guess = tuple[Array, Array, Array]
"""The next guess, the best latent so far, its residual."""


class Inverted(NamedTuple):
    """Inversion steps, upwards."""

    latents: Float[Array, "n b h w c"]
    """After each step: what the iteration of the least residual reached."""
    iterations: Iteration
    """(n iterations ...)."""


def iterate(
    network: ControlledNetwork,
    guess: Latents,
    z: Latents,
    clean: Latents,
    noise: Latents,
    context: AnyContext,
    step: Steps,
    prior: Float[Array, ""],
) -> Iteration:
    """One iteration. As published, the residual's gradient leaves out the network's own: each
    number of the guess moves by the mean residual towards what was reached."""
    t, high, low = step
    eps = at_level(network, guess, t, high, context)
    reached = up(z, eps, noise, high, low)
    apart = jnp.abs(reached - guess) + 0.5 * prior * ((reached - clean) / high) ** 2
    residual = jnp.mean(apart, axis=(1, 2, 3))
    following = guess + per_image(residual) * jnp.sign(reached - guess)
    return Iteration(guess, eps, reached, residual, following)


def gnri_inversion(
    network: ControlledNetwork,
    z: Latents,
    noise: Float[Array, "n b h w c"],
    context: AnyContext,
    steps: Steps,
    iterations: int = ITERATIONS,
    prior: float | Float[Array, ""] = PRIOR,
) -> Inverted:
    """A clean latent to the level of the first of `steps`, which are those of generation, with the
    noise that generation will add. n times `iterations` calls."""
    clean = z.astype(jnp.float32)

    def step(z: Latents, now: tuple[Steps, Latents]) -> tuple[Latents, Inverted]:
        at_step, added = now

        def again(carry: Guess, _: None) -> tuple[Guess, Iteration]:
            guess, best, least = carry
            found = iterate(
                network, guess, z, clean, added, context, at_step, jnp.asarray(prior, jnp.float32)
            )
            better = found.residual < least
            best = jnp.where(per_image(better), found.reached, best)
            return (found.following, best, jnp.where(better, found.residual, least)), found

        start = (z, z, jnp.full(len(z), jnp.inf))
        (_, best, _), found = lax.scan(again, start, None, length=iterations)
        return best, Inverted(best, found)

    upwards = jax.tree.map(lambda x: x[::-1], (steps, noise))
    return lax.scan(step, clean, upwards)[1]
