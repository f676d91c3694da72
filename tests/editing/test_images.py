"""Pictures out: files of every format."""

import errno
import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ie_jax.data.colours import is_srgb
from ie_jax.data.images import load_image
from ie_jax.data.panels import side_by_side
from ie_jax.editing.images import (
    check_writable,
    encoded,
    save_image,
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


@pytest.mark.parametrize("name", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_equal_pictures_are_equal_files_at_any_time_of_day(name: str) -> None:
    content = encoded(noise(8, 8), f"out.{name.lower()}")
    with Image.open(io.BytesIO(content)) as picture:
        profile = picture.info["icc_profile"]
    assert profile[24:36] == struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    assert is_srgb(profile)


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
