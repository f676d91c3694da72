"""Inversion and generation: the consistency steps of either direction in one scan."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ie_jax.diffusion.consistency import Latents, add_noise, consistency_step
from ie_jax.diffusion.schedule import Schedule
from ie_jax.models.networks import Network
from ie_jax.models.unet import AnyContext

Denoiser = Callable[[Latents, Int[Array, " b"], Float[Array, " b"]], Latents]
"""(z_t, t, w) -> eps, with weights and text already given."""


AnyDenoiser = Callable[[Int[Array, ""], Latents, Int[Array, " b"], Float[Array, " b"]], Latents]
"""(model, z_t, t, w) -> eps of one of several models, by its number."""


def with_text(network: Network, context: AnyContext) -> Denoiser:
    """A denoiser for one text."""
    return lambda z, t, w: network(z, t, w, context)[0]


class Trajectory(NamedTuple):
    """The steps of one direction."""

    start: Latents
    """What the first step takes."""
    latents: Float[Array, "n b h w c"]
    """After each step."""
    eps: Float[Array, "n b h w c"]
    """The noise predicted in each step."""


def per_step(values: Array, batch: int) -> Array:
    """Schedule values of shape (n) or (b, n) as (n, b)."""
    return jnp.broadcast_to(values, (batch, values.shape[-1])).T


def walk(
    eps: Denoiser,
    z: Latents,
    abar: Float[Array, " T"],
    t: Int[Array, "n b"],
    s: Int[Array, "n b"],
    w: Float[Array, "n b"],
    unroll: int,
) -> Trajectory:
    """Consistency steps t -> s with guidance w, one after the other."""

    def step(z: Latents, at: tuple[Array, Array, Array]) -> tuple[Latents, tuple[Latents, Latents]]:
        t, s, w = at
        predicted = eps(z, t, w)
        z = consistency_step(abar, z, predicted, t, s)
        return z, (z, predicted)

    start = z.astype(jnp.float32)
    _, (latents, predicted) = lax.scan(step, start, (t, s, w), unroll=unroll)
    return Trajectory(start, latents, predicted)


def invert(
    eps: Denoiser, z: Latents, noise: Latents, schedule: Schedule, unroll: int = 1
) -> Trajectory:
    """Clean latents to noise: the forward model from the start timestep up, w = 0.

    Args:
        noise: standard normal; enters where `schedule.start_noise` is 1.
    """
    batch = z.shape[0]
    t, s = per_step(schedule.forward_t, batch), per_step(schedule.forward_s, batch)
    noised = add_noise(schedule.abar, z, noise, t[0])
    z = jnp.where(schedule.start_noise > 0, noised, z)
    return walk(eps, z, schedule.abar, t, s, jnp.zeros(t.shape), unroll)


def generate(eps: Denoiser, z: Latents, schedule: Schedule, unroll: int = 1) -> Trajectory:
    """Noise to clean latents: the backward model down to 0, guidance from the schedule."""
    batch = z.shape[0]
    t, s, w = (
        per_step(x, batch) for x in (schedule.backward_t, schedule.backward_s, schedule.guidance)
    )
    return walk(eps, z, schedule.abar, t, s, w, unroll)


class Chain(NamedTuple):
    """Consistency steps one after the other, each by a model of its own."""

    start: Latents
    model: Int[Array, " n"]
    t: Int[Array, "n b"]
    s: Int[Array, "n b"]
    w: Float[Array, "n b"]
    hard: Bool[Array, " n"]
    """See `consistency_step`."""


def chain(
    start: Latents,
    models: Sequence[int],
    t: Int[Array, "n b"],
    s: Int[Array, "n b"],
    w: Float[Array, "n b"] | None = None,
    hard: Sequence[bool] | None = None,
) -> Chain:
    """A chain; w is 0 unless given, and all steps are hard."""
    w = jnp.zeros(t.shape) if w is None else w
    hard = (True,) * len(models) if hard is None else hard
    return Chain(start.astype(jnp.float32), jnp.array(models), t, s, w, jnp.array(hard))


def walk_all(
    eps: AnyDenoiser, abar: Float[Array, " T"], chains: Mapping[str, Chain], unroll: int = 1
) -> dict[str, Float[Array, "n b h w c"]]:
    """The latents after each step of every chain.

    All steps of all chains are one scan, so that a program holds one copy of the network for all of
    them, and one more for their gradient: compiling the copies is what takes its time.
    """
    if not chains:
        return {}

    def starts(x: Chain) -> Array:
        rest = jnp.zeros((len(x.model) - 1, *x.start.shape), jnp.float32)
        return jnp.concatenate([x.start[None], rest])

    steps = jax.tree.map(
        lambda *x: jnp.concatenate(x),
        *((jnp.arange(len(x.model)) == 0, starts(x), *x[1:]) for x in chains.values()),
    )

    def step(z: Latents, at: tuple[Array, ...]) -> tuple[Latents, Latents]:
        first, start, model, t, s, w, hard = at
        z = jnp.where(first, start, z)
        z = consistency_step(abar, z, eps(model, z, t, w), t, s, hard)
        return z, z

    _, latents = lax.scan(step, jnp.zeros_like(steps[1][0]), steps, unroll=unroll)
    ends = np.cumsum([len(x.model) for x in chains.values()])[:-1]
    return dict(zip(chains, jnp.split(latents, ends), strict=True))


def there_and_back(
    z: Latents, schedule: Schedule, forward: int, backward: int, guidance: Float[Array, "b n"]
) -> Chain:
    """Inversion from z, w = 0, and generation with `guidance`, by the models of these numbers."""
    (there_t, there_s, back_t, back_s, w) = (
        per_step(x, len(z))
        for x in (
            *(schedule.forward_t, schedule.forward_s),
            *(schedule.backward_t, schedule.backward_s, guidance),
        )
    )
    return chain(
        z,
        [forward] * schedule.steps + [backward] * schedule.steps,
        jnp.concatenate([there_t, back_t]),
        jnp.concatenate([there_s, back_s]),
        jnp.concatenate([0 * w, w]),
    )
