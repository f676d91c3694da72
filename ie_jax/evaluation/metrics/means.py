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


class Interval(TypedDict):
    """A mean with the ends of its 95 % interval."""

    mean: float | None
    """None: there are no values."""
    low: float | None
    """None, as `high`: fewer than two values."""
    high: float | None
    count: int


def bootstrap(values: Values, draws: int = 2000) -> Interval:
    """The mean of values and its interval by drawing them anew (Efron 1979), with a fixed seed;
    what is not finite is left out."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    count = len(values)
    if not count:
        return Interval(mean=None, low=None, high=None, count=0)
    mean = float(values.mean())
    if count < 2:
        return Interval(mean=mean, low=None, high=None, count=count)
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, count, count)].mean() for _ in range(draws)]
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(mean=mean, low=float(low), high=float(high), count=count)


def wilson(hits: int, count: int) -> Interval:
    """A share and its interval (Wilson 1927), which is not empty where all or none are hits."""
    if not count:
        return Interval(mean=None, low=None, high=None, count=0)
    share, z = hits / count, NORMAL_95
    centre = share + z**2 / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + z**2 / count) for sign in (-1, 1))
    # Rounding would leave 0 or 1 just outside.
    low, high = min(max(float(low), 0.0), share), max(min(float(high), 1.0), share)
    return Interval(mean=share, low=low, high=high, count=count)
