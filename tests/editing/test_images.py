"""Pictures out: files of every format, and panels."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFont

from ie_jax.data.images import load_image
from ie_jax.editing.images import (
    _wrap,
    check_writable,
    save_image,
    side_by_side,
)
from ie_jax.errors import UserError


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- save_image ---


@pytest.mark.parametrize("suffix", ["png", "PNG", "webp", "bmp", "tif", "tiff"])
def test_lossless_formats_return_the_same_picture(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{suffix}"
    save_image(noise(64, 64), path)
    np.testing.assert_array_equal(load_image(path, 64), noise(64, 64))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg_is_close(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{suffix}"
    save_image(noise(64, 64), path)
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
    assert np.abs(load_image(path, 64).astype(int) - noise(64, 64)).mean() < 4


def test_saving_replaces_with_ordinary_permissions(tmp_path: Path) -> None:
    path, plain = tmp_path / "out.png", tmp_path / "plain"
    plain.touch()
    path.write_bytes(b"old")
    save_image(noise(64, 64), path)
    np.testing.assert_array_equal(load_image(path, 64), noise(64, 64))
    assert path.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out", "must end in one of .png"),
        ("out.xyz", "must end in one of .png"),
        ("out.png.txt", "must end in one of .png"),
        ("missing/out.png", "no folder .*missing"),
        ("file/out.png", "no folder .*file"),
        ("folder.png", "is a folder"),
        ("long" * 70 + ".png", "cannot be written"),
    ],
)
def test_unwritable_paths_are_refused_beforehand(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for refuse in (check_writable, lambda path: save_image(noise(4, 4), path)):
        with pytest.raises(UserError, match=message) as caught:
            refuse(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        check_writable(tmp_path / "out.png")


def test_checking_leaves_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    check_writable(path)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


@pytest.mark.parametrize("stage", ["PIL.Image.Image.save", "os.replace"])
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failed_save_keeps_the_old_file_and_nothing_else(
    stage: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    path = tmp_path / "out.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(stage, fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        save_image(noise(4, 4), path)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b"old"


def test_a_picture_too_large_for_its_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        save_image(np.zeros((1, 16_384, 3), np.uint8), tmp_path / "out.webp")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
    ],
)
def test_only_uint8_rgb_is_a_picture(array: np.ndarray, tmp_path: Path) -> None:
    for use in (
        lambda: save_image(array, tmp_path / "out.png"),
        lambda: side_by_side([("caption", array)]),
    ):
        with pytest.raises(UserError, match="uint8 of shape"):
            use()
    assert not any(tmp_path.iterdir())


# --- side_by_side ---


@pytest.mark.parametrize("width", [64, 128, 512])
def test_panels_stand_unchanged_in_a_row(width: int) -> None:
    images = [noise(48, width, seed) // 2 for seed in range(3)]
    row = side_by_side([("source", images[0]), ("rebuilt", images[1]), ("edit", images[2])])
    bottom = row.shape[0] - 8
    for number, image in enumerate(images):
        left = 8 + number * (max(width, 80) + 8)
        np.testing.assert_array_equal(row[bottom - 48 : bottom, left : left + width], image)
    assert row.shape[1] == 8 + 3 * (max(width, 80) + 8) and row.dtype == np.uint8


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
    lines = _wrap(" ".join(words), width, font)
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
