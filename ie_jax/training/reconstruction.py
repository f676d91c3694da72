"""How well a pair of models reconstructs held-out images, as validation measures it."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ie_jax.diffusion.schedule import Schedule
from ie_jax.diffusion.trajectory import there_and_back, walk_all
from ie_jax.models.lpips import lpips
from ie_jax.models.networks import Latents, Networks, any_denoiser, vae
from ie_jax.models.pixels import from_uint8, to_uint8
from ie_jax.training.inputs import context_of, decoded
from ie_jax.training.losses import BACKWARD, FORWARD, psnr, squared

Tree = Any


def reconstruction_metrics(
    networks: Networks,
    base: Tree,
    loras: tuple[Tree, Tree],
    vae_params: Tree,
    text_encoder: Tree | None,
    perceptual: Tree | None,
    schedule: Schedule,
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Images to noise and back, w = 0, from the posterior's mean.

    Args:
        loras: of the forward and the backward model, on `base`.
        batch: `pixels` uint8 (b, H, W, 3), and `ids` (b, n) or, cached, `context` (b, n, c).

    Returns:
        Metrics by image: MSE on [-1, 1] and PSNR (dB) to the image, both of the 8-bit picture; PSNR
        to what the autoencoder alone gives; LPIPS of the whole image where there is a network for
        it. And the pictures, uint8.
    """
    pixels = batch["pixels"]
    x = from_uint8(pixels)
    z: Latents = vae(networks).apply({"params": vae_params}, x, method="encode")  # type: ignore[assignment]
    context = context_of(networks, text_encoder, batch)
    eps = any_denoiser(networks, base, loras, context)
    way = there_and_back(z, schedule, FORWARD, BACKWARD, jnp.zeros((len(z), schedule.steps)))
    returned = walk_all(eps, schedule.abar, {"cycle": way}, networks.execution.unroll)["cycle"][-1]
    y = decoded(networks, vae_params, returned)
    result = to_uint8(y)
    mse = squared(from_uint8(result), x)
    alone = to_uint8(decoded(networks, vae_params, z))
    bound = squared(from_uint8(result), from_uint8(alone))
    metrics = {"mse": mse, "psnr": psnr(mse), "psnr_to_autoencoder": psnr(bound)}
    if perceptual is not None:
        metrics["lpips"] = lpips(perceptual, jnp.clip(y, -1, 1), x)
    return metrics, {"source": pixels, "reconstruction": result}
