"""Captioned pictures side by side."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import ImageFont

from ie_jax.data.panels import side_by_side, wrapped
from ie_jax.errors import UserError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("width", [64, 128, 512])
def test_panels_stand_unchanged_in_a_row(width: int) -> None:
    images = [noise(48, width, seed) // 2 for seed in range(3)]
    row = side_by_side([("source", images[0]), ("rebuilt", images[1]), ("edit", images[2])])
    bottom = row.shape[0] - 8
    for number, image in enumerate(images):
        left = 8 + number * (max(width, 80) + 8)
        np.testing.assert_array_equal(row[bottom - 48 : bottom, left : left + width], image)
    assert row.shape[1] == 8 + 3 * (max(width, 80) + 8) and row.dtype == np.uint8


def test_notes_stand_below_their_pictures() -> None:
    black = np.zeros((10, 90, 3), np.uint8)
    plain = side_by_side([("a", black), ("b", black)])
    noted = side_by_side([("a", black), ("b", black)], ["", "a longer note of several lines"])
    assert noted.shape[0] > plain.shape[0] and noted.shape[1] == plain.shape[1]
    np.testing.assert_array_equal(noted[: plain.shape[0] - 8], plain[:-8])
    below = noted[plain.shape[0] - 8 :]
    assert (below[:, : 8 + 90] == 255).all() and (below[:, 8 + 90 + 8 :] < 255).any()


@settings(max_examples=60)
@given(caption=st.text(max_size=300), width=st.sampled_from([1, 64, 90, 512]))
@example(caption="a cat " * 100, width=64)
@example(caption="W" * 1000, width=64)
@example(caption="  line\nbreaks\tand\0controls  ", width=512)
def test_a_caption_stays_above_its_own_panel(caption: str, width: int) -> None:
    """All the ink of the caption lies within its column: the gaps beside it remain white."""
    black = np.zeros((10, width, 3), np.uint8)
    row = side_by_side([("", black), (caption, black), ("", black)])
    column = max(width, 80)
    start = 8 + column + 8
    strip = row[: -(10 + 8)]
    outside = np.delete(strip, np.s_[start : start + column], axis=1)
    assert (outside == 255).all()


def ink(caption: str, width: int) -> int:
    """Dark pixels in the caption of a white picture."""
    return int((side_by_side([(caption, np.full((8, width, 3), 255, np.uint8))]) < 128).sum())


@pytest.mark.parametrize("width", [64, 128, 512])
def test_captions_are_drawn_wrapped_and_cut(width: int) -> None:
    blank = np.full((8, width, 3), 255, np.uint8)
    one, wrapped, cut = (
        side_by_side([("word " * count, blank)]).shape[0] for count in (1, width // 10, 1000)
    )
    assert one < wrapped <= cut
    assert 0 < ink("edit", width) < ink("edit edit", width)
    assert ink("a " * 1000, width) == ink("a " * 2000, width)


@settings(max_examples=60)
@given(words=st.lists(st.text("ilmW.", min_size=1, max_size=40)), width=st.integers(80, 300))
@example(words=["W" * 100], width=80)
def test_wrapped_lines_fit_and_lose_nothing_but_the_end(words: list[str], width: int) -> None:
    font = ImageFont.load_default(11)
    lines = wrapped(" ".join(words), width, font)
    assert 1 <= len(lines) <= 4 and all(font.getlength(line) <= width for line in lines)
    whole, kept = "".join(words), "".join(lines).replace(" ", "")
    assert kept == whole or (len(lines) == 4 and whole.startswith(kept.removesuffix("...")))


def test_panels_of_different_sizes_share_a_top_line() -> None:
    small, large = np.zeros((20, 30, 3), np.uint8), np.zeros((90, 120, 3), np.uint8)
    row = side_by_side([("", small), ("", large)])
    dark = (row == 0).all(-1)
    tops = [int(np.argmax(dark[:, x])) for x in (8, 8 + 80 + 8)]
    assert tops[0] == tops[1] and dark.sum() == 20 * 30 + 90 * 120


def test_no_panels_are_refused() -> None:
    with pytest.raises(UserError, match="no pictures"):
        side_by_side([])
