"""The convolution's gradients, by JAX and as they are written for a CPU, alone and in a loop."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from jax import lax

from ie_jax.models.convolution import Padding, convolution, cpu_gradients, direct, jax_gradients


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
    rng = np.random.default_rng(0)
    x: Any = rng.standard_normal((2, *sides, 5), np.float32)
    kernel: Any = rng.standard_normal((window, window, 5, 7), np.float32)
    how = ((stride, stride), padding)
    y = direct(x, kernel, *how)
    np.testing.assert_array_equal(convolution(x, kernel, *how), y)
    slope = rng.standard_normal(y.shape, np.float32)
    expected = jax.jit(partial(jax_gradients, *how))(x, kernel, slope)
    found = jax.jit(partial(cpu_gradients, *how))(x, kernel, slope)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_no_convolution_of_a_loop_is_in_a_form_that_is_slow_there() -> None:
    """A compiled loop's gradient holds NHWC by HWIO alone, for which XLA has a fast kernel."""
    how = ((1, 1), ((1, 1), (1, 1)))

    def loss(kernel: Any, x: Any) -> Any:
        return lax.scan(lambda x, _: (convolution(x, kernel, *how), None), x, length=3)[0].sum()

    x, kernel = np.ones((2, 8, 8, 4), np.float32), np.ones((3, 3, 4, 4), np.float32)
    program = jax.jit(jax.grad(loss)).lower(kernel, x).compile().as_text() or ""
    found = {part.split(",")[0] for part in program.split("dim_labels=")[1:]}
    assert " while(" in program and found == {"b01f_01io->b01f"}
