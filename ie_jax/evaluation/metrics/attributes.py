"""Metrics of the embedded world's attributes."""

import numpy as np

from ie_jax.evaluation.metrics.means import Values


def right(predicted: np.ndarray, wanted: np.ndarray) -> tuple[Values, Values]:
    """Which attributes are right, and whether all of a picture's are: 0 or 1, (n, k) and (n).

    Args:
        predicted, wanted: value numbers, int (n, k).
    """
    each = (predicted == wanted).astype(np.float64)
    return each, each.min(axis=1)
