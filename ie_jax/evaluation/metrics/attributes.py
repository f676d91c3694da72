"""Metrics of the embedded world's attributes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.data.world.captions import named
from ie_jax.data.world.scenes import ATTRIBUTES
from ie_jax.evaluation.metrics.means import Values
from ie_jax.models.classifier import classify
from ie_jax.models.pixels import Pixels, from_uint8


@jax.jit
def predict(params: Any, pixels: Pixels) -> jax.Array:
    """The classifier's value numbers, in the order of `ATTRIBUTES`: int (b, 7)."""
    logits = classify(params, from_uint8(pixels))
    return jnp.stack([logits[name].argmax(-1) for name in ATTRIBUTES], axis=-1)


def success(classifier: Mapping[str, Any], picture: np.ndarray, caption: str) -> float:
    """1 if the classifier sees all that a caption names in a picture, uint8 (h, w, 3); else 0."""
    _, whole = right(np.asarray(predict(classifier, picture[None])), np.array([named(caption)]))
    return float(whole[0])


def right(predicted: np.ndarray, wanted: np.ndarray) -> tuple[Values, Values]:
    """Which attributes are right, and whether all of a picture's are: 0 or 1, (n, k) and (n).

    Args:
        predicted, wanted: value numbers, int (n, k).
    """
    each = (predicted == wanted).astype(np.float64)
    return each, each.min(axis=1)
