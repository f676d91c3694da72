"""DDIM inversion and generation with classifier-free guidance (Song et al. 2021, Ho 2022)."""

from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Levels, inverted, leading
from ie_jax.methods.cfg import Path, generate, invert, same_each_step
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import Context


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
    """From the image to noise with the source prompt, then back with the target prompt.

    Published: 50 steps, w = 7.5. That is 50 network calls, then 50 calls of twice the batch.

    Args:
        z: latents of the images, scaled as the UNet takes them.
        source, target, empty: embeddings of the prompts and of the empty one.
        abar: cumulative alphas of the 1000 training timesteps.
        w: guidance scale of each image, where 1 is none.
        steps: in each direction; must divide 1000.
        offset: added to all timesteps: 1 gives 1, 21, ..., 981.

    Returns:
        the way to the noise, and the way back; `latents[-1]` of the second is the edited latent.
    """
    down = leading(abar, steps, offset)
    there = invert(network, z, source, inverted(down))
    back = generate(network, there.latents[-1], same_each_step(empty, down), target, w, down)
    return there, back
