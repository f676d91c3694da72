"""Masks from picture files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ie_jax.data.masks import load_mask
from ie_jax.errors import UserError


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.new("RGB", (120, 80), "red").save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def painted(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> Path:
    """Black with a white box (left, top, right, bottom)."""
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(path)
    return path


@pytest.mark.parametrize("scale", [1, 3])
def test_it_is_cut_as_the_photo(photo: Path, tmp_path: Path, scale: int) -> None:
    # The photo's central square is 80 wide and begins at 20.
    box = tuple(scale * x for x in (20, 0, 60, 40))
    path = painted(tmp_path / "mask.png", (120 * scale, 80 * scale), box)  # type: ignore[arg-type]
    expected = np.zeros((16, 16), bool)
    expected[:8, :8] = True
    np.testing.assert_array_equal(load_mask(path, photo, (16, 16), "crop"), expected)


def test_one_of_the_results_shape_is_taken_as_it_is(photo: Path, tmp_path: Path) -> None:
    path = painted(tmp_path / "mask.png", (16, 16), (0, 0, 1, 16))
    found = load_mask(path, photo, (16, 16), "crop")
    assert found[:, 0].all() and not found[:, 1:].any()


def test_a_mask_lies_on_its_photo_in_any_bucket(photo: Path, tmp_path: Path) -> None:
    path = painted(tmp_path / "mask.png", (120, 80), (0, 0, 60, 80))
    found = load_mask(path, photo, (32, 48), "buckets")
    assert found.shape == (32, 48) and found[:, :23].all() and not found[:, 25:].any()


@pytest.mark.parametrize(
    ("size", "box", "message"),
    [
        (
            (80, 120),
            (0, 0, 9, 9),
            "80x120, the photo 120x80: a mask must have the photo's",
        ),
        ((120, 80), (0, 0, 0, 0), "black everywhere"),
        ((120, 80), (0, 0, 120, 80), "white everywhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    photo: Path, tmp_path: Path, size: tuple[int, int], box: tuple[int, int, int, int], message: str
) -> None:
    path = painted(tmp_path / "mask.png", size, box)
    with pytest.raises(UserError, match=message):
        load_mask(path, photo, (16, 16), "crop")
