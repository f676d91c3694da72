"""A step is the updates of its losses in turn, however the batch is split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ie_jax.devices import make_mesh, replicated
from ie_jax.training.stage import State, initial_state
from ie_jax.training.step import make_step
from tests.training import toy

KEY = jax.random.key(7)


def one_device() -> Any:
    return make_mesh(devices=jax.devices()[:1])


def run(accumulate: int = 1, batches: int = 1, ema: float | None = None) -> tuple[State, Any]:
    stage = toy.stage(ema)
    step = jax.jit(make_step(stage, one_device(), accumulate))
    state, metrics = initial_state(stage, toy.WEIGHTS), {}
    for n in range(batches):
        state, metrics = step(state, toy.FROZEN, toy.batch(seed=n), jax.random.fold_in(KEY, n))
    return state, metrics


def test_a_step_is_its_updates_in_turn_with_one_optimiser_state() -> None:
    state, metrics = run()
    key = jax.random.fold_in(KEY, 0)
    example = toy.prepare(toy.FROZEN, toy.batch(), jax.random.split(key, 8))
    params = {"w": jnp.zeros((3, 2))}
    optimiser = toy.optimiser()
    moments = optimiser.init(params)
    for name, loss in (("fit", toy.fit), ("shrink", toy.shrink)):
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(params, toy.FROZEN, example)
        np.testing.assert_allclose(metrics[f"{name}/loss"], value, rtol=1e-5)
        norm = optax.tree.norm(gradient)
        np.testing.assert_allclose(metrics[f"{name}/gradient_norm"], norm, rtol=1e-5)
        changes, moments = optimiser.update(gradient, moments, params)
        params = optax.apply_updates(params, changes)
    np.testing.assert_allclose(state.params["w"], params["w"], rtol=1e-5)
    assert state.step == 1 and "fit/error" in metrics


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_change_nothing(accumulate: int) -> None:
    whole, expected = run()
    parts, metrics = run(accumulate)
    np.testing.assert_allclose(parts.params["w"], whole.params["w"], rtol=1e-5)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)


def test_an_update_that_is_not_finite_is_not_made_and_is_seen() -> None:
    stage = toy.stage(ema=0.5)
    step = jax.jit(make_step(stage, one_device()))
    good, _ = step(initial_state(stage, toy.WEIGHTS), toy.FROZEN, toy.batch(), KEY)
    broken = toy.batch()
    broken["x"][3, 1] = np.nan
    after, metrics = step(good, toy.FROZEN, broken, KEY)
    assert np.isnan(metrics["fit/loss"]) and np.isnan(metrics["shrink/gradient_norm"])
    kept = (after.params, after.opt_state), (good.params, good.opt_state)
    jax.tree.map(np.testing.assert_array_equal, *kept)
    assert after.ema and np.isfinite(after.ema["w"]).all()


def test_the_average_follows_the_parameters() -> None:
    (first, _), (second, _) = (run(batches=n, ema=0.9) for n in (1, 2))
    assert first.ema and second.ema
    np.testing.assert_allclose(first.ema["w"], 0.1 * first.params["w"], rtol=1e-6)
    expected = 0.9 * first.ema["w"] + 0.1 * second.params["w"]
    np.testing.assert_allclose(second.ema["w"], expected, rtol=1e-5)


def test_a_change_of_values_does_not_compile_again() -> None:
    stage = toy.stage()
    mesh = one_device()
    step: Any = jax.jit(make_step(stage, mesh))
    state = jax.device_put(initial_state(stage, toy.WEIGHTS), replicated(mesh))
    for n in range(3):
        frozen = {"scale": np.float32(n)}
        state, _ = step(state, frozen, toy.batch(seed=n), jax.random.key(n))
    assert step._cache_size() == 1
