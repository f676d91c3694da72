"""The optimiser of a config, beside optax's own on trees."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from optax.contrib import MuonDimensionNumbers, muon

from ie_jax.training.config import OptimiserConfig
from ie_jax.training.optimiser import matrices, optimiser_of

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(3, 3, 4, 6)), "bias": RNG.normal(size=6)},
    "dense": {"kernel": RNG.normal(size=(6, 2))},
}
PARAMS = jax.tree.map(jnp.float32, PARAMS)
KERNEL = MuonDimensionNumbers(range(3), 3)


def walk(optimiser: optax.GradientTransformation, start: Any, steps: int = 3) -> Any:
    """Parameters after gradients that grow with them."""
    params, state = start, optimiser.init(start)
    for _ in range(steps):
        grads = jax.tree.map(lambda x: 0.1 * x, params)
        updates, state = optimiser.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def assert_close(found: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


def test_adamw_of_a_vector_is_that_of_the_tree() -> None:
    config = OptimiserConfig(learning_rate=0.1, weight_decay=0.01, clip=0.5, warmup_steps=2)
    rate = optax.linear_schedule(0.0, 0.1, 2)
    plain = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(rate, 0.9, 0.999, 1e-8, weight_decay=0.01)
    )
    vector, tree = ravel_pytree(PARAMS)
    found = tree(walk(optimiser_of(config, PARAMS), vector))
    assert_close(found, walk(plain, PARAMS))


def test_muon_of_a_vector_is_that_of_the_tree() -> None:
    config = OptimiserConfig(name="muon", learning_rate=0.1, clip=1e9)
    seen = {"conv": {"kernel": KERNEL, "bias": None}, "dense": {"kernel": KERNEL}}
    seen["dense"]["kernel"] = MuonDimensionNumbers(range(1), 1)
    assert matrices(PARAMS) == seen
    plain = muon(
        0.1, adam_b1=0.9, adam_b2=0.999, muon_weight_dimension_numbers=matrices, consistent_rms=0.2
    )
    vector, tree = ravel_pytree(PARAMS)
    found = tree(walk(optimiser_of(config, PARAMS), vector))
    assert_close(found, walk(plain, PARAMS))


def test_muon_moves_a_kernel_alike_in_all_directions() -> None:
    """A gradient of one large and some small singular values; AdamW would follow the large one."""
    left, _ = np.linalg.qr(RNG.normal(size=(36, 6)))
    right, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
    grads = (left * [100, 1, 1, 1, 1, 1]) @ right
    params = {"kernel": jnp.zeros((3, 3, 4, 6))}
    optimiser = optimiser_of(OptimiserConfig(name="muon", learning_rate=1.0, clip=1e9), params)
    vector, tree = ravel_pytree(params)
    updates, _ = optimiser.update(jnp.float32(grads.ravel()), optimiser.init(vector), vector)
    lengths = np.linalg.svd(tree(updates)["kernel"].reshape(36, 6), compute_uv=False)
    assert lengths.max() / lengths.min() < 2
    assert np.sqrt(np.mean(np.square(updates))) == pytest.approx(0.2, rel=0.5)
