"""Pictures out of the editor: uint8 RGB arrays (h, w, 3) to files."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ie_jax.data.colours import srgb_bytes
from ie_jax.data.images import reason, require_rgb
from ie_jax.data.masks import mask_picture
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, temporary_name

_WRITE_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise UserError if `save_image` could not write this file; to be called before long work."""
    _write_format(Path(path))
    check_place(path)


def check_place(path: str | os.PathLike[str]) -> None:
    """Raise UserError if no file of this name can be written."""
    path = Path(path)
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}; create it first")
    with write_errors(path):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no ordinary file; name another")
        probe = temporary_name(path)
        probe.touch(exist_ok=False)
        probe.unlink()


def numbered(path: Path, count: int) -> list[Path]:
    """One file, or numbered files of that name."""
    if count <= 1:
        return [path]
    return [path.with_stem(f"{path.stem}-{i}") for i in range(1, count + 1)]


def mask_path(path: Path) -> Path:
    """Where the mask that was found for a result goes."""
    return path.with_name(f"{path.stem}-mask.png")


def found_masks(paths: Sequence[Path], masks: np.ndarray) -> dict[Path, np.ndarray]:
    """Pictures of the results' masks (e, h, w)."""
    return {mask_path(path): mask_picture(x) for path, x in zip(paths, masks, strict=True)}


def encoded(image: np.ndarray, path: str | os.PathLike[str]) -> bytes:
    """uint8 RGB (h, w, 3) as a file in the format of the path's suffix: PNG, WebP, BMP and TIFF
    without loss, JPEG at quality 95, with the colour profile of sRGB where the format has one.

    Raises:
        UserError: the suffix is unknown, or the array is not a picture.
    """
    require_rgb(image)
    name, options = _write_format(Path(path))
    profile = {} if name == "BMP" else {"icc_profile": srgb_bytes()}
    file = io.BytesIO()
    with write_errors(Path(path)):  # WebP ends at 16383 pixels
        Image.fromarray(image).save(file, name, **options, **profile)
    return file.getvalue()


def save_image(image: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write a picture, see `encoded`. The file appears whole or not at all, and replaces one of
    that name.

    Raises:
        UserError: as `encoded`; or the folder is missing or not writable.
    """
    path = Path(path)
    content = encoded(image, path)
    check_place(path)
    with write_errors(path), appearing_whole(path) as file:
        file.write(content)


def _write_format(path: Path) -> tuple[str, dict[str, Any]]:
    try:
        return _WRITE_FORMATS[path.suffix.lower()]
    except KeyError:
        known = ", ".join(_WRITE_FORMATS)
        raise UserError(f"{path}: the name must end in one of {known}") from None


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raises UserError where writing the file fails inside."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error
