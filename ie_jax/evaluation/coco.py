"""COCO's val2014: photos with captions, to be inverted and come back."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ie_jax.data.images import read_rgb, resized
from ie_jax.data.sources import coco_csv
from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.networks import centre, scaled
from ie_jax.files import parse_json, read_bytes

SPLIT = "val2014"
ANNOTATIONS = f"captions_{SPLIT}.json"
SHORTEST = 512
"""Pixels of a photo's shorter side from which it takes part."""
MOST = 500_000_000
"""Bytes of the annotations."""


@dataclass(frozen=True)
class Photo:
    """A photo and what it shows."""

    path: Path
    caption: str


def read_photos(folder: Path, shortest: int = 0) -> list[Photo]:
    """The photos of `val2014/` that have a caption, sorted by name.

    Captions come from `val2014.csv`, or from `captions_val2014.json` beside it or in
    `annotations/`; of several the last counts.

    Args:
        shortest: leave out photos with a side shorter than so many pixels.

    Raises:
        UserError: photos or captions are missing, or the captions are of other photos.
    """
    annotated = (folder / ANNOTATIONS, folder / "annotations" / ANNOTATIONS)
    table = next((path for path in annotated if path.is_file()), None)
    if (folder / f"{SPLIT}.csv").is_file() or table is None:
        rows = coco_csv(folder, SPLIT).rows
        captions = {row.file: row.captions[-1] for row in rows if row.file and row.captions}
    else:
        captions = {
            str(folder / SPLIT / name): caption for name, caption in read_captions(table).items()
        }
    photos = [Photo(Path(path), captions[path]) for path in sorted(captions)]
    here = [photo for photo in photos if photo.path.is_file()]
    if not here:
        raise UserError(f"{folder / SPLIT}: holds none of the {len(photos)} captioned photos")
    return [photo for photo in here if short_side(photo.path) >= shortest]


def read_captions(path: Path) -> dict[str, str]:
    """The last caption of each file by COCO's annotations.

    Raises:
        UserError: they cannot be read, or are none.
    """
    try:
        content = parse_json(read_bytes(path, MOST), MOST)
        files = {image["id"]: image["file_name"] for image in content["images"]}
        found = {
            files[x["image_id"]]: x["caption"].strip()
            for x in content["annotations"]
            if x["image_id"] in files
        }
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is not COCO's captions: {error}") from error
    plain = all(isinstance(name, str) and re.fullmatch(r"[^/\\]+", name) for name in found)
    if not found or not plain:
        raise UserError(f"{path}: must name photos, without folders, and their captions")
    return found


def short_side(path: Path) -> int:
    """Pixels of a photo's shorter side, 0 where it cannot be read; only its head is."""
    try:
        with Image.open(path) as photo:
            return min(photo.size)
    except Exception:  # what is wrong is told where the photo itself is read
        return 0


def prepared_photo(path: Path, size: int) -> np.ndarray:
    """A photo as the published training code prepares it: the short side resized to `size`
    (bilinear), the central square; uint8 (size, size, 3).

    Raises:
        UserError: it cannot be read.
    """
    pixels: Any = read_rgb(path, str(path))
    shape = scaled(pixels.shape, size)
    return resized(pixels, shape, smooth=False)[centre(shape, size, rounded=True)]
