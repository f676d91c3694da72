"""Pictures out of the editor: uint8 RGB arrays (h, w, 3) to files and panels."""

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ie_jax.data.colours import srgb
from ie_jax.data.images import reason, require_rgb
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


def encoded(image: np.ndarray, path: str | os.PathLike[str]) -> bytes:
    """uint8 RGB (h, w, 3) as a file in the format of the path's suffix: PNG, WebP, BMP and TIFF
    without loss, JPEG at quality 95, with the colour profile of sRGB where the format has one.

    Raises:
        UserError: the suffix is unknown, or the array is not a picture.
    """
    require_rgb(image)
    name, options = _write_format(Path(path))
    profile = {} if name == "BMP" else {"icc_profile": srgb().tobytes()}
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


def side_by_side(panels: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """A row of captioned pictures on white: uint8 RGB (h, w, 3) from (caption, picture) pairs.

    Pictures keep their size and stand on one line under their captions. A caption is wrapped
    to its picture's width (at least 80 pixels) and cut after four lines. Pillow's own font draws
    it, which has ASCII only: other characters show as boxes.

    Raises UserError if there are no panels or one is no picture.
    """
    if not panels:
        raise UserError("there are no pictures to lay side by side")
    for _, image in panels:
        require_rgb(image)

    gap = 8
    columns = [max(image.shape[1], 80) for _, image in panels]
    font_size = min(max(min(columns) // 24, 11), 20)
    font = ImageFont.load_default(font_size)
    captions = [
        _wrap(text, column, font) for (text, _), column in zip(panels, columns, strict=True)
    ]
    line_height = font_size + 4
    strip = gap + line_height * max(len(lines) for lines in captions) + gap // 2
    height = strip + max(image.shape[0] for _, image in panels) + gap
    row = Image.new("RGB", (sum(columns) + gap * (len(panels) + 1), height), "white")
    left = gap
    for (_, image), column, lines in zip(panels, columns, captions, strict=True):
        cell = Image.new("RGB", (column, height), "white")
        draw = ImageDraw.Draw(cell)
        for number, line in enumerate(lines):
            draw.text((0, gap + number * line_height), line, fill="black", font=font)
        cell.paste(Image.fromarray(image), (0, strip))
        row.paste(cell, (left, 0))
        left += column + gap
    return np.array(row)


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


def _wrap(text: str, width: int, font: Any, max_lines: int = 4) -> list[str]:
    """Text in at most `max_lines` lines of at most `width` pixels, "..." at the end if it was cut.

    Broken at spaces, and inside a word only where the word is wider than a line.
    """
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            if lines[-1]:
                lines.append("")
            for character in word:
                if font.getlength(lines[-1] + character) > width:
                    lines.append("")
                lines[-1] += character
                if len(lines) > max_lines:
                    break
        if len(lines) > max_lines:
            last = lines[max_lines - 1]
            while font.getlength(last + "...") > width:
                last = last[:-1]
            return [*lines[: max_lines - 1], last + "..."]
    return lines
