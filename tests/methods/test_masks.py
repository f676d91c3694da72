"""Masks: what they keep, and how they are found."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.methods.masks import (
    Mask,
    blurred,
    high,
    keep_outside,
    keep_pixels,
    per_edit,
    softened,
    threshold,
)

SIDE, CELLS = 32, 8


def square(side: int = SIDE, low: int = 8, end: int = 20) -> Any:
    mask = np.zeros((1, side, side), np.float32)
    mask[:, low:end, low:end] = 1
    return mask


def mask(drawn: Any, found: float = 0.0, feather: float = 0.0) -> Mask:
    return per_edit(Mask(drawn, jnp.float32(found), jnp.float32(feather)), len(drawn), 1)


def images(seed: int = 0) -> tuple[Any, Any]:
    """A source, and an edit of it that changes a square, and all else by rounding errors."""
    rng = np.random.default_rng(seed)
    source = rng.integers(60, 200, (1, SIDE, SIDE, 3))
    noise = rng.integers(-3, 4, source.shape)
    edit = np.where(square()[..., None] > 0, 255 - source, source + noise)
    return np.uint8(source), np.uint8(np.clip(edit, 0, 255))


def left() -> Any:
    """How far the edit's latents went: far where the square is."""
    away = np.ones((1, CELLS, CELLS), np.float32)
    away[:, 2:5, 2:5] = 9
    return away


def test_pixels_outside_are_the_sources() -> None:
    source, edit = images()
    result, area = keep_pixels(edit, source, mask(square()), jnp.zeros((1, CELLS, CELLS)))
    inside = square()[..., None] > 0
    np.testing.assert_array_equal(result, np.where(inside, edit, source))
    np.testing.assert_array_equal(area, square())


def test_feather_lies_outside_and_ends() -> None:
    source, edit = images()
    result, _ = keep_pixels(edit, source, mask(square(), feather=3.0), jnp.zeros((1, 8, 8)))
    inside, near = square() > 0, square(low=5, end=23) > 0
    np.testing.assert_array_equal(result[inside], edit[inside])
    np.testing.assert_array_equal(result[~near], source[~near])
    assert (np.asarray(result) != source).any(axis=3)[near & ~inside].any()


def test_softened_falls_to_zero() -> None:
    soft = np.asarray(softened(square(), jnp.float32([4.0])))[0, 12]
    assert soft[8] == 1 and (np.diff(soft[:9]) >= 0).all()
    assert 0 < soft[5] < 1 and soft[3] == 0


def test_blur_keeps_a_flat_map_flat() -> None:
    flat = jnp.full((2, 8, 12), 0.7)
    np.testing.assert_allclose(blurred(flat, jnp.float32([0.0, 5.0])), flat, rtol=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.8])
def test_threshold_parts_two_heaps(share: float) -> None:
    rng = np.random.default_rng(0)
    heaps = np.where(np.arange(500) < 500 * share, 5.0, 1.0) + 0.1 * rng.standard_normal(500)
    (found,) = threshold(jnp.float32(heaps[None]))
    assert (heaps > found).sum() == 500 * share


def test_threshold_is_scikit_images() -> None:
    filters = pytest.importorskip("skimage.filters")
    values: Any = np.random.default_rng(1).gamma(2.0, size=4000)
    (found,) = threshold(jnp.asarray(values)[None])
    assert abs(found - filters.threshold_otsu(values, nbins=4000)) < 0.02


def test_what_changed_is_found() -> None:
    source, edit = images()
    away = left()
    result, area = keep_pixels(edit, source, mask(np.ones((1, SIDE, SIDE)), found=1.0), away)
    both, either = (np.asarray(x).sum() for x in (area * square(), np.maximum(area, square())))
    assert both / either > 0.75
    far = ~(square(low=6, end=22) > 0)
    np.testing.assert_array_equal(result[far], source[far])


def test_drawn_and_found_meet() -> None:
    source, edit = images()
    half = np.ones((1, SIDE, SIDE), np.float32)
    half[:, :, 14:] = 0
    away = left()
    _, area = keep_pixels(edit, source, mask(half, found=1.0), away)
    assert not np.asarray(area)[:, :, 14:].any() and np.asarray(area).any()


def test_latents_outside_are_the_inversions() -> None:
    rng = np.random.default_rng(3)
    z, kept = (jnp.float32(rng.standard_normal((1, CELLS, CELLS, 4))) for _ in range(2))
    result, away = keep_outside(z, kept, mask(square()), jnp.zeros((1, CELLS, CELLS)))
    np.testing.assert_array_equal(result[:, 2:5, 2:5], z[:, 2:5, 2:5])
    np.testing.assert_array_equal(result[:, 7], kept[:, 7])
    assert float(away.mean()) == pytest.approx(1, rel=1e-4)
    everything, _ = keep_outside(z, kept, mask(np.ones((1, SIDE, SIDE))), away)
    np.testing.assert_array_equal(everything, z)


def test_values_never_retrace() -> None:
    traces = 0

    def counted(*args: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        source, edit, away, *leaves = args
        return keep_pixels(edit, source, Mask(*leaves), away)[0]

    program = jax.jit(counted)
    ones = jnp.ones(1)
    for drawn, found, feather in ((square(), 0 * ones, ones), (1 - square(), ones, 3 * ones)):
        program(*images(), jnp.ones((1, CELLS, CELLS)), drawn, found, feather)
    assert traces == 1


def test_high_of_a_map() -> None:
    away: Any = np.ones((2, 4, 4), np.float32)
    away[0, 1, 1], away[1, :2] = 7, 3
    found = np.asarray(high(away, 0.5))
    assert found[0].sum() == 1 and found[1].sum() == 8


def test_a_map_that_is_high_everywhere_is_not_parted() -> None:
    away: Any = np.random.default_rng(0).uniform(0.7, 1.0, (1, 8, 8)).astype(np.float32)
    assert np.asarray(high(away, 0.5)).all()
