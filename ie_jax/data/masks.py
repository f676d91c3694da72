"""A mask in a picture file: white where the photo may change."""

from pathlib import Path

import numpy as np
from PIL import Image

from ie_jax.data.images import Fit, fitted, preprocess, read_rgb
from ie_jax.errors import UserError

AUTO = "auto"
"""In place of a file: the mask that is found from the edit itself."""
WHITE = 128
"""A byte from which on a pixel is white."""


def load_mask(path: Path, photo: Path | None, shape: tuple[int, int], fit: Fit) -> np.ndarray:
    """A mask, cut and resized as its photo was.

    Args:
        path: a picture of the photo's shape, whatever its size; or of the prepared photo's.
        photo: the file; None: there is none.
        shape: of the prepared photo, (h, w).

    Returns:
        bool (h, w).

    Raises:
        UserError: it cannot be read, has another shape, or is of one colour.
    """
    mask = read_rgb(path, str(path))
    if mask.shape[:2] != shape:
        height, width = read_rgb(photo, str(photo)).shape[:2] if photo else shape
        own_height, own_width = mask.shape[:2]
        if abs(own_width * height - own_height * width) > max(width, height):
            raise UserError(
                f"{path}: is {own_width}x{own_height}, the photo {width}x{height}: a mask must "
                "have the photo's shape"
            )
        buckets = fit == "buckets"  # which may share their shorter side
        mask = fitted(mask, (shape[1], shape[0])) if buckets else preprocess(mask, min(shape), fit)
    area = white(mask)
    if area.all() or not area.any():
        colour = "white" if area.all() else "black"
        raise UserError(
            f"{path}: is {colour} everywhere (transparent is white): paint white what may change, "
            "and the rest black"
        )
    return area


def white(picture: np.ndarray) -> np.ndarray:
    """Where a picture, uint8 (h, w, 3), is nearer to white than to black: bool (h, w)."""
    return np.asarray(Image.fromarray(picture).convert("L")) >= WHITE


def mask_picture(mask: np.ndarray) -> np.ndarray:
    """A mask, (..., h, w) of booleans or of 0 and 1, in white and black: uint8 (..., h, w, 3)."""
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
