"""DDIM without noise between steps, in either direction (Song et al. 2021, arXiv 2010.02502).

A step moves a latent from one noise level to another by one prediction of its noise. Levels are
cumulative products abar; the methods that build on DDIM differ in the timesteps at which they ask
the network, and in the levels that they take these for.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.trajectory import Denoiser

Levels = Float[Array, " T"]
"""abar of every timestep."""


class Steps(NamedTuple):
    """Steps of DDIM in their order: where the network is asked, and the levels before and after."""

    t: Int[Array, " n"]
    before: Float[Array, " n"]
    after: Float[Array, " n"]


def move(z: Latents, eps: Latents, before: Array, after: Array) -> Latents:
    """A latent from one noise level to another, along its predicted noise; float32."""
    z, eps = z.astype(jnp.float32), eps.astype(jnp.float32)
    clean = (z - jnp.sqrt(1 - before) * eps) / jnp.sqrt(before)
    return jnp.sqrt(after) * clean + jnp.sqrt(1 - after) * eps


def levels(abar: Levels, t: Array) -> Array:
    """The levels of timesteps; below 0 the first one."""
    return abar[jnp.maximum(t, 0)]


def leading(abar: Levels, steps: int, offset: int) -> Steps:
    """Generation on the grid offset, offset + T/n, ...: from a grid point to the one below, and at
    last to the first level. Published: 50 steps, offset 1 (diffusers' `steps_offset`) or 0."""
    stride = len(abar) // steps
    t = offset + stride * jnp.arange(steps - 1, -1, -1)
    return Steps(t, abar[t], levels(abar, t - stride))


def inverted(steps: Steps) -> Steps:
    """The same steps the other way: the network is asked at the level that a step leads to."""
    return Steps(steps.t[::-1], steps.after[::-1], steps.before[::-1])


def full(abar: Levels, steps: int) -> Steps:
    """Generation on the grid T/n - 1, 2 T/n - 1, ..., T - 1, from its last point to no noise: the
    grid of the distilled models (19, 39, ..., 999 for 50 of 1000 timesteps)."""
    stride = len(abar) // steps
    t = jnp.arange(len(abar) - 1, -1, -stride)
    return Steps(t, abar[t], jnp.append(abar[t[1:]], 1.0))


def walk(
    eps: Denoiser, z: Latents, steps: Steps, w: Float[Array, " b"], unroll: int = 1
) -> tuple[Float[Array, "n b h w c"], Float[Array, "n b h w c"]]:
    """The latents after each step, and the noise predicted in each."""

    def step(z: Latents, at: Steps) -> tuple[Latents, tuple[Latents, Latents]]:
        t, before, after = at
        predicted = eps(z, jnp.broadcast_to(t, z.shape[:1]), w)
        z = move(z, predicted, before, after)
        return z, (z, predicted)

    return lax.scan(step, z.astype(jnp.float32), steps, unroll=unroll)[1]


def ddim(
    eps: Denoiser,
    z: Latents,
    abar: Levels,
    w: Float[Array, " b"],
    steps: int = 50,
    unroll: int = 1,
) -> Latents:
    """Noise at the last timestep to a clean latent on the `full` grid, with guidance w."""
    return walk(eps, z, full(abar, steps), w, unroll)[0][-1]


def ddim_inversion(
    eps: Denoiser, z: Latents, abar: Levels, steps: int = 50, unroll: int = 1
) -> Latents:
    """Clean latents to noise at the last timestep on the `full` grid, w = 0. If the prediction were
    the same for the latents before and after a step, `ddim` would undo it exactly."""
    return walk(eps, z, inverted(full(abar, steps)), jnp.zeros(len(z)), unroll)[0][-1]
