"""A wrong shape or type is seen where a function is called."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from ie_jax.diffusion.consistency import add_noise
from ie_jax.methods.guidance import rescale_factor
from ie_jax.models.attention import probabilities
from ie_jax.training.losses import squared


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


ABAR, Z, T = array(10), array(2, 4, 4, 3), array(2, dtype=jnp.int32)


def test_right_shapes_pass() -> None:
    assert jax.eval_shape(add_noise, ABAR, Z, Z, T).shape == Z.shape


@pytest.mark.parametrize(
    ("function", "wrong", "name"),
    [
        (add_noise, (ABAR, Z, array(2, 2, 4, 3), T), "'noise'"),
        (add_noise, (ABAR, Z, Z, array(1, dtype=jnp.int32)), "'t'"),
        (add_noise, (ABAR, Z, Z, array(2)), "'t'"),
        (probabilities, (array(2, 4, 4, 3), array(2, 5, 4, 1)), "'k'"),
        (rescale_factor, (*[array(2)] * 3, array(3)), "'upper'"),
        (squared, (array(), array()), "return value"),
    ],
)
def test_a_wrong_one_is_seen(function: Any, wrong: Any, name: str) -> None:
    with pytest.raises(TypeCheckError, match=name):
        jax.eval_shape(function, *wrong)
