"""Guiders: energies that say how far an edit has moved from the source.

A guider is a function of what three network calls return (`ie_jax.models.unet.Out`): the source
pass (current latent, source prompt), the inversion pass (inversion latent, source prompt) and the
target pass (current latent, target prompt). It gives one energy per image, float32. The fourth
argument, `by_head`, says that attention maps are to be made one head at a time, as suits a CPU; a
guider without maps ignores it. To add a guider, write it and name it in GUIDERS.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
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

    The maps of `query_chunk` queries exist at a time (0: all at once). With `by_head`, large maps
    exist for one head at a time.
    """
    _, n, heads, _ = q1.shape
    return summed_squares(q1, k1, q2, k2, by_head, query_chunk) / (heads * n * n)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def summed_squares(
    q1: Heads, k1: Heads, q2: Heads, k2: Heads, by_head: bool, query_chunk: int
) -> Energy:
    """Sum of (A1 - A2)², see `map_difference`.

    Where its gradient is wanted it is found beside the value: maps cost more than they are worth
    keeping, and would have to be made a second time.
    """
    return squares_and_gradients((), (q1, k1, q2, k2), by_head, query_chunk)[0]


def squares_and_gradients(
    wanted: tuple[int, ...], qk: Sequence[Heads], by_head: bool, query_chunk: int
) -> tuple[Energy, list[Heads]]:
    """The sum, and its gradients with respect to q1 (0), k1 (1), q2 (2) and k2 (3), as wanted."""
    if not (by_head and is_large(qk[0], qk[1])):
        return squares_of(probabilities, 1, query_chunk, wanted, *qk)
    one_head = partial(squares_of, head_probabilities, 0, query_chunk, wanted)
    squares, gradients = over_heads(one_head, *qk)
    return jnp.sum(squares, axis=1), [jnp.moveaxis(x, 1, 2) for x in gradients]


def squares_of(
    maps: Callable[[Array, Array], Array],
    axis: int,
    query_chunk: int,
    wanted: tuple[int, ...],
    *qk: Array,
) -> tuple[Array, list[Array]]:
    """`squares_and_gradients` of arrays that have their tokens on `axis`, summed from there on."""

    def total(*qk: Array) -> tuple[Array, Array]:
        squares = (maps(*qk[:2]) - maps(*qk[2:])) ** 2
        summed = jnp.sum(squares, axis=tuple(range(axis, squares.ndim)))
        return jnp.sum(summed), summed

    def part(q1: Array, q2: Array) -> tuple[Array, tuple[Array, ...]]:
        given = (q1, qk[1], q2, qk[3])
        if not wanted:
            return total(*given)[1], ()
        (_, summed), gradients = jax.value_and_grad(total, wanted, has_aux=True)(*given)
        return summed, gradients

    squares, gradients = over_query_chunks(part, query_chunk, qk[0], qk[2], axis=axis)

    def whole(i: int, x: Array) -> Array:
        """Parts of queries side by side; keys belong to all parts."""
        like = qk[i]
        if i in (0, 2):
            return jnp.moveaxis(x, 0, axis).reshape(like.shape)
        return jnp.sum(x, axis=0, dtype=jnp.promote_types(x.dtype, jnp.float32)).astype(like.dtype)

    return jnp.sum(squares, axis=0), [whole(i, x) for i, x in zip(wanted, gradients, strict=True)]


def squares_forward(
    q1: Any, k1: Any, q2: Any, k2: Any, by_head: bool, query_chunk: int
) -> tuple[Energy, list[Heads | None]]:
    """The sum, and what `squares_backward` multiplies; None for what is constant."""
    arguments = (q1, k1, q2, k2)
    wanted = tuple(i for i, x in enumerate(arguments) if x.perturbed)
    values = [x.value for x in arguments]
    squares, gradients = squares_and_gradients(wanted, values, by_head, query_chunk)
    found = dict(zip(wanted, gradients, strict=True))
    return squares, [found.get(i) for i in range(len(values))]


def squares_backward(
    by_head: bool, query_chunk: int, gradients: list[Heads | None], cotangent: Any
) -> tuple[Heads | None, ...]:
    """The gradients, weighted."""
    if isinstance(cotangent, SymbolicZero):
        return (None,) * len(gradients)
    weight = cotangent[:, None, None, None]
    return tuple(None if x is None else (weight * x).astype(x.dtype) for x in gradients)


summed_squares.defvjp(squares_forward, squares_backward, symbolic_zeros=True)


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
