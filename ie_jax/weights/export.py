"""LoRA trees as files that other programs read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from ie_jax.files import appearing_whole
from ie_jax.models.lora import ALPHA
from ie_jax.weights.convert import flatten
from ie_jax.weights.names import kohya, peft

Tree = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
Naming = Literal["peft", "kohya"]


def as_upstream(x: Any) -> np.ndarray:
    """A factor as PyTorch lays it out: OIHW, or (out, in)."""
    x = np.asarray(x)
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T)


def factors(lora: Tree, name: Callable[[str, str], str]) -> Tensors:
    """All factors, named by `name(module, "down" or "up")`."""
    split = ((path.rpartition("/"), x) for path, x in flatten(lora).items())
    return {name(module, factor): as_upstream(x) for (module, _, factor), x in split}


def lora_tensors_peft(lora: Tree) -> Tensors:
    """The names and layouts of the published LoRA files (method 1). Alpha, 8, is not in them. PEFT
    reads them once `unet.` is taken from the names; diffusers wants the other naming."""
    return factors(lora, peft)


def lora_tensors_kohya(lora: Tree) -> Tensors:
    """kohya's naming, which diffusers and most user interfaces read; alpha beside each module."""
    tensors = factors(lora, kohya)
    modules = {path.rpartition("/")[0] for path in flatten(lora)}
    alpha = np.asarray(ALPHA, np.float32)
    return tensors | {kohya(module, "alpha"): alpha for module in sorted(modules)}


NAMINGS: dict[Naming, Callable[[Tree], Tensors]] = {
    "peft": lora_tensors_peft,
    "kohya": lora_tensors_kohya,
}


def write_lora(
    path: Path, lora: Tree, naming: Naming = "peft", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA tree as a `.safetensors` file, which appears whole or not at all.

    Args:
        lora: nested dicts of `down` and `up`, numpy or JAX arrays; they keep their number type.
        naming: `peft` as the published files, `kohya` for other programs. `read_lora` takes both.
        metadata: further texts for the header, which says the rank and alpha.
    """
    rank = next(x.shape[-1] for name, x in flatten(lora).items() if name.endswith("/down"))
    header = {"format": "pt", "rank": str(rank), "alpha": str(ALPHA)} | dict(metadata or {})
    with appearing_whole(path) as file:
        file.write(safetensors.numpy.save(NAMINGS[naming](lora), header))
