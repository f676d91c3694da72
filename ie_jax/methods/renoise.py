"""ReNoise (Garibi et al. 2024, arXiv 2403.14602): each inversion step is a fixed point, approached
by predicting the noise at the latent that the step leads to; predictions are averaged and brought
to the statistics of noise.

Here for DDIM. The published steps of SDXL-Turbo, with noise between them, need that network.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Levels, Steps, inverted, leading, move
from ie_jax.methods.cfg import at
from ie_jax.models.networks import Context, ControlledNetwork

LOW = 250
"""Timesteps below it are the first zone."""
PATCH, SMALLEST, TINY = 4, 8, 1e-6
REG_STEPS, ROLLS = 4, 5
"""Published: steps of a regularisation, and shifts in each."""


@dataclass(frozen=True)
class Zone:
    """How a step is made, whose passes are 0, 1, ... . Static."""

    passes: int
    average: tuple[int, int]
    """Predictions of passes from the first number to below the second are averaged; from the first
    on they are regularised."""


def zones(renoise_steps: int = 1, most_in_first: int = 5) -> tuple[Zone, Zone]:
    """The published zones: of low timesteps, and of all others."""
    return Zone(min(most_in_first, renoise_steps) + 1, (0, 5)), Zone(renoise_steps + 1, (8, 10))


class Weights(NamedTuple):
    """Of the regularisation."""

    autocorrelation: Float[Array, ""]
    divergence: Float[Array, ""]


PUBLISHED = Weights(np.float32(20), np.float32(0.065))  # type: ignore[arg-type]


class Seen(NamedTuple):
    """What the steps of a zone computed; p passes, q regularisations."""

    latents: Float[Array, "n b h w c"]
    """After each step."""
    taken: Float[Array, "n p b h w c"]
    """What each pass predicts the noise of."""
    eps: Float[Array, "n p b h w c"]
    optimal: Float[Array, "n b h w c"]
    """The prediction at the clean latent, whose statistics are the aim."""
    regularised: Any
    """(n q b h w c)."""


def levels(side: int) -> int:
    """How many sizes the autocorrelation looks at."""
    return 1 if side <= SMALLEST else 1 + levels(side // 2)


def draw_rolls(
    key: Array, calls: int, reg_steps: int, rolls: int, channels: int, side: int
) -> Int[Array, "calls s r c l"]:
    """Random shifts, below half of the side of each size."""
    shape = (calls, reg_steps, rolls, channels, levels(side))
    halves = jnp.array([(side >> i) // 2 for i in range(levels(side))])
    return jax.random.randint(key, shape, 0, jnp.broadcast_to(halves, shape))


def divergence(e: Latents, wanted: Latents) -> Array:
    """Of the normal distributions that patches of 4 x 4 have by their means and variances, in
    either size, summed over all."""

    def moments(x: Latents) -> tuple[Array, Array]:
        b, h, w, c = x.shape
        cut = x.reshape(b, h // PATCH, PATCH, w // PATCH, PATCH, c)
        return jnp.mean(cut, axis=(2, 4)), jnp.var(cut, axis=(2, 4), ddof=1)

    (m0, v0), (m1, v1) = moments(e), moments(wanted)
    ratio = jnp.log((v1 + TINY) / (v0 + TINY)) + (v0 + (m0 - m1) ** 2) / (v1 + TINY) - 1
    return jnp.sum(jnp.abs(ratio))


def autocorrelation(e: Latents, rolls: Int[Array, "c l"]) -> Array:
    """How much a latent is like itself, shifted, at several sizes; summed over images."""

    def of_channel(x: Float[Array, "b h w"], shifts: Int[Array, " l"]) -> Array:
        total = jnp.float32(0)
        for i in range(levels(x.shape[1])):
            for axis in (1, 2):
                shifted = jnp.roll(x, shifts[i], axis=axis)
                total += jnp.sum(jnp.mean(x * shifted, axis=(1, 2)) ** 2)
            b, h, w = x.shape
            x = x.reshape(b, h // 2, 2, w // 2, 2).mean(axis=(2, 4))
        return total

    return sum((of_channel(e[..., c], rolls[c]) for c in range(e.shape[-1])), start=jnp.float32(0))


def regularise(
    e: Latents, wanted: Latents, rolls: Int[Array, "s r c l"], weights: Weights
) -> Latents:
    """A prediction brought to the statistics of noise: for each row of shifts a step down the
    divergence, then one down the autocorrelation for each roll."""

    def step(e: Latents, shifts: Int[Array, "r c l"]) -> tuple[Latents, None]:
        down = jnp.clip(jax.grad(divergence)(e, wanted), -100, 100)
        e = e - weights.divergence * down

        def roll(e: Latents, shifts: Int[Array, "c l"]) -> tuple[Latents, None]:
            down = jax.grad(autocorrelation)(e, shifts) / len(rolls[0])
            return e - weights.autocorrelation * down, None

        return lax.scan(roll, e, shifts)[0], None

    return lax.scan(step, e, rolls)[0]


def renoise_steps(
    network: ControlledNetwork,
    z: Latents,
    clean: Latents,
    context: Context,
    steps: Steps,
    zone: Zone,
    rolls: Int[Array, "n q s r c l"],
    weights: Weights,
) -> Seen:
    """Inversion steps of a zone, upwards.

    Args:
        clean: the latent whose prediction the regularisation aims at.
        rolls: of each regularisation of each step; q may be 0.
    """
    low, high = zone.average

    def step(z: Latents, now: Any) -> tuple[Latents, Seen]:
        at_step, shifts = now
        y, mean, count = z, jnp.zeros_like(z), 0
        taken: list[Array] = []
        found: list[Array] = []
        regularised: list[Array] = []
        optimal = at(network, clean, at_step.t, context)
        for i in range(zone.passes):
            e = at(network, y, at_step.t, context)
            taken.append(y)
            found.append(e)
            if low <= i < high:
                mean, count = (mean * count + e) / (count + 1), count + 1
            if i >= low:
                e = regularise(e, optimal, shifts[len(regularised)], weights)
                regularised.append(e)
            y = move(z, e, at_step.before, at_step.after)
        if count:
            e = regularise(mean, optimal, shifts[len(regularised)], weights)
            regularised.append(e)
            y = move(z, e, at_step.before, at_step.after)
        many = jnp.stack(regularised) if regularised else None
        return y, Seen(y, jnp.stack(taken), jnp.stack(found), optimal, many)

    _, seen = lax.scan(step, z.astype(jnp.float32), (steps, rolls))
    result: Seen = seen
    return result


def regularisations(zone: Zone) -> int:
    """How many a step makes."""
    low, high = zone.average
    each = max(zone.passes - low, 0)
    return each + (low < min(high, zone.passes))


def low_steps(steps: int, offset: int = 1, total: int = 1000) -> int:
    """How many steps are in the first zone."""
    return len(range(offset, LOW, total // steps))


def all_rolls(
    key: Array, steps: int, channels: int, side: int, offset: int = 1, renoise: int = 1
) -> tuple[Int[Array, "n q s r c l"], ...]:
    """Random shifts of either zone for `renoise`, of the published number."""
    low = low_steps(steps, offset)
    parts: list[Array] = []
    for zone, count in zip(zones(renoise), (low, steps - low), strict=True):
        key, own = jax.random.split(key)
        q = regularisations(zone)
        drawn = draw_rolls(own, count * q, REG_STEPS, ROLLS, channels, side)
        parts.append(drawn.reshape(count, q, *drawn.shape[1:]))
    return tuple(parts)


def renoise(
    network: ControlledNetwork,
    z: Latents,
    context: Context,
    abar: Levels,
    rolls: tuple[Any, ...],
    weights: Weights = PUBLISHED,
    steps: int = 50,
    renoise: int = 1,
    offset: int = 1,
) -> tuple[Seen, Seen]:
    """A clean latent to noise under the source prompt, zone after zone.

    Published for SD1.5: 50 steps with one renoising each, weights 20 and 0.065, four steps of
    regularisation with five rolls each. About 114 calls; generation is DDIM without guidance.

    Args:
        rolls: of either zone, (steps, `regularisations`, s, r, c, l).
    """
    up = inverted(leading(abar, steps, offset))
    count = low_steps(steps, offset, len(abar))
    first, rest = zones(renoise)
    parts = [jax.tree.map(lambda x, s=s: x[s], up) for s in (slice(count), slice(count, None))]
    low = renoise_steps(network, z, z, context, parts[0], first, rolls[0], weights)
    high = renoise_steps(network, low.latents[-1], z, context, parts[1], rest, rolls[1], weights)
    return low, high
