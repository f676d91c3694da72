"""ReNoise (Garibi et al. 2024, arXiv 2403.14602): each inversion step is a fixed point, approached
by predicting the noise at the latent that the step leads to; predictions are averaged and brought
to the statistics of noise. With steps of DDIM, or with SDXL-Turbo's, which add noise: the noise of
each step is corrected so that generation by it leads back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion import euler
from ie_jax.diffusion.consistency import Latents, per_image
from ie_jax.diffusion.ddim import Levels, Steps, inverted, leading, move
from ie_jax.methods.cfg import at
from ie_jax.methods.turbo import at_level
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import AnyContext, Context

LOW = 250
"""Timesteps below it are the first zone."""
PATCH, SMALLEST, TINY = 4, 8, 1e-6
REG_STEPS, ROLLS = 4, 5
"""Published: steps of a regularisation, and shifts in each."""
CORRECTIONS, RATE = 10, 1.8
"""Published: moves of a noise towards the one that leads back, and the length of each."""


@dataclass(frozen=True)
class Zone:
    """How a step is made, whose passes are 0, 1, ... . Static."""

    passes: int
    average: tuple[int, int]
    """Predictions of passes from the first number to below the second are averaged; from the first
    on they are regularised."""


def zones(
    renoise_steps: int = 1,
    most_in_first: int = 5,
    first: tuple[int, int] = (0, 5),
    rest: tuple[int, int] = (8, 10),
) -> tuple[Zone, Zone]:
    """The published zones: of low timesteps, and of all others."""
    return Zone(min(most_in_first, renoise_steps) + 1, first), Zone(renoise_steps + 1, rest)


TURBO_ZONES = zones(9)
"""Published for SDXL-Turbo."""


class TurboSteps(NamedTuple):
    """Inversion steps of SDXL-Turbo, upwards."""

    t: Int[Array, " n"]
    high: Float[Array, " n"]
    low: Float[Array, " n"]
    noise: Float[Array, "n b h w c"]
    """What generation adds in the step."""
    aim: Float[Array, "n b h w c"]
    """The same noise for all: of the noised clean latent at which the aim is predicted."""


class Kind(NamedTuple):
    """What renoising needs of a kind of steps, each a function of a single step. Static."""

    ask: Callable[..., Latents]
    """(network, latent above the step, step, context) -> eps."""
    climb: Callable[..., Latents]
    """(latent below, eps, step) -> latent above."""
    aim: Callable[..., Latents]
    """(clean latent, step) -> the latent whose prediction the regularisation aims at."""


DDIM = Kind(
    ask=lambda network, z, step, context: at(network, z, step.t, context),
    climb=lambda z, eps, step: move(z, eps, step.before, step.after),
    aim=lambda clean, step: clean,
)
TURBO = Kind(
    ask=lambda network, z, step, context: at_level(network, z, step.t, step.high, context),
    climb=lambda z, eps, step: euler.up(z, eps, step.noise, step.high, step.low),
    aim=lambda clean, step: clean + step.high * step.aim,
)


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
    """The prediction whose statistics are the aim."""
    regularised: Float[Array, "n q b h w c"]


def levels(side: int) -> int:
    """How many sizes the autocorrelation looks at."""
    return 1 if side <= SMALLEST else 1 + levels(side // 2)


def draw_rolls(
    key: Array, calls: int, reg_steps: int, rolls: int, channels: int, side: int
) -> Int[Array, "calls s r c m"]:
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


def autocorrelation(e: Latents, rolls: Int[Array, "c m"]) -> Array:
    """How much a latent is like itself, shifted, at several sizes; summed over images."""

    def of_channel(x: Float[Array, "b h w"], shifts: Int[Array, " m"]) -> Array:
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
    e: Latents, wanted: Latents, rolls: Int[Array, "s r c m"], weights: Weights
) -> Latents:
    """A prediction brought to the statistics of noise: for each row of shifts a step down the
    divergence, then one down the autocorrelation for each roll."""

    def step(e: Latents, shifts: Int[Array, "r c m"]) -> tuple[Latents, None]:
        down = jnp.clip(jax.grad(divergence)(e, wanted), -100, 100)
        e = e - weights.divergence * down

        def roll(e: Latents, shifts: Int[Array, "c m"]) -> tuple[Latents, None]:
            down = jax.grad(autocorrelation)(e, shifts) / len(rolls[0])
            return e - weights.autocorrelation * down, None

        return lax.scan(roll, e, shifts)[0], None

    return lax.scan(step, e, rolls)[0]


def renoise_steps(
    network: ControlledNetwork,
    z: Latents,
    clean: Latents,
    context: AnyContext,
    steps: Steps | TurboSteps,
    zone: Zone,
    rolls: Int[Array, "n q s r c m"],
    weights: Weights,
    kind: Kind = DDIM,
) -> Seen:
    """Inversion steps of a zone, upwards.

    Args:
        clean: where the first zone started.
        rolls: of each regularisation of each step; q may be 0.
        kind: of `steps`.
    """
    low, high = zone.average
    passes = np.arange(zone.passes)
    averaged, regular = (low <= passes) & (passes < high), passes >= low
    own = int(regular.sum())

    def step(z: Latents, now: Any) -> tuple[Latents, Seen]:
        at_step, shifts = now
        optimal = kind.ask(network, kind.aim(clean, at_step), at_step, context)

        def again(carry: tuple[Array, Array, Array], now: Any) -> Any:
            y, mean, count = carry
            averages, regular, shifts = now
            e = kind.ask(network, y, at_step, context)
            count = count + averages
            mean = jnp.where(averages, mean + (e - mean) / jnp.maximum(count, 1), mean)
            used = e
            if own:
                args = (e, optimal, shifts, weights)
                used = lax.cond(regular, regularise, lambda e, *_: e, *args)
            return (kind.climb(z, used, at_step), mean, count), (y, e, used)

        none = jnp.zeros((len(passes) - own, *shifts.shape[1:]), shifts.dtype)
        of_pass = (averaged, regular, jnp.concatenate([none, shifts[:own]]))
        start = (z, jnp.zeros_like(z), jnp.int32(0))
        (y, mean, _), (taken, eps, used) = lax.scan(again, start, of_pass)
        regularised = used[len(passes) - own :]
        if averaged.any():
            e = regularise(mean, optimal, shifts[own], weights)
            regularised = jnp.concatenate([regularised, e[None]])
            y = kind.climb(z, e, at_step)
        return y, Seen(y, taken, eps, optimal, regularised)

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
    key: Array, plan: tuple[Zone, Zone], counts: tuple[int, int], channels: int, side: int
) -> tuple[Int[Array, "n q s r c m"], ...]:
    """Random shifts of either zone, of the published number.

    Args:
        counts: of steps in either zone.
        side: of the latents.
    """
    parts: list[Array] = []
    for zone, count in zip(plan, counts, strict=True):
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
        rolls: of either zone, (steps, `regularisations`, s, r, c, m).
    """
    up = inverted(leading(abar, steps, offset))
    count = low_steps(steps, offset, len(abar))
    first, rest = zones(renoise)
    parts = [jax.tree.map(lambda x, s=s: x[s], up) for s in (slice(count), slice(count, None))]
    low = renoise_steps(network, z, z, context, parts[0], first, rolls[0], weights)
    high = renoise_steps(network, low.latents[-1], z, context, parts[1], rest, rolls[1], weights)
    return low, high


class Corrected(NamedTuple):
    """The noise of a step, corrected."""

    eps: Latents
    """Predicted in the latent that the step leads to."""
    noise: Latents


def corrected(
    network: ControlledNetwork,
    above: Latents,
    below: Latents,
    context: AnyContext,
    step: TurboSteps,
) -> Corrected:
    """The noise with which a step of generation leads from the latent above nearly to the one
    below: as published, by moves of one length that pass the goal in the end. As it was where the
    step adds none."""
    eps = at_level(network, above, step.t, step.high, context)
    adds = step.low > 0
    to, size = euler.split(step.high, step.low)
    goal = (below - (above + eps * (to - step.high))) / jnp.where(adds, size, 1.0)

    def closer(_: Any, noise: Latents) -> Latents:
        way = noise - goal
        norm = jnp.sqrt(jnp.sum(way**2, axis=(1, 2, 3)))
        return noise - RATE * way / per_image(jnp.where(norm > 0, norm, 1.0))

    moved = lax.fori_loop(0, CORRECTIONS, closer, step.noise)
    return Corrected(eps, jnp.where(adds, moved, step.noise))


class TurboInversion(NamedTuple):
    """An inversion by SDXL-Turbo."""

    zones: tuple[Seen, ...]
    corrected: Corrected
    """Of each step, in the order of generation; its `noise` is what generation adds."""


def turbo_inversion_steps(
    abar: Levels, noise: Float[Array, "n b h w c"], aim: Latents, count: int, below: float = 1.0
) -> TurboSteps:
    """Inversion steps that undo `euler.turbo_steps`.

    Args:
        noise: of each step of generation on the whole grid, in its order.
    """
    steps = euler.turbo_steps(abar, count, below)
    kept = noise[count - len(steps.t) :]
    aims = jnp.broadcast_to(aim, kept.shape)
    up: TurboSteps = jax.tree.map(lambda x: x[::-1], TurboSteps(*steps, kept, aims))
    return up


def low_turbo_steps(steps: int, total: int = 1000, below: float = 1.0) -> int:
    """How many steps are in the first zone."""
    return int((euler.trailing(steps, total) < min(LOW, total * below)).sum())


def renoise_turbo(
    network: ControlledNetwork,
    z: Latents,
    context: AnyContext,
    steps: TurboSteps,
    rolls: tuple[Any, ...],
    low: int,
    weights: Weights = PUBLISHED,
    plan: tuple[Zone, Zone] = TURBO_ZONES,
) -> TurboInversion:
    """A clean latent to noise under the source prompt by SDXL-Turbo's steps.

    Published: four steps with nine renoisings each, five where timesteps are low; 44 calls.
    Generation is `turbo.generate` from the last latent with the corrected noise.

    Args:
        low: how many of the steps are in the first zone, `low_turbo_steps`.
        rolls: of either zone, (steps, `regularisations`, s, r, c, m).
    """
    start, seen = z, list[Seen]()
    parts = (slice(low), slice(low, None))
    for zone, part, shifts in zip(plan, parts, rolls, strict=True):
        some = jax.tree.map(lambda x, part=part: x[part], steps)
        found = renoise_steps(network, start, z, context, some, zone, shifts, weights, TURBO)
        start = found.latents[-1] if len(some.t) else start
        seen.append(found)
    reached = jnp.concatenate([z[None].astype(jnp.float32), *(x.latents for x in seen)])

    def correct(_: None, now: Any) -> tuple[None, Corrected]:
        above, below, step = now
        return None, corrected(network, above, below, context, step)

    _, noise = lax.scan(correct, None, (reached[1:], reached[:-1], steps))
    return TurboInversion(tuple(seen), jax.tree.map(lambda x: x[::-1], noise))
