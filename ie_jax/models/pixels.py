"""Pictures as bytes and as what the autoencoder sees."""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

Pixels = UInt8[Array, "b H W 3"]
Image = Float[Array, "b H W 3"]


def to_uint8(x: Image) -> Pixels:
    """Image in [-1, 1] to 0..255, clipped and truncated as published."""
    return (jnp.clip(x / 2 + 0.5, 0.0, 1.0) * 255).astype(jnp.uint8)


def as_image(pixels: Pixels | Image) -> Image:
    """Bytes as `from_uint8` has them; an image in [-1, 1] as it is."""
    return from_uint8(pixels) if pixels.dtype == jnp.uint8 else pixels


def from_uint8(pixels: Pixels) -> Image:
    """0..255 to [-1, 1]."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0
