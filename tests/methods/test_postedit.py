"""PostEdit beside its steps written out one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.methods.postedit import (
    ERROR,
    MEASURED,
    Measurement,
    langevin,
    measure,
    postedit,
    rates,
    timesteps,
)
from tests.methods.test_turbo import normal, seeing

ABAR = jnp.asarray(cumulative_alphas())
SHAPE = (2, 16, 16, 4)


def one_by_one(
    x0: jax.Array, y: Measurement, sigma: Any, rate: Any, steps: int, noise: jax.Array
) -> np.ndarray:
    """Langevin steps as gradient descent on the published energy."""

    def energy(x: jax.Array) -> jax.Array:
        far = ((y.seen * x - y.latent) ** 2).sum() / (2 * ERROR**2)
        return far + ((x - x0) ** 2 / (2 * sigma**2)).sum()

    def step(x: jax.Array, shaken: jax.Array) -> tuple[jax.Array, None]:
        return x - rate * jax.grad(energy)(x) + jnp.sqrt(2 * rate) * shaken, None

    return np.asarray(jax.lax.scan(step, x0, noise, length=steps)[0])


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_langevin_steps_lead_where_their_law_says(steps: int) -> None:
    x0, sigma, rate = normal(0, *SHAPE), jnp.full((2, 1, 1, 1), 0.7), 1e-5
    y = measure(normal(1, *SHAPE), jax.random.split(jax.random.key(2), 2))
    still = langevin(x0, y, sigma, jnp.float32(rate), steps, jnp.zeros(SHAPE))
    alone = one_by_one(x0, y, sigma, rate, steps, jnp.zeros((steps, *SHAPE)))
    np.testing.assert_allclose(still, alone, rtol=1e-4, atol=2e-5)
    # The same spread about that, which is estimated from 2048 cells: its error is 1.6 %.
    shaken = one_by_one(x0, y, sigma, rate, steps, normal(3, steps, *SHAPE)) - alone
    ours = langevin(x0, y, sigma, jnp.float32(rate), steps, normal(4, *SHAPE)) - still
    assert np.std(ours) == pytest.approx(np.std(shaken), rel=0.08)


def test_a_measurement_hides_few_cells_and_adds_little_noise() -> None:
    z = normal(0, 64, 64, 64, 4)
    seen, latent = measure(z, jax.random.split(jax.random.key(1), 64))
    hidden = 1 - np.asarray(seen).mean(axis=(1, 2, 3))
    assert hidden.min() >= 0 and hidden.max() <= 0.01 and np.unique(hidden).size > 10
    assert np.std(latent - seen * z) == pytest.approx(MEASURED, rel=0.01)


def test_steps_are_as_published() -> None:
    assert timesteps(5).tolist() == [501, 401, 301, 201, 101]
    np.testing.assert_allclose(rates(5)[jnp.array([0, 4])], [1e-5, 1e-5 * (1 - 0.8 * 0.99)])


def test_an_edit_is_its_steps() -> None:
    z, noise = normal(0, *SHAPE), normal(1, 3, 2, *SHAPE)
    y = measure(z, jax.random.split(jax.random.key(2), 2))
    empty, target, w = jnp.zeros((2, 3, 5)), normal(3, 2, 3, 5), jnp.array([1.0, 4.0])
    found = postedit(seeing, z, noise, y, empty, target, ABAR, w, timesteps(3), 50, 0.25)
    start = z
    for k, t in enumerate((501, 335, 168)):
        alpha, sigma = jnp.sqrt(ABAR[t]), jnp.sqrt(1 - ABAR[t])
        noised = alpha * start + sigma * noise[k, 0]
        eps_u, eps_c = (
            seeing(noised, jnp.full(2, t), None, jnp.broadcast_to(text, (2, 3, 5)))[0]
            for text in (empty, target)
        )
        eps = eps_u + w[:, None, None, None] * (eps_c - eps_u)
        predicted = (noised - sigma * eps) / alpha
        np.testing.assert_allclose(found[k], predicted, rtol=1e-4, atol=1e-4)
        rate = jnp.float32(1e-5 * (1 + k / 3 * (0.01 - 1)))
        back = langevin(predicted, y, jnp.full((2, 1, 1, 1), sigma), rate, 50, noise[k, 1])
        start = 0.75 * back + 0.25 * z


def test_without_a_prediction_to_trust_the_source_comes_back() -> None:
    """After many Langevin steps a seen cell is the measurement, whatever was predicted."""
    z = normal(0, *SHAPE)
    y = Measurement(jnp.ones((2, 16, 16, 1)), z)
    far = langevin(100 + z, y, jnp.ones((2, 1, 1, 1)), jnp.float32(1e-5), 25_000, 0 * z)
    np.testing.assert_allclose(far, z + 100 * ERROR**2 / (1 + ERROR**2), atol=1e-4)
