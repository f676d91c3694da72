"""Pictures as the models take them: a file or its bytes to an upright uint8 RGB array (h, w, 3)."""

import io
import math
import os
import re
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ie_jax.data.colours import to_srgb
from ie_jax.data.png import without_texts
from ie_jax.errors import UserError
from ie_jax.files import read_bytes

Fit = Literal["crop", "aspect", "buckets"]

MAX_PIXELS = 64_000_000
"""A larger picture file is refused from its header alone, before anything is decoded."""

MAX_DECODED = 4 * MAX_PIXELS
"""Bytes of its pixels in memory: those of 32 bits a channel are eight each."""

MAX_SCANNED = 20 * MAX_PIXELS
"""Pixels in all scans of a progressive JPEG together; a usual one has ten scans."""

MAX_SIDE = 2048
"""No side of a prepared picture exceeds this: attention maps grow with its fourth power."""

SIDE_MULTIPLE = 64
BUCKETS = (
    *((512, long) for long in (2048, 1984, 1920, 1856)),
    *((576, long) for long in (1792, 1728, 1664)),
    *((640, long) for long in (1600, 1536)),
    *((704, long) for long in (1472, 1408, 1344)),
    *((768, long) for long in (1344, 1280)),
    *((832, long) for long in (1216, 1152)),
    *((896, long) for long in (1152, 1088)),
    *((960, long) for long in (1088, 1024)),
    (1024, 1024),
)
"""Shorter and longer side of the pictures that SDXL was trained on, either way up."""
BUCKET = 1024
"""The side of the square one."""
"""The autoencoder halves a picture three times and the UNet its latents three times more."""

# Named one by one: Pillow also knows formats that start other programs (EPS) or that nobody sends.
_READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
HEIC = re.compile(rb"....ftyp(hei[cfmsx]|hev[cx]|mif1|msf1)", re.DOTALL)
"""The start of an iPhone's photo."""

MAX_BYTES = 1_000_000_000
"""A larger file is no photo."""

PILLOW = re.compile(r"PIL\.")
PILLOW_IGNORED = ("ignore", None, Warning, PILLOW, 0)  # as the entry stands in warnings.filters


def load_image(path: str | os.PathLike[str], size: int, fit: Fit = "crop") -> np.ndarray:
    """The picture in a file, turned upright and brought to the size that the models take.

    Any of PNG, JPEG, WebP, AVIF, GIF, BMP, TIFF and PPM, and HEIC with the extra `heic`: the first
    frame if there are several, as sRGB by its colour profile, over white where it is transparent
    (see `ie_jax.data.colours.to_srgb`).

    Returns uint8 RGB (h, w, 3), shaped by `preprocess`.
    Raises UserError if the file cannot be read, is not a whole picture in one of these formats,
    has more than `MAX_PIXELS` pixels, or cannot be given this size.
    """
    image = read_rgb(Path(path), str(path))
    try:
        return preprocess(image, size, fit)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def resized(picture: np.ndarray, shape: tuple[int, ...], smooth: bool = True) -> np.ndarray:
    """A picture of that height and width, by Pillow; as it is if it has them.

    Pillow 13 takes the axes in another order than those before it where the height shrinks by far
    the most, and rounds in between. Here the order is that of 13, whichever is installed.

    Args:
        picture: uint8 (h, w, 3).
        smooth: bicubic; else bilinear.
    """
    (h, w), (height, width) = picture.shape[:2], shape[:2]
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.BILINEAR
    image = Image.fromarray(picture)
    if h - height > max(0, 2 * (w - width)):
        image = image.resize((w, height), how)
    return np.asarray(image.resize((width, height), how))


def preprocess(image: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """Crop and resize (bicubic) uint8 RGB (h, w, 3) for the models.

    "crop", the published preparation (that of Null-text inversion): the central square of the
    shorter side, resized to (size, size). The ends of the longer side are cut.

    "aspect": the shorter side becomes `size` and the longer one follows, each rounded to the
    nearest multiple of 64, at least 64. Nothing is stretched: the picture is scaled to cover that
    shape, and what hangs over on one axis, at most 32 pixels, is cut half at each end.

    "buckets": of the shapes that SDXL was trained on, that of the nearest ratio of sides, scaled so
    that the square one has sides of `size`, and rounded to 32.

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
            return fitted(image, shape)
        case "buckets":
            return fitted(image, bucket(width, height, size))
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
    content = source if isinstance(source, bytes) else content_of(source, name)
    formats = (*_READ_FORMATS, *heic_formats(content, name))
    file = io.BytesIO(without_texts(content))
    try:
        with Image.open(file, formats=formats) as picture:
            check_size(picture, content)
            picture.verify()
        file.seek(0)
        with Image.open(file, formats=formats) as picture:
            picture.load()
            return np.array(to_srgb(picture))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except Image.DecompressionBombError as error:
        limit = MAX_PIXELS // 1_000_000
        raise UserError(f"{name}: has over {limit} megapixels; make it smaller first") from error
    except UnidentifiedImageError as error:
        known = ", ".join(_READ_FORMATS)
        raise UserError(f"{name}: is not a picture in a known format ({known})") from error
    except Exception as error:  # on broken bytes the decoders raise nearly anything
        raise UserError(f"{name}: is damaged or incomplete; get the file again") from error


def check_size(picture: Image.Image, content: bytes) -> None:
    """Raise UserError if a picture that is only opened would take too much room or time, or more
    than its file can hold."""
    pixels = picture.width * picture.height
    decoded = pixels * (8 if picture.mode.startswith(("I", "F")) else 4)
    if pixels > MAX_PIXELS or decoded > MAX_DECODED:
        raise UserError(
            f"has {pixels / 1e6:.0f} megapixels, {decoded / 1e6:.0f} MB decoded, over "
            f"{MAX_PIXELS // 10**6} or {MAX_DECODED // 10**6}; make it smaller first"
        )
    # A scan (SOS) of a progressive JPEG takes as long as all pixels, and may be a few bytes.
    if picture.format == "JPEG" and content.count(b"\xff\xda") * pixels > MAX_SCANNED:
        raise UserError("has more scans than any photo; save it as another JPEG")
    # Pillow leaves black what no strip of a TIFF holds: millions of rows, for a damaged height.
    tiles = getattr(picture, "tile", ())
    rows = max((tile.extents[3] for tile in tiles if tile.extents), default=0)
    if picture.format == "TIFF" and rows < picture.height:
        raise UserError(
            f"is damaged or incomplete: it holds {rows} of its {picture.height} rows; get it again"
        )


def content_of(path: Path, name: str) -> bytes:
    """What a file holds.

    Raises:
        UserError: it cannot be read, is no file, or is too large.
    """
    try:
        return read_bytes(path, MAX_BYTES, name)
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: cannot be read: {reason(error)}") from error


def heic_formats(content: bytes, name: str) -> tuple[str, ...]:
    """What Pillow must know to open this picture, if it is HEIC.

    Raises:
        UserError: it is, and the package that reads it is not installed.
    """
    if not HEIC.match(content):
        return ()
    try:
        import pillow_heif  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            f"{name}: is a HEIC picture: pip install 'ie_jax[heic]', or save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def ignore_pillow() -> None:
    """Silence Pillow: it warns about broken metadata, which does not touch the pixels, and about
    large pictures, for which there is a limit of our own.

    For good, since `warnings.catch_warnings` may not be used by several threads at once.
    """
    if PILLOW_IGNORED not in warnings.filters:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


def require_rgb(image: np.ndarray) -> None:
    """Raise UserError unless the array is a picture: uint8 (h, w, 3), not empty."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise UserError(
            f"a picture must be uint8 of shape (h, w, 3), not {image.dtype} of shape {image.shape}"
        )


def fitted(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A picture scaled to cover so many pixels, width and height, and cut half at each end."""
    return np.array(ImageOps.fit(Image.fromarray(image), shape))


def bucket(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height by `BUCKETS` for a picture of this shape.

    Raises:
        UserError: a side would be over `MAX_SIDE`.
    """
    ratio = max(width, height) / min(width, height)
    nearest = min(BUCKETS, key=lambda sides: abs(math.log(sides[1] / sides[0] / ratio)))
    short, long = (max(1, round(side * size / BUCKET / 32)) * 32 for side in nearest)
    if long > MAX_SIDE:
        raise UserError(
            f"a picture of {width}x{height} would become {short}x{long}, with a side over "
            f"{MAX_SIDE}; use a smaller size or fit=crop"
        )
    return (long, short) if width > height else (short, long)


def _nearest_multiple(length: float) -> int:
    return max(1, round(length / SIDE_MULTIPLE)) * SIDE_MULTIPLE


def reason(error: Exception) -> str:
    """What went wrong, without the number and the (temporary) name that OSError prints."""
    return getattr(error, "strerror", None) or str(error)
