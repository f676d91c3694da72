"""Direct inversion (Ju et al. 2023, arXiv 2310.01506, also PnP inversion): the source branch of an
edit is put back onto the inversion's path after each step."""

from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Steps, move
from ie_jax.methods.cfg import guided, two_halves
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import Context


def path_offsets(
    network: ControlledNetwork,
    reference: Float[Array, "n1 b h w c"],
    uncond: Context,
    cond: Context,
    w: Float[Array, " b"],
    steps: Steps,
) -> Float[Array, "n b h w c"]:
    """What a guided step from each point of an inversion's path misses the next one by.

    Args:
        reference: the inversion's latents, the clean one first.
    """

    def step(z: Latents, now: tuple[Steps, Latents]) -> tuple[Latents, Any]:
        at, goal = now
        eps_u, eps_c, _ = two_halves(network, z, at.t, uncond, cond)
        return goal, goal - move(z, guided(eps_u, eps_c, w), at.before, at.after)

    start = reference[-1].astype(jnp.float32)
    offsets: Array = lax.scan(step, start, (steps, reference[-2::-1]))[1]
    return offsets
