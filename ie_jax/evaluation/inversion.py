"""DDIM inversion, what few-step inversion is compared with (Song et al. 2021, arXiv 2010.02502)."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.trajectory import Denoiser
from ie_jax.models.networks import Latents


def ddim_inversion(
    eps: Denoiser, z: Latents, abar: Float[Array, " T"], steps: int = 50, unroll: int = 1
) -> Latents:
    """Clean latents to noise at the last timestep, w = 0, by as many equal steps.

    The steps are those of generation (`ie_jax.training.denoiser.ddim`) the other way round: on the
    grid 19, 39, ..., 999 (50 of 1000 timesteps), from the noise level before a grid point, 1 - abar
    = 0 at first, to the point's own, with the noise predicted at the point's timestep. Were the
    prediction the same for the latents before and after a step, generation would undo it exactly.
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
