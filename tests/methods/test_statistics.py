"""The statistics match and the conversion to and from pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.methods.statistics import match_statistics, mean_std
from ie_jax.models.pixels import from_uint8, to_uint8


def pixels(seed: int, low: int = 60, high: int = 190) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(low, high, (2, 8, 8, 3), dtype=np.uint8))


def test_matched_images_have_the_wanted_statistics() -> None:
    wanted = jnp.float32([120.0, 90.0]), jnp.float32([20.0, 30.0])
    mean, std = mean_std(match_statistics(pixels(0), *wanted))
    np.testing.assert_allclose(mean, wanted[0], atol=1.0)  # truncation loses half a level
    np.testing.assert_allclose(std, wanted[1], atol=0.5)


def test_matching_its_own_statistics_changes_at_most_rounding() -> None:
    image = pixels(1)
    change = np.abs(match_statistics(image, *mean_std(image)).astype(int) - image.astype(int))
    assert change.max() <= 1


def test_flat_images_stay() -> None:
    flat = jnp.full((2, 4, 4, 3), 77, jnp.uint8)
    matched = match_statistics(flat, jnp.float32([10.0, 200.0]), jnp.float32([5.0, 5.0]))
    np.testing.assert_array_equal(matched, flat)


def test_pixels_and_back() -> None:
    every = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    x = from_uint8(every)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert np.abs(to_uint8(x).astype(int) - every.astype(int)).max() <= 1  # truncated, not rounded
    np.testing.assert_array_equal(
        to_uint8(jnp.float32([[[[-3.0, 0.0, 3.0]]]])), [[[[0, 127, 255]]]]
    )
