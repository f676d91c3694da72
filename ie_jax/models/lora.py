"""LoRA as trees: which modules carry it, merging it into base weights.

A LoRA tree has the base tree's module paths, with leaves `down` (A: the module's own kernel shape
into `rank` features) and `up` (B: rank to features; 1 x 1 for a convolution).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Tree = Mapping[str, Any]

ALPHA = 8.0
TARGETS = re.compile(
    r"(to_q|to_k|to_v|to_out_0|proj_in|proj_out|net_0/proj|net_2|conv1|conv2|conv_shortcut"
    r"|downsamplers_0/conv|upsamplers_0/conv|time_emb_proj)$"
)
"""Ends of the module paths of the UNet that carry LoRA (method 1)."""


def lora_scale(rank: int) -> float:
    """alpha / rank, with alpha 8 whatever the rank."""
    return ALPHA / rank


def delta(down: Array, up: Array) -> Array:
    """scale · B A: the change of the kernel, float32, in the kernel's own shape."""
    down, up = down.astype(jnp.float32), up.astype(jnp.float32)
    up = up.reshape(up.shape[-2:])
    product = jnp.einsum("...r,ro->...o", down, up, precision=jax.lax.Precision.HIGHEST)
    return lora_scale(down.shape[-1]) * product


def merge(base: Tree, lora: Tree) -> dict[str, Any]:
    """Base weights with the low-rank change added in float32, in the base's dtype."""
    if "down" in lora:
        kernel = base["kernel"]
        changed = kernel.astype(jnp.float32) + delta(lora["down"], lora["up"])
        return {**base, "kernel": changed.astype(kernel.dtype)}
    return {name: merge(base[name], lora[name]) if name in lora else base[name] for name in base}


def widen(module: Tree, rank: int) -> dict[str, Array]:
    """A module's factors with zeros up to a larger rank; what they change stays as it is."""
    down, up = module["down"], module["up"]
    more = rank - down.shape[-1]
    scale = lora_scale(down.shape[-1]) / lora_scale(rank)
    return {
        "down": jnp.pad(down, [(0, 0)] * (down.ndim - 1) + [(0, more)]),
        "up": scale * jnp.pad(up, [(0, 0)] * (up.ndim - 2) + [(0, more), (0, 0)]),
    }


def of_one_rank(loras: Sequence[Tree]) -> list[Tree]:
    """LoRAs of the same modules, with the largest rank that any of them has in a module."""
    first = loras[0]
    if "down" in first:
        rank = max(x["down"].shape[-1] for x in loras)
        return [x if x["down"].shape[-1] == rank else widen(x, rank) for x in loras]
    children = {name: of_one_rank([x[name] for x in loras]) for name in first}
    return [{name: child[i] for name, child in children.items()} for i in range(len(loras))]


def round_to_fp16(lora: Tree) -> Any:
    """The factors as the published loader sees them: through float16, back in their dtype."""
    return jax.tree.map(lambda x: x.astype(jnp.float16).astype(x.dtype), lora)


def lora_shapes(base: Tree, rank: int, path: str = "") -> dict[str, Any]:
    """The LoRA tree that fits a UNet's base tree, leaves as float32 `jax.ShapeDtypeStruct`."""
    tree: dict[str, Any] = {}
    for name, child in base.items():
        if not isinstance(child, Mapping):
            continue
        here = f"{path}/{name}"
        if "kernel" in child and TARGETS.search(here):
            *own, features = child["kernel"].shape
            ones = [1] * (len(own) - 1)
            tree[name] = {
                "down": jax.ShapeDtypeStruct((*own, rank), jnp.float32),
                "up": jax.ShapeDtypeStruct((*ones, rank, features), jnp.float32),
            }
        elif inner := lora_shapes(child, rank, here):
            tree[name] = inner
    return tree
