"""LPIPS of two pictures, by any of its networks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.data.images import resized
from ie_jax.errors import UserError
from ie_jax.models.lpips import per_layer
from ie_jax.models.pixels import from_uint8

SMALLEST = 31
"""Pixels of a side; AlexNet needs as many."""


@jax.jit
def measured(params: Mapping[str, Any], one: np.ndarray, other: np.ndarray) -> Any:
    """Terms (layers, b) of pictures, uint8 (b, h, w, 3)."""
    return per_layer(params, from_uint8(jnp.asarray(one)), from_uint8(jnp.asarray(other)))


def lpips_terms(params: Mapping[str, Any], one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """What each layer adds to LPIPS of two pictures, uint8 (h, w, 3): float32 (layers).

    Raises:
        UserError: they are too small.
    """
    if min(one.shape[:2]) < SMALLEST:
        raise UserError(f"LPIPS needs pictures of at least {SMALLEST} pixels a side")
    return np.asarray(measured(params, one[None], other[None]))[:, 0]


def lpips(params: Mapping[str, Any], one: np.ndarray, other: np.ndarray) -> float:
    """LPIPS of two pictures, uint8 (h, w, 3).

    Raises:
        UserError: see `lpips_terms`.
    """
    return float(lpips_terms(params, one, other).sum())


def lpips_small(params: Mapping[str, Any], one: np.ndarray, other: np.ndarray) -> float:
    """The same as iCD measures it: both squashed to 224 x 224 by Pillow."""
    small = [resized(x, (224, 224)) for x in (one, other)]
    return lpips(params, *small)
