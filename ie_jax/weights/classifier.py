"""The world's attribute classifier as a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.models.lpips import lpips_shapes
from ie_jax.weights.convert import flatten, unflatten
from ie_jax.weights.formats import read_tensors

VALUES: Mapping[str, int] = {"shape": 6, "colour": 9, "surface": 4, "background": 6}
"""How many values each attribute of the world takes."""


def classifier_shapes(widths: Sequence[int], depths: Sequence[int]) -> dict[str, Any]:
    """The parameters of `classify`, as shapes: `depths[i]` convolutions of `widths[i]` channels in
    block i."""

    def shape(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, np.float32)

    vgg = {name: x for name, x in lpips_shapes(widths, depths).items() if "conv" in name}
    pooled = 2 * widths[-1]
    heads = {name: {"kernel": shape(pooled, n), "bias": shape(n)} for name, n in VALUES.items()}
    return {"vgg": vgg, "heads": heads}


def save_classifier(path: Path, params: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write the parameters of `classify` as one `.safetensors` file."""
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in flatten(params).items()}
    with appearing_whole(path) as file:
        file.write(safetensors.numpy.save(tensors, dict(metadata)))


def load_classifier(path: Path) -> dict[str, Any]:
    """The parameters of `classify`, numpy float32.

    Raises:
        UserError: the file is missing, damaged, or not a classifier of the world.
    """
    tensors = read_tensors(path)
    blocks: dict[str, list[int]] = {}
    for name in sorted(tensors):
        if name.startswith("vgg/conv") and name.endswith("/bias"):
            blocks.setdefault(name.split("_")[0], []).append(tensors[name].size)
    found = {name: x.shape for name, x in tensors.items()}
    widths, depths = [x[0] for x in blocks.values()], [len(x) for x in blocks.values()]
    wanted = flatten(classifier_shapes(widths, depths)) if blocks else {}
    if not wanted or found != {name: x.shape for name, x in wanted.items()}:
        raise UserError(f"{path} is not a classifier of the embedded world")
    return unflatten({name: np.asarray(x, np.float32) for name, x in tensors.items()})
