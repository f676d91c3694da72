"""What the networks share that torch runs: how they are read, and how pictures come to them."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.data.images import resized
from ie_jax.errors import UserError
from ie_jax.weights.formats import need_torch

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224
"""Pixels of the square that the networks take."""


def need_libraries(metrics: str) -> None:
    """Raise UserError if torch is not installed, without importing it."""
    need_torch(metrics, "evaluation", "measuring with")


def pretrained(kind: str, folder: Path) -> Any:
    """A network of transformers with its weights, float32, in evaluation mode, on the GPU if torch
    has one.

    Args:
        kind: the name of its class.

    Raises:
        UserError: the folder does not hold such a network, or torch is not installed.
    """
    need_libraries(kind)
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model, info = getattr(transformers, kind).from_pretrained(
            str(folder), local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except Exception as error:  # the library raises a different type per broken file
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{folder} holds no readable {kind}: {reason}") from error
    wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if wrong:
        raise UserError(f"{folder} lacks weights of {kind}: {', '.join(wrong[:5])}")
    return on_device(model)


def renamed(
    tensors: Mapping[str, np.ndarray], prefix: str, names: tuple[tuple[str, str], ...]
) -> dict[str, np.ndarray]:
    """Tensors of one network by their names in transformers, unknown ones by their own; without
    those whose new name is empty."""
    found = {}
    for name, x in tensors.items():
        if not name.startswith(prefix):
            continue
        here = name.removeprefix(prefix)
        for pattern, replacement in names:
            here = re.sub(rf"^{pattern}$", replacement, here)
        found[here] = x
    found.pop("", None)
    return found


def on_device(model: Any) -> Any:
    """A network in evaluation mode, on the GPU if torch has one."""
    import torch

    torch.backends.cudnn.allow_tf32 = False  # else convolutions there have 10 bits, not 23
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def filled(model: Any, tensors: dict[str, np.ndarray], where: Path) -> Any:
    """A network of torch with all its weights from these tensors, and all of these used.

    Raises:
        UserError: they do not fit; `where` names their file.
    """
    import torch

    state = {name: torch.from_numpy(np.array(x, np.float32)) for name, x in tensors.items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{where} does not fit its network: {reason[:300]}") from error
    return on_device(model)


def run(function: Callable[..., Any], *arrays: np.ndarray, **options: np.ndarray) -> Any:
    """A network's result for arrays, which take its place among devices; without gradients."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def put(x: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    with torch.inference_mode():
        return function(*map(put, arrays), **{name: put(x) for name, x in options.items()})


def to_numpy(x: Any) -> np.ndarray:
    """A tensor as an array."""
    found: np.ndarray = x.cpu().numpy()
    return found


def scaled(shape: tuple[int, ...], short: int) -> tuple[int, int]:
    """Height and width where the short side is that long and the long one keeps the aspect."""
    height, width = shape[:2]
    return (
        (short, int(short * width / height))
        if height <= width
        else (int(short * height / width), short)
    )


def centre(shape: tuple[int, ...], size: int = SIDE, rounded: bool = False) -> tuple[slice, slice]:
    """The central square of a picture.

    Args:
        size: its side.
        rounded: half a pixel goes to the even side, as in torchvision; else always up and left, as
            in transformers.
    """

    def part(side: int) -> slice:
        start = round((side - size) / 2) if rounded else (side - size) // 2
        return slice(start, start + size)

    return part(shape[0]), part(shape[1])


def prepared(
    picture: np.ndarray,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
    short: int = SIDE,
    rounded: bool = False,
) -> np.ndarray:
    """A picture as most networks take it: resized by Pillow (bicubic), its central square.

    Args:
        picture: uint8 (h, w, 3).
        mean, std: of the colours on [0, 1].
        short: the short side before the square is cut out.
        rounded: see `centre`.

    Returns:
        float32 (3, 224, 224).
    """
    shape = scaled(picture.shape, short)
    square = resized(picture, shape)[centre(shape, rounded=rounded)]
    normal: np.ndarray = ((square / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
    return normal


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Of two vectors."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def number(path: Path, values: dict[str, Any], name: str) -> int:
    """A positive whole number of a config.

    Raises:
        UserError: it is none.
    """
    found = values.get(name)
    if not isinstance(found, int) or found < 1:
        raise UserError(f"{path}: {name} must be a positive number, not {json.dumps(found)}")
    return found
