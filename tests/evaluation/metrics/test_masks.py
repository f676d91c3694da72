"""PIE-Bench's masks."""

from typing import Any

import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.masks import decode_mask, of_part
from ie_jax.evaluation.metrics.pixels import mse


def test_runs_go_over_rows_and_are_cut_at_the_end() -> None:
    mask = decode_mask([9, 3, 30, 99], "here", side=6)
    expected = np.zeros((6, 6), np.uint8)
    expected[[0, -1]] = expected[:, [0, -1]] = 1
    expected.flat[9:12] = 1
    np.testing.assert_array_equal(mask, expected)
    assert decode_mask([], "here").sum() == 4 * 511


@pytest.mark.parametrize(
    ("runs", "problem"),
    [([1, 2, 3], "has 3 numbers"), ([-1, 2], "from 0 up"), (["1", 2], "whole numbers")],
)
def test_what_are_no_runs_is_told(runs: list[Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        decode_mask(runs, "here")


def test_a_part_is_scored_over_the_whole_frame() -> None:
    one, other = np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)
    mask = np.zeros((4, 4), np.uint8)
    mask[0] = 1
    assert of_part(mse, one, other, mask, "edited") == pytest.approx(4 / 16)
    assert of_part(mse, one, other, mask, "unedited") == pytest.approx(12 / 16)
    assert np.isnan(of_part(mse, one, other, mask * 0, "edited"))
