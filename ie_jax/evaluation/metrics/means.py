"""Means of values over pictures, and how far they may be off."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

Values = np.ndarray
"""float64 (n), one per picture; NaN where a picture has none."""

NORMAL_95 = 1.959964
"""Half the width of a normal distribution's central 95 %, in deviations."""


class Interval(TypedDict):
    """A mean with the ends of its 95 % interval."""

    mean: float | None
    """None: there are no values."""
    low: float | None
    """None, as `high`: fewer than two values."""
    high: float | None
    count: int


def estimate(values: Values, groups: Sequence[int] | np.ndarray | None = None) -> Interval:
    """The mean of values and its normal 95 % interval; NaN is left out.

    Args:
        groups: the scene of each value, int (n): values of one scene go together, so that their
            likeness makes the interval wider. None: each value has its own.
    """
    values, owners = finite(values, groups)
    error = standard_error(values, owners)
    mean = float(values.mean()) if len(values) else None
    if mean is None or error is None:
        return Interval(mean=mean, low=None, high=None, count=len(values))
    half = NORMAL_95 * error
    return Interval(mean=mean, low=mean - half, high=mean + half, count=len(values))


def estimate_share(hits: Values, groups: Sequence[int] | np.ndarray | None = None) -> Interval:
    """The share of hits, 0 or 1, and its interval by Wilson. Hits of one scene are worth fewer: as
    many as would have the error that the scenes show, at least one for each scene (Kish 1965).

    Args:
        groups: see `estimate`.
    """
    hits, owners = finite(hits, groups)
    count, scenes = len(hits), len(np.unique(owners))
    if not count:
        return Interval(mean=None, low=None, high=None, count=0)
    share, error = float(hits.mean()), standard_error(hits, owners)
    worth = share * (1 - share) / error**2 if error else scenes
    found = wilson_of(share, float(np.clip(worth, scenes, count)))
    return Interval(mean=share, low=found[0], high=found[1], count=count)


def finite(values: Values, groups: Sequence[int] | np.ndarray | None) -> tuple[Values, np.ndarray]:
    """The values that are numbers, and the scene of each."""
    values = np.asarray(values, np.float64)
    owners = np.arange(len(values)) if groups is None else np.asarray(groups)
    kept = np.isfinite(values)
    return values[kept], owners[kept]


def standard_error(values: Values, owners: np.ndarray) -> float | None:
    """Of the mean, from how scenes differ; None if there are fewer than two."""
    _, place = np.unique(owners, return_inverse=True)
    scenes = place.max(initial=-1) + 1
    if scenes < 2:
        return None
    residuals = np.bincount(place, weights=values - values.mean())
    return float(np.sqrt(scenes / (scenes - 1) * np.sum(residuals**2)) / len(values))


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
    means = values[rng.integers(0, count, (draws, count))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(mean=mean, low=float(low), high=float(high), count=count)


def wilson(hits: int, count: int) -> Interval:
    """A share and its interval (Wilson 1927), which is not empty where all or none are hits."""
    if not count:
        return Interval(mean=None, low=None, high=None, count=0)
    low, high = wilson_of(hits / count, count)
    return Interval(mean=hits / count, low=low, high=high, count=count)


def wilson_of(share: float, count: float) -> tuple[float, float]:
    """The ends of Wilson's interval."""
    z = NORMAL_95
    centre = share + z**2 / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    low, high = (float((centre + sign * half) / (1 + z**2 / count)) for sign in (-1, 1))
    # Rounding would leave 0 or 1 just outside.
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def share_difference(more: int, fewer: int, count: int) -> Interval:
    """How much larger one share is than another of the same images, and its interval, put together
    from those of its two parts (Donner and Zou 2012): it is not empty where no image differs.

    Args:
        more, fewer: images that are hits of the one alone, and of the other alone.
    """
    up, down = wilson(more, count), wilson(fewer, count)
    ends = [x[key] for x in (up, down) for key in ("mean", "low", "high")]
    if any(x is None for x in ends):
        return Interval(mean=None, low=None, high=None, count=0)
    (p, low_p, high_p), (q, low_q, high_q) = np.reshape(np.array(ends, float), (2, 3))
    low = p - q - np.hypot(p - low_p, high_q - q)
    high = p - q + np.hypot(high_p - p, q - low_q)
    return Interval(mean=float(p - q), low=float(low), high=float(high), count=count)
