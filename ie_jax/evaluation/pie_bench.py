"""PIE-Bench (Ju et al. 2024): photos and drawings with an edit each, and a mask of what changes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.masks import decode_mask
from ie_jax.files import parse_json, read_bytes

MAPPING, PICTURES = "mapping_file.json", "annotation_images"
MOST = 500_000_000
"""Bytes of the mapping file."""
PAPER_IMAGES = 420
"""Edits that are `in_paper`."""
TYPES = (
    *("random", "change object", "add object", "delete object", "change content", "change pose"),
    *("change color", "change material", "change background", "change style"),
)
"""What `editing_type_id` stands for."""
TEXTS = ("image_path", "original_prompt", "editing_prompt", "editing_type_id")


@dataclass(frozen=True)
class Item:
    """One edit."""

    name: str
    image: str
    """Its file's path below `PICTURES`."""
    source: str
    target: str
    """Prompts, without the brackets that mark what changes."""
    kind: int
    """Number in `TYPES`."""
    mask: np.ndarray
    """uint8 (512, 512), 1 where the picture is to be edited."""


def read_items(folder: Path) -> list[Item]:
    """All edits of a folder with `mapping_file.json`, in its order.

    Raises:
        UserError: it is missing, damaged or incomplete, or pictures are missing.
    """
    path = folder / MAPPING
    if not path.is_file():
        raise UserError(f"{path} is missing: give PIE-Bench's folder, which holds it")
    try:
        mapping = parse_json(read_bytes(path, MOST), MOST)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}") from error
    if not isinstance(mapping, dict) or not mapping:
        raise UserError(f"{path}: holds no edits")
    items = [item_of(name, values, f"{path} {name}") for name, values in mapping.items()]
    missing = [item.image for item in items if not picture(folder, item).is_file()]
    if missing:
        raise UserError(
            f"{folder / PICTURES} lacks {len(missing)} of {len(items)} pictures, such as "
            f"{missing[0]}"
        )
    return items


def item_of(name: str, values: Any, where: str) -> Item:
    """The edit of an entry.

    Raises:
        UserError: it lacks something.
    """
    if not isinstance(values, dict) or not all(isinstance(values.get(x), str) for x in TEXTS):
        raise UserError(f"{where}: must have the texts {', '.join(TEXTS)}")
    if name != Path(name).name or name.startswith("."):
        raise UserError(f"{where}: the name must be that of a file, without folders")
    image, kind = values["image_path"], values["editing_type_id"]
    if Path(image).is_absolute() or ".." in Path(image).parts:
        raise UserError(f"{where}: image_path {image!r} leads out of the folder")
    if kind not in map(str, range(len(TYPES))):
        raise UserError(f"{where}: editing_type_id {kind!r} must be from 0 to {len(TYPES) - 1}")
    runs = values.get("mask")
    if not isinstance(runs, list):
        raise UserError(f"{where}: has no mask, a list of starts and lengths")
    source, target = plain(values["original_prompt"]), plain(values["editing_prompt"])
    return Item(name, image, source, target, int(kind), decode_mask(runs, where))


def in_paper(item: Item) -> bool:
    """Whether an edit is one of the paper's 420: random ones, and those of photos."""
    return item.kind == 0 or item.name[1:2] == "2"


def plain(prompt: str) -> str:
    """A prompt without brackets."""
    return prompt.replace("[", "").replace("]", "")


def picture(folder: Path, item: Item) -> Path:
    """Where an edit's picture lies in PIE-Bench's folder, or in one laid out like it."""
    return folder / PICTURES / item.image
