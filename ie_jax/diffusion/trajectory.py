"""Inversion and generation: the consistency steps of either direction in one scan."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents, add_noise, consistency_step
from ie_jax.diffusion.schedule import Schedule
from ie_jax.models.networks import Context, Network

Denoiser = Callable[[Latents, Int[Array, " b"], Float[Array, " b"]], Latents]
"""(z_t, t, w) -> eps, with weights and text already given."""


def with_text(network: Network, context: Context) -> Denoiser:
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
