"""Guiders: energies that say how far an edit has moved from the source.

A guider is a function of what three network calls return (`ie_jax.models.unet.Out`): the source
pass (current latent, source prompt), the inversion pass (inversion latent, source prompt) and the
target pass (current latent, target prompt). It gives one energy per image, float32. The fourth
argument, `by_head`, says that attention maps are to be made one head at a time, as suits a CPU; a
guider without maps ignores it. To add a guider, write it and name it in GUIDERS.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ie_jax.errors import UserError
from ie_jax.models.attention import (
    Heads,
    head_probabilities,
    is_large,
    over_heads,
    over_query_chunks,
    probabilities,
)
from ie_jax.models.unet import Out

Energy = Float[Array, " b"]

QUERY_CHUNK = 512


class Guider(NamedTuple):
    """An energy, and whether it reads the source pass, which costs a network call per step."""

    energy: Callable[..., Energy]
    reads_source: bool = False


def map_difference(
    q1: Heads,
    k1: Heads,
    q2: Heads,
    k2: Heads,
    by_head: bool = False,
    query_chunk: int = QUERY_CHUNK,
) -> Energy:
    """mean((A1 - A2)²) over heads, queries and keys of the maps that queries and keys make.

    The maps of `query_chunk` queries exist at a time, in the backward pass too (0: all at once).
    With `by_head`, large maps exist for one head at a time.
    """
    _, n, heads, _ = q1.shape

    def total(axis: int, maps: Callable[..., Array], *qk: Array) -> Array:
        """The squares' sum, over everything from the axis of the tokens on."""
        q1, k1, q2, k2 = qk

        def part(q1: Array, q2: Array) -> Array:
            squares = (maps(q1, k1) - maps(q2, k2)) ** 2
            return jnp.sum(squares, axis=tuple(range(axis, squares.ndim)))

        return jnp.sum(over_query_chunks(part, query_chunk, q1, q2, axis=axis), axis=0)

    if by_head and is_large(q1, k1):
        summed = jnp.sum(over_heads(partial(total, 0, head_probabilities), q1, k1, q2, k2), axis=1)
    else:
        summed = total(1, probabilities, q1, k1, q2, k2)
    return summed / (heads * n * n)


def self_attention_energy(
    source: Out,
    inversion: Out,
    target: Out,
    by_head: bool = False,
    query_chunk: int = QUERY_CHUNK,
) -> Energy:
    """Sum over all self-attention layers of mean((A_src - A_inv)²) (method 4)."""
    pairs = zip(source["queries_keys"], inversion["queries_keys"], strict=True)
    return sum(
        (map_difference(q1, k1, q2, k2, by_head, query_chunk) for (q1, k1), (q2, k2) in pairs),
        jnp.zeros(()),
    )


def feature_energy(
    source: Out, inversion: Out, target: Out, by_head: bool = False, block: str = "up"
) -> Energy:
    """mean((F_trg - F_inv)²) of the features of one block: up, down or mid (method 4).

    Raises:
        UserError: the network is too small to have that block.
    """
    if block not in target["features"]:
        raise UserError(f"this network has no features named {block!r}: use the mid block")
    trg, inv = (x["features"][block].astype(jnp.float32) for x in (target, inversion))
    return jnp.mean((trg - inv) ** 2, axis=(1, 2, 3))


GUIDERS = {
    "self_attn_map_l2": Guider(self_attention_energy, reads_source=True),
    "features_map_l2": Guider(feature_energy),
}


def make_guider(name: str, **options: str | int) -> Guider:
    """The guider of that name in GUIDERS, with its options set."""
    guider = GUIDERS[name]
    return guider._replace(energy=partial(guider.energy, **options))
