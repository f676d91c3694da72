"""Scaled dot-product attention, fused or explicit, and its probability maps."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.models.execution import Execution, exact

Heads = Float[Array, "b q heads i"]
"""Queries, and what attention puts out for them."""
Keys = Float[Array, "b k heads i"]
"""Keys or values."""
T = TypeVar("T")
CUDNN_MAX_HEAD_DIM = 128
TPU_BLOCK, TPU_LANES, TPU_LARGEST = 128, 128, 512
"""Tokens of the TPU kernel's smallest block, width of its registers, and tokens of its largest."""


Place = Literal["down", "mid", "up"]
"""The halves of a UNet, and what lies between."""


class Site(NamedTuple):
    """An attention layer of the UNet."""

    number: int
    """In order of execution; even ones are self-attention, odd ones cross-attention."""
    place: Place

    @property
    def is_cross(self) -> bool:
        """Whether it attends to the text."""
        return self.number % 2 == 1


Control = Callable[..., tuple[Heads, Any]]
"""(site, q, k, v, plain) -> (what the layer puts out, what to return of it beside eps or None).
`plain(q, k, v)` is attention as `execution` has it. A control is static in structure; what it does
may depend on arrays."""
LARGE_MAP = 512 * 512
"""Queries times keys from which on a CPU takes the maps of all heads from memory, not its cache."""
CPU_QUERIES = 512
"""So many queries at a time are the fastest on a CPU."""


def probabilities(q: Heads, k: Keys, causal: bool = False) -> Float[Array, "b heads q k"]:
    """softmax(q k^T / sqrt(d)) in float32: the attention maps."""
    logits = jnp.einsum(
        "bnhd,bmhd->bhnm", q, k, precision=exact(q.dtype), preferred_element_type=jnp.float32
    )
    logits /= math.sqrt(q.shape[-1])
    if causal:
        n, m = logits.shape[-2:]
        logits = jnp.where(jnp.tri(n, m, dtype=bool), logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)


def attend(maps: Float[Array, "b heads q k"], v: Keys) -> Heads:
    """Values averaged by the maps."""
    return jnp.einsum("bhnm,bmhd->bnhd", maps.astype(v.dtype), v, precision=exact(v.dtype))


def chunk_count(n: int, chunk: int) -> int:
    """The least number of equal parts of `n` that are no longer than `chunk` (0: one part)."""
    if chunk <= 0 or n <= chunk:
        return 1
    return next(c for c in range(-(-n // chunk), n + 1) if n % c == 0)


def over_query_chunks(f: Callable[..., T], chunk: int, *queries: Array, axis: int = 1) -> T:
    """f over parts of the token axis, one part at a time, stacked on a new first axis.

    Each part is rematerialised in the backward pass, so no more than one part's intermediates
    live at any time.
    """
    before, n, after = queries[0].shape[:axis], queries[0].shape[axis], queries[0].shape[axis + 1 :]
    parts = chunk_count(n, chunk)
    if parts == 1:
        return jax.tree.map(lambda y: y[None], f(*queries))
    split = [q.reshape(*before, parts, n // parts, *after) for q in queries]
    stacked = [jnp.moveaxis(q, axis, 0) for q in split]
    return lax.map(jax.checkpoint(lambda part: f(*part)), stacked)


def over_heads(f: Callable[..., T], *heads: Float[Array, "b _ heads i"]) -> T:
    """f over the heads of all its arguments, one head of one image, (tokens, d), at a time; its
    results with b and h as their first axes.

    Plain matrix products: on a CPU twice as fast as batched ones of batch 1.
    """
    b, _, h, _ = heads[0].shape
    rows = [jnp.moveaxis(x, 2, 1).reshape(b * h, x.shape[1], x.shape[3]) for x in heads]
    results: T = lax.map(lambda row: f(*row), rows)
    return jax.tree.map(lambda y: y.reshape(b, h, *y.shape[1:]), results)


def head_probabilities(q: Float[Array, "q i"], k: Float[Array, "k i"]) -> Float[Array, "q k"]:
    """The `probabilities` of one head."""
    logits = jnp.matmul(q, k.T, precision=exact(q.dtype), preferred_element_type=jnp.float32)
    return jax.nn.softmax(logits / math.sqrt(q.shape[-1]), axis=-1)


def is_large(q: Heads, k: Keys) -> bool:
    """Whether a CPU should go through the maps head by head."""
    return q.shape[1] * k.shape[1] >= LARGE_MAP


def explicit_attention(
    q: Heads,
    k: Keys,
    v: Keys,
    query_chunk: int,
) -> Heads:
    """Attention as two matrix products around a softmax, `query_chunk` queries at a time."""

    def part(q: Heads) -> Heads:
        return attend(probabilities(q, k), v)

    y = over_query_chunks(part, query_chunk, q)
    return jnp.moveaxis(y, 0, 1).reshape(q.shape)


def attention_by_head(
    q: Heads,
    k: Keys,
    v: Keys,
    query_chunk: int,
) -> Heads:
    """`explicit_attention`, one head after the other where the maps are large."""
    if not is_large(q, k):
        return explicit_attention(q, k, v, query_chunk)
    chunk = min(query_chunk or CPU_QUERIES, CPU_QUERIES)

    def head(q: Array, k: Array, v: Array) -> Array:
        def part(q: Array) -> Array:
            maps = head_probabilities(q, k).astype(v.dtype)
            return jnp.matmul(maps, v, precision=exact(v.dtype))

        return over_query_chunks(part, chunk, q, axis=0).reshape(q.shape)

    return jnp.moveaxis(over_heads(head, q, k, v), 1, 2)


def fused_attention(
    q: Heads,
    k: Keys,
    v: Keys,
    implementation: Literal["cudnn", "xla"],
) -> Heads:
    """`jax.nn.dot_product_attention`, on cuDNN's flash kernel only where it takes the heads.

    It has no gradient for an odd number of tokens, which texts of 77 have.
    """
    d, odd = q.shape[-1], q.shape[1] % 2 or k.shape[1] % 2
    if q.dtype == jnp.float32 or d % 8 or d > CUDNN_MAX_HEAD_DIM or odd:
        implementation = "xla"
    return jax.nn.dot_product_attention(q, k, v, implementation=implementation)


def flash_attention(q: Heads, k: Keys, v: Keys) -> Heads:
    """Attention by JAX's Pallas kernel for TPUs, which never holds the maps.

    Numbers of tokens that its blocks do not divide, as those of texts, go to XLA. It has a first
    derivative only.
    """
    (_, n, _, d), m = q.shape, k.shape[1]
    if n % TPU_BLOCK or m % TPU_BLOCK:
        return fused_attention(q, k, v, "xla")
    # Imported here: it is for TPUs alone, and takes its time.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel

    # Heads over 128 wide must be a multiple of it: zeros change neither products nor the result.
    wide = d if d <= TPU_LANES else -(-d // TPU_LANES) * TPU_LANES
    rows = [
        jnp.pad(jnp.moveaxis(x, 2, 1), ((0, 0), (0, 0), (0, 0), (0, wide - d))) for x in (q, k, v)
    ]
    fields = [x.name for x in dataclasses.fields(kernel.BlockSizes)]
    of_queries = math.gcd(n, TPU_LARGEST)
    sizes = {x: of_queries if x.startswith("block_q") else math.gcd(m, TPU_LARGEST) for x in fields}
    blocks = kernel.BlockSizes(**sizes | {"block_b": 1})
    y = kernel.flash_attention(*rows, sm_scale=1 / math.sqrt(d), block_sizes=blocks)
    return jnp.moveaxis(y[..., :d], 1, 2)


def attention(
    q: Heads,
    k: Keys,
    v: Keys,
    execution: Execution,
) -> Heads:
    """Attention by the kernel that `execution` (resolved) names."""
    match execution.attention:
        case "cudnn" | "xla":
            return fused_attention(q, k, v, execution.attention)
        case "flash":
            return flash_attention(q, k, v)
        case "by_head":
            return attention_by_head(q, k, v, execution.query_chunk)
        case _:
            return explicit_attention(q, k, v, execution.query_chunk)
