"""The published last step: the edit's brightness and contrast become the source's."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ie_jax.models.pixels import Image, Pixels

FLAT = 1e-7


def mean_std(pixels: Pixels | Image) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Mean and standard deviation over all pixels and channels of each image, 0..255."""
    x = pixels.astype(jnp.float32)
    if pixels.dtype != jnp.uint8:
        x = (x + 1) * 127.5
    return jnp.mean(x, axis=(1, 2, 3)), jnp.std(x, axis=(1, 2, 3))


def match_statistics(pixels: Pixels, mean: Float[Array, " b"], std: Float[Array, " b"]) -> Pixels:
    """Shift and scale each image to a mean and standard deviation; a flat image stays as it is."""
    own_mean, own_std = (m[:, None, None, None] for m in mean_std(pixels))
    mean, std = mean[:, None, None, None], std[:, None, None, None]
    flat = own_std < FLAT
    matched = (pixels - own_mean) / jnp.where(flat, 1.0, own_std) * std + mean
    return jnp.where(flat, pixels, jnp.clip(matched, 0.0, 255.0).astype(jnp.uint8))
