"""Convolutions of a CPU: the same numbers as XLA's, with gradients that are fast in loops too."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax

from ie_jax.models.convolution import Padding, convolution, fast, im2col, winograd
from ie_jax.models.execution import Convolution


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def value_and_gradients(form: Convolution, how: tuple[Any, Any], x: Any, kernel: Any) -> Any:
    """Of a random direction."""

    def run(x: Any, kernel: Any) -> Any:
        return convolution(x, kernel, *how, form=form)

    y, pull_back = jax.vjp(run, x, kernel)
    return y, *pull_back(random(*y.shape, seed=1))


def both_forms(how: tuple[Any, Any], x: Any, kernel: Any) -> Any:
    """Value and gradients as a CPU has them, and XLA's."""
    forms: tuple[Convolution, ...] = ("cpu", "xla")
    return (jax.jit(partial(value_and_gradients, form, how))(x, kernel) for form in forms)


@pytest.mark.parametrize(
    ("sides", "window", "stride", "padding"),
    [
        ((8, 6), 3, 1, ((1, 1), (1, 1))),
        ((8, 8), 3, 2, ((1, 1), (1, 1))),
        ((9, 8), 3, 2, ((1, 1), (1, 1))),
        ((7, 10), 3, 2, ((0, 1), (0, 1))),
        ((6, 5), 1, 1, ((0, 0), (0, 0))),
        ((8, 8), 2, 2, ((0, 0), (0, 0))),
    ],
)
def test_gradients_are_those_of_jax(
    sides: tuple[int, int], window: int, stride: int, padding: Padding
) -> None:
    x, kernel = random(2, *sides, 5), random(window, window, 5, 7)
    found, expected = both_forms(((stride, stride), padding), x, kernel)
    np.testing.assert_array_equal(found[0], expected[0])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sides", [(6, 10), (16, 16), (18, 16), (20, 17)])
def test_products_are_the_convolution(sides: tuple[int, int]) -> None:
    """Of many channels: pixels side by side, tiles, or, with an odd side, XLA's."""
    how = ((1, 1), ((1, 1), (1, 1)))
    x, kernel = random(1, *sides, 96), random(3, 3, 96, 97)
    text = jax.jit(lambda x, kernel: fast(x, kernel, *how)).lower(x, kernel).as_text()
    assert ("stablehlo.convolution" in text) == (sides == (20, 17))
    found, expected = both_forms(how, x, kernel)
    for one, other in zip(found, expected, strict=True):  # sums of 873 products
        assert np.linalg.norm(one - other) <= 2e-6 * np.linalg.norm(other)


@pytest.mark.parametrize("form", [im2col, winograd])
def test_each_form_alone(form: Any) -> None:
    x, kernel = random(2, 6, 8, 3), random(3, 3, 3, 5)
    expected = convolution(x, kernel, (1, 1), ((1, 1), (1, 1)))
    np.testing.assert_allclose(form(x, kernel), expected, rtol=1e-4, atol=1e-5)


def test_no_convolution_of_a_loop_is_in_a_form_that_is_slow_there() -> None:
    """A compiled loop's gradient holds NHWC by HWIO alone, for which XLA has a fast kernel."""
    how = ((1, 1), ((1, 1), (1, 1)))

    def loss(kernel: Any, x: Any) -> Any:
        def step(x: Any, _: None) -> tuple[Any, None]:
            return convolution(x, kernel, *how, form="cpu"), None

        return lax.scan(step, x, length=3)[0].sum()

    x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
    program = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text() or ""
    found = {part.split(",")[0] for part in program.split("dim_labels=")[1:]}
    assert " while(" in program and found == {"b01f_01io->b01f"}
