"""DDIM inversion and generation with classifier-free guidance (Song et al. 2021, Ho 2022)."""

from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Levels, inverted, leading
from ie_jax.methods.cfg import Path, generate, invert, same_each_step
from ie_jax.models.networks import Context, ControlledNetwork


def ddim_inversion(
    network: ControlledNetwork,
    z: Latents,
    source: Context,
    target: Context,
    empty: Context,
    abar: Levels,
    w: Float[Array, " b"],
    steps: int = 50,
    offset: int = 1,
) -> tuple[Path, Path]:
    """A clean latent to noise under the source prompt, and from there under the target prompt.

    Published: 50 steps, w = 7.5. 50 calls, and 50 of twice the batch.
    """
    down = leading(abar, steps, offset)
    there = invert(network, z, source, inverted(down))
    back = generate(network, there.latents[-1], same_each_step(empty, down), target, w, down)
    return there, back
