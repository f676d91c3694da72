"""What evaluation reports of pictures: errors, shares, and means with their uncertainty."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np

Values = np.ndarray
"""float64 (n), one per picture; NaN where a picture has none."""

NORMAL_95 = 1.959964
"""Half the width of a normal distribution's central 95 %, in deviations."""
SMALLEST = 1e-10
"""Squared error below which PSNR rises no more; it ends at 106 dB."""


class Estimate(TypedDict):
    """A mean and how far it may be off."""

    mean: float | None
    """None: there are no values."""
    half_width: float | None
    """Of the 95 % confidence interval. None: fewer than two scenes."""
    count: int
    """Of values."""


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


def psnr(error: Values) -> Values:
    """Decibels of a `squared_error`."""
    decibels: np.ndarray = 10 * np.log10(4 / np.maximum(error, SMALLEST))
    return decibels


def right(predicted: np.ndarray, wanted: np.ndarray) -> tuple[Values, Values]:
    """Which attributes are right, and whether all of a picture's are: 0 or 1, (n, k) and (n).

    Args:
        predicted, wanted: value numbers, int (n, k).
    """
    each = (predicted == wanted).astype(np.float64)
    return each, each.min(axis=1)


def estimate(values: Values, groups: Sequence[int] | np.ndarray | None = None) -> Estimate:
    """The mean of values and its normal 95 % confidence interval; NaN is left out.

    Args:
        groups: the scene of each value, int (n): values of one scene go together, so that their
            likeness makes the interval wider. None: each value has its own.
    """
    values = np.asarray(values, np.float64)
    kept = np.isfinite(values)
    owners = np.arange(len(values)) if groups is None else np.asarray(groups)
    values, owners = values[kept], owners[kept]
    if not len(values):
        return Estimate(mean=None, half_width=None, count=0)
    mean = values.mean()
    numbers, place = np.unique(owners, return_inverse=True)
    scenes, half = len(numbers), None
    if scenes > 1:
        residuals = np.bincount(place, weights=values - mean)
        error = np.sqrt(scenes / (scenes - 1) * np.sum(residuals**2)) / len(values)
        half = float(NORMAL_95 * error)
    return Estimate(mean=float(mean), half_width=half, count=len(values))


def in_batches(function: Callable[..., Any], size: int, *arrays: np.ndarray) -> Any:
    """A function of batches over whole arrays. All its batches have one size, so that it is
    compiled once: the last one is filled up with its last row, which is cut off again.

    Args:
        function: arrays (size, ...) to one array or a tuple of arrays (size, ...).
        size: of a batch; at most the arrays' length is taken.
        arrays: of one length, at least 1.

    Returns:
        What `function` gives, joined, as numpy arrays.
    """
    count = len(arrays[0])
    size = min(size, count)
    parts: list[tuple[np.ndarray, ...]] = []
    alone = False
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        result = function(*(x[rows] for x in arrays))
        alone = not isinstance(result, tuple)
        parts.append(tuple(np.asarray(x) for x in ((result,) if alone else result)))
    joined = tuple(np.concatenate(column)[:count] for column in zip(*parts, strict=True))
    return joined[0] if alone else joined
