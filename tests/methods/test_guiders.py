"""Energies and their gradients, chunked and plain."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.methods.guiders import (
    feature_energy,
    make_guider,
    map_difference,
    self_attention_energy,
)
from ie_jax.models import attention


def heads(seed: int, n: int = 12) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, n, 3, 4))


def plain_difference(q1: Any, k1: Any, q2: Any, k2: Any) -> np.ndarray:
    """mean((A1 - A2)²), written out in float64."""

    def maps(q: Any, k: Any) -> np.ndarray:
        logits = np.einsum("bnhd,bmhd->bhnm", np.float64(q), np.float64(k)) / np.sqrt(q.shape[-1])
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True)

    return np.mean((maps(q1, k1) - maps(q2, k2)) ** 2, axis=(1, 2, 3))


@pytest.mark.parametrize("by_head", [False, True])
@pytest.mark.parametrize("chunk", [0, 1, 4, 5, 12])
def test_map_difference(chunk: int, by_head: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "LARGE_MAP", 1)
    q1, k1, q2, k2 = (heads(i) for i in range(4))
    found = map_difference(q1, k1, q2, k2, by_head, chunk)
    np.testing.assert_allclose(found, plain_difference(q1, k1, q2, k2), rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 4, 6])
def test_chunked_gradients_equal_plain_ones(chunk: int) -> None:
    q2, k2 = heads(2), heads(3)

    def energy(chunk: int, q: jax.Array, k: jax.Array) -> jax.Array:
        return jnp.sum(map_difference(q, k, q2, k2, query_chunk=chunk))

    plain = jax.grad(energy, argnums=(1, 2))(0, heads(0), heads(1))
    chunked = jax.grad(energy, argnums=(1, 2))(chunk, heads(0), heads(1))
    for one, other in zip(plain, chunked, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-8)


def test_self_attention_sums_over_layers_and_reads_source_and_inversion() -> None:
    source = {"queries_keys": [(heads(0), heads(1)), (heads(4, 6), heads(5, 6))]}
    inversion = {"queries_keys": [(heads(2), heads(3)), (heads(6, 6), heads(7, 6))]}
    expected = sum(
        plain_difference(*one, *other)
        for one, other in zip(source["queries_keys"], inversion["queries_keys"], strict=True)
    )
    np.testing.assert_allclose(self_attention_energy(source, inversion, {}), expected, rtol=1e-4)
    assert make_guider("self_attn_map_l2").reads_source


@pytest.mark.parametrize("block", ["up", "down", "mid"])
def test_features_compare_target_and_inversion(block: str) -> None:
    x, y = (jax.random.normal(jax.random.key(i), (2, 4, 4, 3)) for i in (0, 1))
    target = {"features": {"up": 0 * x, "down": 0 * x, "mid": 0 * x, block: x}}
    inversion = {"features": {"up": 0 * y, "down": 0 * y, "mid": 0 * y, block: y}}
    guider = make_guider("features_map_l2", block=block)
    energy = guider.energy({}, inversion, target)
    np.testing.assert_allclose(energy, np.mean((x - y) ** 2, axis=(1, 2, 3)), rtol=1e-5)
    assert not guider.reads_source


def test_a_network_without_the_block_is_an_error() -> None:
    with pytest.raises(UserError, match="no features named 'down'"):
        feature_energy({}, {}, {"features": {"up": jnp.zeros((1, 2, 2, 1))}}, block="down")
