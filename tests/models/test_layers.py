"""Layers: weights come from outside."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import pytest

from ie_jax.models import layers
from ie_jax.models.execution import Precision
from ie_jax.models.layers import Dense, group_norm

X = jnp.ones((1, 2, 2, 4))


def test_weights_that_are_given_trace_no_initialiser(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialiser(*_: Any) -> Any:
        raise AssertionError("traced")

    monkeypatch.setattr(layers, "UNSET", initialiser)
    weights = {"kernel": jnp.full((4, 3), 2.0), "bias": jnp.ones(3)}
    y = jax.jit(Dense(3).apply)({"params": weights}, X)
    assert y.shape == (1, 2, 2, 3) and (y == 9).all()


@pytest.mark.parametrize("layer", [Dense(3), group_norm("norm", 2, 1e-5, Precision())])
def test_a_missing_weight_and_another_shape_are_errors(layer: Any) -> None:
    whole = layer.init(jax.random.key(0), X)
    name = next(iter(whole["params"]))
    others = {key: x for key, x in whole["params"].items() if key != name}
    with pytest.raises(flax.errors.ScopeParamNotFoundError):
        layer.apply({"params": others}, X)
    with pytest.raises(flax.errors.ScopeParamShapeError):
        layer.apply({"params": whole["params"] | {name: jnp.ones((7, 7))}}, X)
