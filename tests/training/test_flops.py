"""Counting operations, against numbers worked out by hand."""

from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax

from ie_jax.training.flops import flops, peak

X = jnp.ones((2, 3))
W = jnp.ones((3, 3))


def count(function: Any, *args: Any) -> int:
    return flops(jax.make_jaxpr(function)(*args).jaxpr)


def test_products() -> None:
    assert count(lambda x, w: x @ w, X, W) == 2 * 2 * 3 * 3
    assert count(lambda x: x + x, X) == 0
    batched = jnp.ones((5, 2, 3))
    assert count(lambda x: jnp.einsum("bij,bkj->bik", x, x), batched) == 5 * 2 * 2 * 2 * 3


def test_convolutions() -> None:
    image, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    numbers = ("NHWC", "HWIO", "NHWC")

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    once = 2 * (2 * 8 * 8 * 4) * 27
    assert count(conv, image, kernel) == once
    # As traced: the sum's own value is nobody's, but only a compiler leaves it out.
    assert count(jax.grad(lambda x, w: conv(x, w).sum()), image, kernel) == 2 * once


def test_inner_programs() -> None:
    once = 2 * 2 * 3 * 3

    def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]

    assert count(scanned, X, W) == 7 * once
    assert count(jax.jit(scanned), X, W) == 7 * once
    assert count(jax.checkpoint(lambda x, w: x @ w), X, W) == once

    def either(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert count(either, X, W) == 2 * once


def test_the_peak_of_known_devices() -> None:
    def device(kind: str) -> jax.Device:
        return cast(jax.Device, SimpleNamespace(device_kind=kind))

    assert peak(device("NVIDIA H100 80GB HBM3")) == 989e12
    assert peak(device("TPU v5 lite")) == 197e12
    assert peak(device("TPU v5p")) == 459e12
    assert peak(device("cpu")) is None
