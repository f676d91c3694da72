"""What stages make of a batch before they compute losses: latents and text embeddings.

A batch holds `pixels` (uint8, b H W 3) and `ids` (int32, b n); or, cached, `mean` and `std` of the
posterior (b h w c), `context` (b n c), and `pixels` where they were kept. With SDXL's two text
encoders `ids` are (b 2 n), and `pooled` (b p) is beside a cached `context`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ie_jax.models.execution import dtype
from ie_jax.models.networks import Latents, Networks, encode_captions, vae, whole_picture
from ie_jax.models.pixels import from_uint8
from ie_jax.models.unet import AnyContext, Conditions

Tree = Any


def latent_shape(networks: Networks, batch: Mapping[str, Array]) -> tuple[int, ...]:
    """(h, w, c) of an image's latent."""
    if "mean" in batch:
        return batch["mean"].shape[1:]
    return networks.architecture.vae.latent_shape(*batch["pixels"].shape[1:3])


def latents_of(
    networks: Networks, params: Tree, batch: Mapping[str, Array], noise: Latents
) -> Latents:
    """A sample of each image's posterior, scaled, from standard normal noise;
    zeros give the mean."""
    if "mean" in batch:
        mean, std = batch["mean"].astype(jnp.float32), batch["std"].astype(jnp.float32)
    else:
        x = from_uint8(batch["pixels"])
        moments: tuple[Array, Array] = vae(networks).apply({"params": params}, x, method="moments")  # type: ignore[assignment]
        mean, std = moments
    return (mean + std * noise) * networks.architecture.vae.scaling_factor


def decoded(networks: Networks, params: Tree, z: Latents) -> Array:
    """Latents as images, about [-1, 1], not clamped."""
    x: Array = vae(networks).apply({"params": params}, z, method="decode")  # type: ignore[assignment]
    return x


def context_of(networks: Networks, text: Tree | None, batch: Mapping[str, Array]) -> AnyContext:
    """What the UNet is told of each image: its caption, cached or by its ids. SDXL is told, too,
    that nothing was cut from the image, as it is when it edits.

    Args:
        text: the weights of the text encoder, of SDXL's two a pair; None where all is cached.
    """
    height, width, _ = latent_shape(networks, batch)
    factor = networks.architecture.vae.factor
    count = len(batch["context"] if "context" in batch else batch["ids"])
    sizes = jnp.asarray(whole_picture(height * factor, width * factor, count))
    if "context" not in batch:
        return encode_captions(networks, text, batch["ids"], sizes)
    number = dtype(networks.precision.output)
    context = batch["context"].astype(number)
    if networks.architecture.text_2 is None:
        return context
    return Conditions(context, batch["pooled"].astype(number), sizes)
