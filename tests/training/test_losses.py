"""The losses' parts, against their formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ie_jax.diffusion.schedule import BOUNDARIES
from ie_jax.diffusion.trajectory import chain
from ie_jax.training import losses

RNG = np.random.default_rng(0)


def latents(b: int = 3) -> jnp.ndarray:
    return jnp.asarray(RNG.standard_normal((b, 4, 4, 2)), jnp.float32)


def test_pseudo_huber_is_square_near_zero_and_linear_far_away() -> None:
    x = jnp.full((2, 3, 3, 1), 1e-5)
    near = losses.pseudo_huber(x, 0 * x, c=1e-3)
    np.testing.assert_allclose(near, 1e-10 / (2 * 1e-3), rtol=2e-2)  # float32's c² + d²
    far = losses.pseudo_huber(1e5 * x, 0 * x, c=1e-3)
    np.testing.assert_allclose(far, 1.0 - 1e-3, rtol=1e-5)


def test_distances_are_per_image_and_float32() -> None:
    x = jnp.asarray(RNG.standard_normal((3, 4, 4, 2)), jnp.bfloat16)
    y = latents()
    d = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    for distance, expected in (
        (losses.squared, (d**2).mean(axis=(1, 2, 3))),
        (losses.pseudo_huber, (np.sqrt(d**2 + 1e-6) - 1e-3).mean(axis=(1, 2, 3))),
    ):
        result = distance(x, y)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_published_patches_are_nine_and_leave_68_rows() -> None:
    assert list(losses.corners(512, 224, 110)) == [0, 110, 220]
    assert 512 - (220 + 224) == 68
    assert losses.corners(512, 224, 144)[-1] + 224 == 512


@settings(deadline=None, max_examples=30)
@given(
    side=st.integers(4, 20), size=st.integers(1, 4), stride=st.integers(1, 5), b=st.integers(1, 3)
)
def test_patches_are_cut_where_they_should_be(side: int, size: int, stride: int, b: int) -> None:
    x = np.arange(b * side * side * 3, dtype=np.float32).reshape(b, side, side, 3)
    cut = np.asarray(losses.patches(jnp.asarray(x), size, stride))
    corners = [(r, c) for r in range(0, side, stride) for c in range(0, side, stride)]
    inside = [(r, c) for r, c in corners if r + size <= side and c + size <= side]
    assert cut.shape == (b * len(inside), size, size, 3)
    for i in range(b):
        for j, (r, c) in enumerate(inside):
            expected = x[i, r : r + size, c : c + size]
            np.testing.assert_array_equal(cut[i * len(inside) + j], expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 12), (4, 4)])
def test_interleaved_patches_are_lines_of_neighbours_below_each_other(
    height: int, width: int
) -> None:
    size, stride, b = 4, 2, 2
    x = RNG.standard_normal((b, height, width, 3)).astype(np.float32)
    got = np.asarray(losses.interleaved_patches(jnp.asarray(x), size, stride))
    rows, columns = (losses.corners(side, size, stride) for side in (height, width))
    lines = [
        image[r + row, c : c + size, colour]
        for image in x
        for r in rows
        for row in range(size)
        for colour in range(3)
        for c in columns
    ]
    channels = np.asarray(lines).reshape(-1, 3, size, size)
    np.testing.assert_array_equal(got, np.moveaxis(channels, 1, -1))


def test_a_patchwise_distance_is_the_mean_of_its_patches() -> None:
    x, y = (jnp.asarray(RNG.standard_normal((2, 8, 8, 3)), jnp.float32) for _ in range(2))
    whole = losses.patchwise(losses.squared, 4, 4)(x, y)  # the patches tile the image
    np.testing.assert_allclose(whole, losses.squared(x, y), rtol=1e-5)


def test_the_grid_meets_every_boundary() -> None:
    index = jnp.arange(49)
    t, after, boundary = losses.forward_grid(index, 19, 50, jnp.asarray(BOUNDARIES), 1000)
    assert (t[0], t[-1], after[-1]) == (19, 979, 999)
    for a, b, s in zip(t.tolist(), after.tolist(), boundary.tolist(), strict=True):
        assert b == a + 20
        assert s == min(x for x in BOUNDARIES if x >= b)


def test_where_the_teacher_arrives_at_the_boundary_its_result_is_the_target() -> None:
    t, s = jnp.array([[239, 219], [259, 239]]), jnp.array([[259, 239], [259, 259]])
    lead, led = chain(latents(2), [1, 0], t, s), jnp.stack([latents(2), latents(2)])
    target = losses.arrival(lead, led)
    np.testing.assert_array_equal(target, [led[0, 0], led[1, 1]])


@pytest.mark.parametrize("size", [5, 9])
def test_patches_larger_than_the_image_are_none(size: int) -> None:
    assert len(losses.corners(4, size, 2)) == 0
