"""Every attention kernel computes the same thing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu

from ie_jax.models import attention as module
from ie_jax.models.attention import (
    attend,
    attention_by_head,
    chunk_count,
    explicit_attention,
    flash_attention,
    fused_attention,
    over_query_chunks,
    probabilities,
)


def heads(seed: int, n: int = 24, d: int = 8) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, n, 3, d))


@pytest.mark.parametrize("chunk", [0, 1, 7, 8, 100])
def test_explicit_equals_fused(chunk: int) -> None:
    q, k, v = heads(0), heads(1, 10), heads(2, 10)
    np.testing.assert_allclose(
        explicit_attention(q, k, v, chunk), fused_attention(q, k, v, "xla"), rtol=1e-4, atol=1e-5
    )


def test_maps_are_probabilities() -> None:
    maps = probabilities(heads(0), heads(1, 10))
    assert maps.shape == (2, 3, 24, 10)
    np.testing.assert_allclose(maps.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        attend(maps, heads(2, 10)),
        explicit_attention(heads(0), heads(1, 10), heads(2, 10), 0),
        rtol=1e-5,
        atol=1e-6,
    )


def test_causal_maps_look_back_only() -> None:
    maps = np.asarray(probabilities(heads(0, 6), heads(1, 6), causal=True))
    assert np.all(maps[..., ~np.tri(6, dtype=bool)] == 0)


def test_softmax_is_float32_under_bfloat16() -> None:
    q = heads(0).astype(jnp.bfloat16)
    assert probabilities(q, q).dtype == jnp.float32
    assert explicit_attention(q, q, q, 0).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("n", "chunk", "parts"), [(64, 0, 1), (64, 64, 1), (64, 32, 2), (60, 32, 2), (7, 3, 7)]
)
def test_chunks_divide_the_tokens(n: int, chunk: int, parts: int) -> None:
    assert chunk_count(n, chunk) == parts


def test_chunks_cover_all_queries_in_order() -> None:
    q = heads(0)
    y = over_query_chunks(lambda q: q, 8, q)
    np.testing.assert_array_equal(jnp.moveaxis(y, 0, 1).reshape(q.shape), q)


def test_chunked_gradient_equals_plain() -> None:
    q, k, v = heads(0), heads(1), heads(2)

    def loss(chunk: int, q: jax.Array) -> jax.Array:
        return jnp.sum(explicit_attention(q, k, v, chunk) ** 2)

    plain, chunked = (jax.grad(loss, argnums=1)(chunk, q) for chunk in (0, 8))
    np.testing.assert_allclose(chunked, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keys", [24, 10])
def test_heads_one_by_one_are_all_heads(keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, whether the maps count as large or not."""
    q, k, v = heads(0), heads(1, keys), heads(2, keys)

    def loss(by_head: bool, q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        y = attention_by_head(q, k, v, 8) if by_head else explicit_attention(q, k, v, 0)
        return jnp.sum(y**2), y

    def run(by_head: bool) -> Any:
        return jax.grad(loss, (1, 2, 3), has_aux=True)(by_head, q, k, v)

    expected = run(False)
    for large in (1, 10**9):
        monkeypatch.setattr(module, "LARGE_MAP", large)
        for one, other in zip(*map(jax.tree.leaves, (run(True), expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_kernel_for_tpus_computes_the_same() -> None:
    """Values and gradients, interpreted; heads wider than its registers are filled up."""
    q, k, v = heads(0, 128), heads(1, 128), heads(2, 128)
    wide = [heads(i, 128, 136) for i in range(3)]

    def loss(flash: bool, q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        y = flash_attention(q, k, v) if flash else explicit_attention(q, k, v, 0)
        return jnp.sum(y**2), y

    def run(flash: bool) -> Any:
        of_wide = loss(flash, wide[0], wide[1], wide[2])[1]
        return jax.grad(loss, (1, 2, 3), has_aux=True)(flash, q, k, v), of_wide

    with tpu.force_tpu_interpret_mode():
        found = run(True)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(run(False)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_texts_do_not_go_to_the_kernel_for_tpus() -> None:
    q, k, v = heads(0, 128), heads(1, 77), heads(2, 77)
    np.testing.assert_array_equal(flash_attention(q, k, v), fused_attention(q, k, v, "xla"))
