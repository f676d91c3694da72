"""PIE-Bench's masks: what of a picture is to be edited, and metrics of either part."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from ie_jax.errors import UserError

SIDE = 512
Part = Literal["edited", "unedited"]


def decode_mask(runs: Sequence[int], where: str, side: int = SIDE) -> np.ndarray:
    """A mask from its runs: start and length of each over the rows of a square.

    A run past the end is cut. The four border lines are set, as in the published code, so that
    something is always to be edited.

    Args:
        where: it stands, for messages.

    Returns:
        uint8 (side, side), 1 where the picture is to be edited.

    Raises:
        UserError: the runs are not pairs of whole numbers from 0 up.
    """
    if len(runs) % 2:
        raise UserError(
            f"{where}: the mask has {len(runs)} numbers: there must be a start and a length of "
            "each run"
        )
    if not all(type(x) is int and x >= 0 for x in runs):
        raise UserError(f"{where}: the mask must hold whole numbers from 0 up")
    flat = np.zeros(side * side, np.uint8)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = 1
    mask = flat.reshape(side, side)
    mask[[0, -1]] = mask[:, [0, -1]] = 1
    return mask


def part_of(mask: np.ndarray, part: Part) -> np.ndarray:
    """1 in that part and 0 elsewhere, as `mask`."""
    return mask if part == "edited" else 1 - mask


def only(picture: np.ndarray, part: np.ndarray) -> np.ndarray:
    """A picture, uint8 (h, w, 3), black where `part`, uint8 (h, w), is 0."""
    return picture * part[..., None]


def of_part(
    metric: Callable[[np.ndarray, np.ndarray], float],
    one: np.ndarray,
    other: np.ndarray,
    mask: np.ndarray,
    part: Part,
) -> float:
    """A metric of two pictures that are black outside of one part, over the whole frame as in the
    published code: what is black in both counts as equal. NaN where the part is empty.

    Args:
        one, other: uint8 (h, w, 3).
        mask: uint8 (h, w), 1 where the picture is to be edited.
    """
    chosen = part_of(mask, part)
    if not chosen.any():
        return float("nan")
    return metric(only(one, chosen), only(other, chosen))
