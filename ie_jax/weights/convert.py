"""Upstream tensors to a weight tree and back, strictly, by a table of names."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.weights.formats import write_tensors
from ie_jax.weights.names import Rule, local, same, spellings

Tree = Mapping[str, Any]
Tensors = dict[str, np.ndarray]
Number = Literal["float32", "float16", "bfloat16"]

SHOWN = 8


def find(table: Sequence[Rule], name: str) -> tuple[Rule, str | None]:
    """The one rule that matches an upstream name, and the path it gives.

    Raises:
        LookupError: no rule matches, or more than one does.
    """
    matches = [(rule, m) for rule in table if (m := rule.pattern.fullmatch(name))]
    if len(matches) != 1:
        raise LookupError(f"{len(matches)} rules match")
    rule, match = matches[0]
    path = None if rule.path is None else rule.path.format(*map(local, match.groups()))
    return rule, path


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A nested dict as {"a/b/c": leaf}."""
    return {"/".join(k.key for k in path): x for path, x in jax.tree.leaves_with_path(tree)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def convert(
    tensors: Mapping[str, np.ndarray],
    table: Sequence[Rule],
    shapes: Mapping[str, Any],
    where: str,
    dtype: Any = np.float32,
) -> dict[str, Any]:
    """Upstream tensors as the tree that `shapes` describes, of this number type; None: as they are.

    Strict both ways: every tensor is used, every leaf is filled, every shape fits, every value is
    finite.

    Raises:
        UserError: all mismatches at once; `where` names the file.
    """
    wanted = flatten(shapes)
    converted: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        try:
            rule, path = find(table, name)
        except LookupError:
            problems.append(f"{name} {tensor.shape} is not a tensor of this network")
            continue
        if path is None:
            continue
        if path not in wanted:
            problems.append(f"{name} {tensor.shape} has no place in this network")
        elif path in converted:
            problems.append(f"{name} fills {path} a second time")
        else:
            leaf = convert_leaf(tensor, rule, name, wanted[path].shape, problems, dtype)
            converted[path] = leaf
    problems += [
        f"{path} {leaf.shape} is missing" for path, leaf in wanted.items() if path not in converted
    ]
    if problems:
        more = len(problems) - SHOWN
        shown = "; ".join(problems[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
        raise UserError(f"{where}: does not fit its network ({len(problems)} problems): {shown}")
    return unflatten({path: converted[path] for path in wanted})


def convert_leaf(
    tensor: np.ndarray,
    rule: Rule,
    name: str,
    shape: tuple[int, ...],
    problems: list[str],
    dtype: Any,
) -> np.ndarray:
    """One tensor transformed and checked; what is wrong with it is added to `problems`."""
    try:
        leaf = rule.transform(tensor)
    except ValueError:
        leaf = tensor
    if leaf.shape != shape:
        problems.append(f"{name} has shape {tensor.shape}, which gives {leaf.shape}, not {shape}")
    if np.iscomplexobj(leaf):
        problems.append(f"{name} holds complex numbers")
        leaf = leaf.real
    leaf = np.ascontiguousarray(leaf, dtype=dtype)
    if not np.isfinite(leaf).all():
        problems.append(f"{name} holds NaN or infinite values")
    return leaf


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
        write_tensors(file, tensors, header)
