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
            (4 c, n) and `bias` (n,) on the last activations' maxima and means over the left and the
            right half of the pixels: a scene may have an object in each.
    """
    halves = jnp.array_split(activations(params["vgg"], x)[-1], 2, axis=2)
    pooled = jnp.concatenate(
        [pool for half in halves for pool in (half.max((1, 2)), half.mean((1, 2)))], axis=-1
    )
    return {
        name: jnp.matmul(pooled, head["kernel"], precision=exact(pooled.dtype)) + head["bias"][None]
        for name, head in params["heads"].items()
    }
