"""Strict conversion of upstream tensors to a weight tree, by a table of names."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ie_jax.errors import UserError
from ie_jax.weights.names import Rule, local

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
) -> dict[str, Any]:
    """Upstream tensors as the tree that `shapes` describes, float32.

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
            leaf = convert_leaf(tensor, rule, name, wanted[path].shape, problems)
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
    tensor: np.ndarray, rule: Rule, name: str, shape: tuple[int, ...], problems: list[str]
) -> np.ndarray:
    """One tensor transformed and checked; what is wrong with it is added to `problems`."""
    try:
        leaf = rule.transform(tensor)
    except ValueError:
        leaf = tensor
    if leaf.shape != shape:
        problems.append(f"{name} has shape {tensor.shape}, which gives {leaf.shape}, not {shape}")
    leaf = np.ascontiguousarray(leaf, dtype=np.float32)
    if not np.isfinite(leaf).all():
        problems.append(f"{name} holds NaN or infinite values")
    return leaf
