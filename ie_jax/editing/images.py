"""Pictures in and out of the editor: files on one side, uint8 RGB arrays (h, w, 3) on the other."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, temporary_name

Fit = Literal["crop", "aspect"]

MAX_PIXELS = 64_000_000
"""A larger picture file is refused from its header alone, before anything is decoded."""

MAX_SIDE = 2048
"""No side of a prepared picture exceeds this: attention maps grow with its fourth power."""

SIDE_MULTIPLE = 64
"""The autoencoder halves a picture three times and the UNet its latents three times more."""

# Named one by one: Pillow also knows formats that start other programs (EPS) or that nobody sends.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

_WRITE_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}


def load_image(path: str | os.PathLike[str], size: int, fit: Fit = "crop") -> np.ndarray:
    """The picture in a file, turned upright and brought to the size that the models take.

    Any of PNG, JPEG, WebP, GIF, BMP, TIFF and PPM: the first frame if there are several, composited
    over white where it is transparent. Deeper grey is scaled to 8 bits: 16-bit from its full
    range, float from 0..1 (from 0..255 if a value exceeds 1).

    Returns uint8 RGB (h, w, 3), shaped by `preprocess`.
    Raises UserError if the file cannot be read, is not a whole picture in one of these formats,
    has more than `MAX_PIXELS` pixels, or cannot be given this size.
    """
    image = _read_rgb(Path(path))
    try:
        return preprocess(image, size, fit)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def preprocess(image: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """Crop and resize (bicubic) uint8 RGB (h, w, 3) for the models.

    "crop", the published preparation (that of Null-text inversion): the central square of the
    shorter side, resized to (size, size). The ends of the longer side are cut.

    "aspect": the shorter side becomes `size` and the longer one follows, each rounded to the
    nearest multiple of 64, at least 64. Nothing is stretched: the picture is scaled to cover that
    shape, and what hangs over on one axis, at most 32 pixels, is cut half at each end.

    Raises UserError if the array is not a picture or a side of the result would not be in
    1..`MAX_SIDE`.
    """
    _require_rgb(image)
    if not 1 <= size <= MAX_SIDE:
        raise UserError(f"size must be between 1 and {MAX_SIDE}, not {size}")
    height, width = image.shape[:2]
    short = min(height, width)
    match fit:
        case "crop":
            top, left = (height - short) // 2, (width - short) // 2
            square = Image.fromarray(image[top : top + short, left : left + short])
            return np.array(square.resize((size, size)))
        case "aspect":
            side = _nearest_multiple(size)
            shape = (
                _nearest_multiple(width * side / short),
                _nearest_multiple(height * side / short),
            )
            if max(shape) > MAX_SIDE:
                raise UserError(
                    f"a picture of {width}x{height} would become {shape[0]}x{shape[1]}, with a "
                    f"side over {MAX_SIDE}; cut it first, or use a smaller size or fit=crop"
                )
            return np.array(ImageOps.fit(Image.fromarray(image), shape))
        case _:
            raise UserError(f"fit must be crop or aspect, not {fit!r}")


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
        probe = temporary_name(path)
        probe.touch(exist_ok=False)
        probe.unlink()


def save_image(image: np.ndarray, path: str | os.PathLike[str]) -> None:
    """Write uint8 RGB (h, w, 3) in the format of the path's suffix: PNG, WebP, BMP and TIFF
    without loss, JPEG at quality 95.

    The file appears whole or not at all, and replaces one of that name. Raises UserError if the
    suffix is unknown, the folder is missing or not writable, or the array is not a picture.
    """
    path = Path(path)
    _require_rgb(image)
    check_writable(path)
    name, options = _write_format(path)
    with write_errors(path), appearing_whole(path) as file:
        Image.fromarray(image).save(file, name, **options)


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
        _require_rgb(image)

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


def _read_rgb(path: Path) -> np.ndarray:
    """The first frame of a picture file, upright, over white: uint8 (h, w, 3)."""
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {_reason(error)}") from error
    # Pillow warns about broken metadata, which does not touch the pixels, and about large
    # pictures, for which there is a limit of our own.
    with file, warnings.catch_warnings(action="ignore"):
        try:
            with Image.open(file, formats=_READ_FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                picture.verify()
            file.seek(0)
            with Image.open(file, formats=_READ_FORMATS) as picture:
                picture.load()
                return np.array(_to_rgb(picture))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Image.DecompressionBombError as error:
            limit = MAX_PIXELS // 1_000_000
            raise UserError(
                f"{path}: has over {limit} megapixels; make it smaller first"
            ) from error
        except UnidentifiedImageError as error:
            known = ", ".join(_READ_FORMATS)
            raise UserError(f"{path}: is not a picture in a known format ({known})") from error
        except Exception as error:  # on broken bytes the decoders raise nearly anything
            raise UserError(f"{path}: is damaged or incomplete; get the file again") from error


def _to_rgb(picture: Image.Image) -> Image.Image:
    """A loaded picture of any mode as upright 8-bit RGB."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):
        # Pillow reads 16-bit grey as mode I;16 or, from some formats, as 32-bit I.
        values = np.asarray(picture).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise UserError("has 32-bit integer pixels; save it with 8 or 16 bits")
        picture = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    elif picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        scale = 255.0 if values.max() <= 1 else 1.0
        picture = Image.fromarray(np.rint((values * scale).clip(0, 255)).astype(np.uint8))
    elif picture.has_transparency_data:
        layer = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return picture.convert("RGB")


def _require_rgb(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"a picture must be uint8 of shape (h, w, 3), not {image.dtype} of shape {image.shape}"
        )


def _nearest_multiple(length: float) -> int:
    return max(1, round(length / SIDE_MULTIPLE)) * SIDE_MULTIPLE


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
        raise UserError(f"{path}: cannot be written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What went wrong, without the number and the (temporary) name that OSError prints."""
    return getattr(error, "strerror", None) or str(error)


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
