"""Means of values over pictures, and how far they may be off."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

Values = np.ndarray
"""float64 (n), one per picture; NaN where a picture has none."""

NORMAL_95 = 1.959964
"""Half the width of a normal distribution's central 95 %, in deviations."""


class Estimate(TypedDict):
    """A mean and how far it may be off."""

    mean: float | None
    """None: there are no values."""
    half_width: float | None
    """Of the 95 % confidence interval. None: fewer than two scenes."""
    count: int
    """Of values."""


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
