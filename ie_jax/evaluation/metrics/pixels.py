"""Metrics of pixels: errors, PSNR, SSIM."""

import numpy as np
from scipy.ndimage import gaussian_filter

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.means import Values

SMALLEST = 1e-10
"""Squared error below which PSNR rises no more; it ends at 106 dB."""

SIGMA, RADIUS = 1.5, 5
"""Of SSIM's window, 11 x 11."""


def squared_error(pixels: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> Values:
    """Mean squared error of each picture on [-1, 1].

    Args:
        pixels, other: uint8 (n, h, w, 3).
        where: bool (n, h, w), the pixels that count; NaN for a picture in which none does.
    """
    errors = np.full(len(pixels), np.nan)
    for i, (one, two) in enumerate(zip(pixels, other, strict=True)):
        square = ((one.astype(np.float64) - two) / 127.5) ** 2
        counted = square if where is None else square[where[i]]
        if counted.size:
            errors[i] = counted.mean()
    return errors


def psnr_of(error: Values) -> Values:
    """Decibels of a `squared_error`."""
    found: np.ndarray = 10 * np.log10(4 / np.maximum(error, SMALLEST))
    return found


def truncated(picture: np.ndarray) -> np.ndarray:
    """A picture, uint8, after the published code brought it to [-1, 1] in float32 and back without
    rounding: some values come out one lower."""
    x = picture.astype(np.float32) / np.float32(255) * 2 - 1
    return ((x / 2 + np.float32(0.5)) * np.float32(255)).astype(np.uint8)


def mse(one: np.ndarray, other: np.ndarray) -> float:
    """Mean squared error on [0, 1] of two pictures, uint8 (h, w, 3)."""
    return float(squared_error(one[None], other[None])[0] / 4)


def psnr(one: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float:
    """Decibels of two pictures, uint8 (h, w, 3); infinity where they are equal.

    Args:
        where: bool (h, w), the pixels that count; NaN if none does.
    """
    mask = None if where is None else where[None]
    error = float(squared_error(one[None], other[None], mask)[0] / 4)
    return float(-10 * np.log10(error)) if error else float("inf")


def ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two pictures, uint8 (h, w, 3): Wang et al. 2004 with a Gaussian
    window, on [0, 1], the mean over colours and over the pixels whose window is inside.

    Raises:
        UserError: a side is shorter than the window.
    """
    if min(one.shape[:2]) <= 2 * RADIUS:
        raise UserError(f"SSIM needs sides of at least {2 * RADIUS + 1} pixels")
    x, y = one / 255.0, other / 255.0

    def blurred(x: np.ndarray) -> np.ndarray:
        found = gaussian_filter(x, SIGMA, radius=RADIUS, axes=(0, 1))
        return np.asarray(found[RADIUS:-RADIUS, RADIUS:-RADIUS])

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    both = blurred(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(light * (2 * both + c2) / (var_x + var_y + c2)))
