"""Rescaling and its edges (method 4)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ie_jax.methods.guidance import guide, norm, rescale_factor


def latents(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 4, 4, 3))


def factor(gradient: float, difference: float, lower: float, upper: float) -> tuple[float, float]:
    ratio, scale = rescale_factor(*(jnp.float32([x]) for x in (gradient, difference, lower, upper)))
    return float(ratio[0]), float(scale[0])


@pytest.mark.parametrize(
    ("gradient", "difference", "bounds", "ratio", "scale"),
    [
        (2.0, 4.0, (0, 1), 0.5, 1.0),  # within the bounds
        (8.0, 4.0, (0, 1), 2.0, 0.5),  # clipped from above
        (1.0, 4.0, (0.5, 1), 0.25, 2.0),  # a lower bound amplifies
        (3.0, 0.0, (0, 1), 1.0, 1.0),  # denominator 0: the ratio is 1
        (3.0, 0.0, (0, 0.5), 1.0, 0.5),
        (0.0, 4.0, (0.33, 3), 0.0, 1.0),  # no gradient: factor 1
        (0.0, 0.0, (0.33, 3), 1.0, 1.0),
        (8.0, 4.0, (0, np.inf), 2.0, 1.0),  # not rescaled
    ],
)
def test_edges(
    gradient: float, difference: float, bounds: tuple[float, float], ratio: float, scale: float
) -> None:
    assert factor(gradient, difference, *bounds) == (ratio, scale)


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(0.01, 1), st.floats(1, 100))
def test_scaled_gradient_is_within_the_bounds(
    gradient: float, difference: float, lower: float, upper: float
) -> None:
    _, scale = factor(gradient, difference, lower, upper)
    assert lower * 0.999 <= scale * gradient / difference <= upper * 1.001


def test_eps_is_target_plus_scaled_gradient() -> None:
    """Energies |z - a|² / 2 and 3 |z - b|² / 2, whose gradients are known."""
    z, a, b, eps_trg, eps_inv = (latents(i) for i in range(5))
    scales = jnp.float32([[2.0, 2.0], [0.5, 0.0]])

    def passes(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.stack([norm(z - a) ** 2 / 2, 3 * norm(z - b) ** 2 / 2]), eps_trg

    eps, record = guide(passes, z, eps_inv, scales, jnp.zeros(2), jnp.float32([1.0, 0.25]))
    gradient = np.stack([2 * (z - a)[0] + 1.5 * (z - b)[0], 2 * (z - a)[1]])
    g, d = norm(jnp.asarray(gradient)), norm(eps_trg - eps_inv)
    clipped = np.clip(g / d, 0, [1.0, 0.25])
    expected = eps_trg + gradient * (clipped / (g / d))[:, None, None, None]
    np.testing.assert_allclose(eps, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(record.gradient_norm, g, rtol=1e-5)
    assert record.active.tolist() == [True, True]


def test_negligible_guiders_are_skipped() -> None:
    """The first energy has a gradient but a negligible value, for the second image only."""
    z, eps_trg = latents(0), latents(1)
    value = jnp.float32([1.0, 1e-9])

    def passes(z: jax.Array) -> tuple[jax.Array, jax.Array]:
        shift = jnp.sum(z, axis=(1, 2, 3))
        return (value + shift - jax.lax.stop_gradient(shift))[None], eps_trg

    eps, record = guide(passes, z, latents(2), jnp.ones((1, 2)), jnp.zeros(2), jnp.full(2, jnp.inf))
    assert record.active.tolist() == [True, False]
    np.testing.assert_allclose(eps[0], eps_trg[0] + 1, rtol=1e-5)
    np.testing.assert_array_equal(eps[1], eps_trg[1])


def test_images_do_not_touch_each_other() -> None:
    z, a, eps_trg, eps_inv = (latents(i) for i in range(4))

    def one(i: slice) -> jax.Array:
        def passes(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            return norm(z - a[i])[None] ** 2, eps_trg[i]

        n = len(z[i])
        return guide(passes, z[i], eps_inv[i], jnp.ones((1, n)), jnp.zeros(n), jnp.ones(n))[0]

    both = one(slice(0, 2))
    np.testing.assert_allclose(both[:1], one(slice(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(both[1:], one(slice(1, 2)), rtol=1e-5)
