"""Functions of batches over whole arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np


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
