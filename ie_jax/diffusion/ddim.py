"""DDIM in either direction, without noise between steps (Song et al. 2021, arXiv 2010.02502)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents, consistency_step
from ie_jax.diffusion.trajectory import Denoiser


def ddim(
    eps: Denoiser,
    z: Latents,
    abar: Float[Array, " T"],
    w: Float[Array, " b"],
    steps: int = 50,
    unroll: int = 1,
) -> Latents:
    """Noise at the last timestep to a clean latent, with guidance w, by as many equal steps."""
    stride = len(abar) // steps
    t = jnp.arange(len(abar) - 1, -1, -stride)
    s = jnp.append(t[1:], 0)

    def step(z: Latents, at: tuple[Array, Array]) -> tuple[Latents, None]:
        t, s = (jnp.broadcast_to(x, z.shape[:1]) for x in at)
        return consistency_step(abar, z, eps(z, t, w), t, s), None

    return lax.scan(step, z, (t, s), unroll=unroll)[0]


def ddim_inversion(
    eps: Denoiser, z: Latents, abar: Float[Array, " T"], steps: int = 50, unroll: int = 1
) -> Latents:
    """Clean latents to noise at the last timestep, w = 0, by as many equal steps.

    The grid is that of `ddim`: 19, 39, ..., 999 for 50 of 1000 timesteps. At each of its points the
    network predicts the noise once, and the latent moves from the noise level of the point before
    (none at first) to the point's own. If the prediction were the same for the latents before and
    after a step, `ddim` would undo it exactly.
    """
    stride = len(abar) // steps
    t = jnp.arange(len(abar) - 1, -1, -stride)[::-1]
    after = abar[t]
    before = jnp.concatenate([jnp.ones(1), after[:-1]])
    w = jnp.zeros(z.shape[0])

    def step(z: Latents, at: tuple[Array, Array, Array]) -> tuple[Latents, None]:
        t, before, after = at
        predicted = eps(z, jnp.broadcast_to(t, w.shape), w).astype(jnp.float32)
        clean = (z - jnp.sqrt(1 - before) * predicted) / jnp.sqrt(before)
        return jnp.sqrt(after) * clean + jnp.sqrt(1 - after) * predicted, None

    return lax.scan(step, z.astype(jnp.float32), (t, before, after), unroll=unroll)[0]
