"""A VGG-style network that tells what a scene of the embedded world shows."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from ie_jax.models.execution import exact
from ie_jax.models.lpips import activations
from ie_jax.models.pixels import Image

Logits = dict[str, Float[Array, "b _"]]


def classify(params: Mapping[str, Any], x: Image) -> Logits:
    """Logits of each attribute's values, for images in [-1, 1].

    Args:
        params: `vgg`, convolutions named as LPIPS names them, and `heads`, by attribute a `kernel`
            (2 c, n) and `bias` (n,) on the last activations' maxima and means over the pixels.
    """
    last = activations(params["vgg"], x)[-1]
    pooled = jnp.concatenate([last.max(axis=(1, 2)), last.mean(axis=(1, 2))], axis=-1)
    return {
        name: jnp.matmul(pooled, head["kernel"], precision=exact(pooled.dtype)) + head["bias"][None]
        for name, head in params["heads"].items()
    }
