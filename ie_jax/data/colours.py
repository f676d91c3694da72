"""A picture as Pillow opened it to what the models take: upright, 8 bits, sRGB, over white."""

import functools
import io
import struct

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin
from PIL.ExifTags import Base

from ie_jax.errors import UserError

CREATED = slice(24, 36)
"""Where a profile's header says when it was made."""
ROUNDING = 1
"""Profiles that move no colour by more, of 255, are taken as sRGB itself."""

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


def to_srgb(picture: Image.Image) -> Image.Image:
    """A loaded picture of any mode as upright 8-bit sRGB, over white where it is transparent.

    Deeper grey is scaled to 8 bits: integers from their full range, float from 0..1 (from 0..255 if
    a value exceeds 1). An embedded colour profile is followed, a broken one ignored.

    Raises:
        UserError: 32-bit integers, whose range nothing tells.
    """
    profile = picture.info.get("icc_profile")
    turn = TURNS.get(orientation(picture))
    picture = grey_of_8_bits(picture)
    if turn is not None:
        picture = picture.transpose(turn)
    if picture.mode == "P":
        picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    alpha = None
    if picture.has_transparency_data:
        layer = picture.convert("LA" if picture.mode in ("L", "LA", "1") else "RGBA")
        *colours, alpha = layer.split()
        picture = Image.merge("RGB", colours) if len(colours) == 3 else colours[0]
    picture = followed(picture, profile) if profile else picture.convert("RGB")
    if alpha is not None:
        white = Image.new("RGBA", picture.size, "white")
        picture.putalpha(alpha)
        picture = Image.alpha_composite(white, picture).convert("RGB")
    return picture


def srgb_bytes() -> bytes:
    """The profile of sRGB as files hold it, always the same: Little CMS writes the time of day."""
    profile = bytearray(srgb().tobytes())
    profile[CREATED] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    return bytes(profile)


def srgb() -> ImageCms.ImageCmsProfile:
    """The profile of sRGB; a new one each time, since threads may not share it."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def orientation(picture: Image.Image) -> int:
    """EXIF's number for how the picture lies; 1, upright, where nothing can be read."""
    try:
        return int(picture.getexif().get(Base.Orientation, 1))
    except Exception:  # on broken EXIF Pillow raises nearly anything
        return 1


def grey_of_8_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits brought to 8; other pictures as they are."""
    if picture.mode.startswith("I"):
        # Pillow reads 16-bit grey as mode I;16 or, from some formats, as 32-bit I.
        values = np.asarray(picture).astype(np.int32)
        most, inverted = 65535, False
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            # Pillow leaves 12 bits as they are, and white as 0.
            bits = picture.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
            most = 2**bits - 1 if bits < 16 else most
            inverted = picture.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if values.min() < 0 or values.max() > 65535:
            raise UserError("has 32-bit integer pixels; save it with 8 or 16 bits")
        values = most - values if inverted else values
        return Image.fromarray(((values * 255 + most // 2) // most).clip(0, 255).astype(np.uint8))
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture, dtype=np.float64))
        scale = 255.0 if values.max() <= 1 else 1.0
        return Image.fromarray(np.rint((values * scale).clip(0, 255)).astype(np.uint8))
    return picture


def followed(picture: Image.Image, profile: bytes) -> Image.Image:
    """A picture without transparency as sRGB, by its profile (LittleCMS, perceptual)."""
    if picture.mode not in ("L", "RGB", "CMYK", "YCbCr", "LAB"):
        picture = picture.convert("RGB")
    if picture.mode == "RGB" and is_srgb(profile):
        return picture
    try:
        return transform(picture.mode, profile).apply(picture)
    except ImageCms.PyCMSError:  # broken, or for other colours than these
        return picture.convert("RGB")


def transform(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform:
    """From a profile's colours, of pictures of this mode, to sRGB.

    Raises:
        ImageCms.PyCMSError: the profile is broken, or does not fit the mode.
    """
    given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(given, srgb(), mode, "RGB")


@functools.lru_cache(maxsize=32)
def is_srgb(profile: bytes) -> bool:
    """Whether a profile leaves colours from everywhere in the cube where they are; also if it is
    broken."""
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    try:
        moved = np.asarray(transform("RGB", profile).apply(Image.fromarray(cube)))
    except (ImageCms.PyCMSError, OSError):
        return True
    return bool(np.abs(moved.astype(int) - cube).max() <= ROUNDING)
