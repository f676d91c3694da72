"""Pictures as the models take them: a file or its bytes to an upright uint8 RGB array (h, w, 3)."""

import io
import os
import re
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ie_jax.errors import UserError

Fit = Literal["crop", "aspect"]

MAX_PIXELS = 64_000_000
"""A larger picture file is refused from its header alone, before anything is decoded."""

MAX_SIDE = 2048
"""No side of a prepared picture exceeds this: attention maps grow with its fourth power."""

SIDE_MULTIPLE = 64
"""The autoencoder halves a picture three times and the UNet its latents three times more."""

# Named one by one: Pillow also knows formats that start other programs (EPS) or that nobody sends.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

PILLOW = re.compile(r"PIL\.")
PILLOW_IGNORED = ("ignore", None, Warning, PILLOW, 0)  # as the entry stands in warnings.filters


def load_image(path: str | os.PathLike[str], size: int, fit: Fit = "crop") -> np.ndarray:
    """The picture in a file, turned upright and brought to the size that the models take.

    Any of PNG, JPEG, WebP, GIF, BMP, TIFF and PPM: the first frame if there are several, composited
    over white where it is transparent. Deeper grey is scaled to 8 bits: 16-bit from its full
    range, float from 0..1 (from 0..255 if a value exceeds 1).

    Returns uint8 RGB (h, w, 3), shaped by `preprocess`.
    Raises UserError if the file cannot be read, is not a whole picture in one of these formats,
    has more than `MAX_PIXELS` pixels, or cannot be given this size.
    """
    image = read_rgb(Path(path), str(path))
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
    require_rgb(image)
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


def read_rgb(source: Path | bytes, name: str) -> np.ndarray:
    """The first frame of a picture, upright, over white: uint8 (h, w, 3).

    Args:
        source: a file, or what one holds.
        name: for messages.

    Raises:
        UserError: as `load_image`.
    """
    ignore_pillow()
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read: {reason(error)}") from error
    with file:
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
            raise UserError(f"{name}: {error}") from None
        except Image.DecompressionBombError as error:
            limit = MAX_PIXELS // 1_000_000
            raise UserError(
                f"{name}: has over {limit} megapixels; make it smaller first"
            ) from error
        except UnidentifiedImageError as error:
            known = ", ".join(_READ_FORMATS)
            raise UserError(f"{name}: is not a picture in a known format ({known})") from error
        except Exception as error:  # on broken bytes the decoders raise nearly anything
            raise UserError(f"{name}: is damaged or incomplete; get the file again") from error


def ignore_pillow() -> None:
    """Silence Pillow: it warns about broken metadata, which does not touch the pixels, and about
    large pictures, for which there is a limit of our own.

    For good, since `warnings.catch_warnings` may not be used by several threads at once.
    """
    if PILLOW_IGNORED not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


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


def require_rgb(image: np.ndarray) -> None:
    """Raise UserError unless the array is a picture: uint8 (h, w, 3), not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"a picture must be uint8 of shape (h, w, 3), not {image.dtype} of shape {image.shape}"
        )


def _nearest_multiple(length: float) -> int:
    return max(1, round(length / SIDE_MULTIPLE)) * SIDE_MULTIPLE


def reason(error: Exception) -> str:
    """What went wrong, without the number and the (temporary) name that OSError prints."""
    return getattr(error, "strerror", None) or str(error)
