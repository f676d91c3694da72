"""Weight trees as files that other programs read."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.numpy

from ie_jax.files import appearing_whole
from ie_jax.models.lora import ALPHA
from ie_jax.weights.convert import find, flatten
from ie_jax.weights.names import Rule, kohya, peft, same, spellings

Tree = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
Naming = Literal["peft", "kohya"]
Number = Literal["float32", "float16", "bfloat16"]


def as_upstream(x: Any) -> np.ndarray:
    """A kernel or factor as PyTorch lays it out: OIHW, or (out, in)."""
    x = np.asarray(x)
    return np.ascontiguousarray(x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T)


def upstream(tree: Tree, table: Sequence[Rule]) -> Tensors:
    """The tensors that `convert` makes this tree of, in the names and layouts that diffusers and
    transformers write today; they keep their number type.

    Args:
        tree: nested dicts of numpy or JAX arrays.
        table: `UNET`, `VAE` or `TEXT_ENCODER`.

    Raises:
        LookupError: a leaf is not of the table's network.
    """
    tensors: Tensors = {}
    for path, x in flatten(tree).items():
        name, rule = upstream_rule(path, table)
        tensors[name] = np.asarray(x) if rule.transform is same else as_upstream(x)
    return tensors


def upstream_rule(path: str, table: Sequence[Rule]) -> tuple[str, Rule]:
    """The upstream name of a leaf, and its rule: the one spelling that the table reads as `path`.

    Raises:
        LookupError: there is none.
    """
    for name in spellings(path):
        with suppress(LookupError):
            rule, found = find(table, name)
            if found == path:
                return name, rule
    raise LookupError(f"{path} has no upstream name")


def write_network(
    path: Path,
    tree: Tree,
    table: Sequence[Rule],
    dtype: Number = "float32",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a network's weights as a `.safetensors` file, which appears whole or not at all.

    Args:
        tree, table: as `upstream` takes them.
        dtype: the number type in the file.
        metadata: further texts for the header.
    """
    tensors = {name: x.astype(dtype) for name, x in upstream(tree, table).items()}
    header = {"format": "pt"} | dict(metadata or {})
    with appearing_whole(path) as file:
        file.write(safetensors.numpy.save(tensors, header))


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
