"""The losses' parts, against their formulas."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ie_jax.diffusion.consistency import add_noise, consistency_step
from ie_jax.diffusion.schedule import BOUNDARIES, cumulative_alphas
from ie_jax.diffusion.trajectory import walk_all
from ie_jax.training import losses

ABAR = jnp.asarray(cumulative_alphas())
RNG = np.random.default_rng(0)


ROUNDING = 1e-7
"""Of sums of values near 1, which may cancel: a float32 knows them no better."""


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


@settings(max_examples=10)
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


def walked(eps: Any, term: losses.Term) -> Any:
    """The latents after each step of a lead."""
    assert term.lead
    return walk_all(eps, ABAR, {"lead": term.lead})["lead"]


def test_an_exact_teacher_carries_a_latent_along_its_own_noise() -> None:
    z, noise = latents(), latents()
    t, s = jnp.array([19, 500, 979]), jnp.array([39, 520, 999])
    term = losses.distillation(losses.FORWARD, ABAR, z, noise, (t, s, s))
    end = walked(lambda *_: noise, term)[0]
    np.testing.assert_allclose(end, add_noise(ABAR, z, noise, s), atol=2e-4)
    # Unlike a consistency step's, a teacher's step to 0 keeps the noise of timestep 0.
    zero = jnp.zeros(3, jnp.int32)
    term = losses.distillation(losses.BACKWARD, ABAR, z, noise, (t, zero, zero))
    to_zero = walked(lambda *_: noise, term)[0]
    np.testing.assert_allclose(to_zero, add_noise(ABAR, z, noise, zero), atol=2e-4)


def test_where_the_teacher_arrives_at_the_boundary_its_result_is_the_target() -> None:
    z, noise, eps = latents(2), latents(2), latents(2)
    t, after, boundary = jnp.array([239, 219]), jnp.array([259, 239]), jnp.array([259, 259])
    w = jnp.array([0.0, 3.0])

    def teacher_and_student(model: Any, z: Any, t: Any, w: Any) -> Any:
        own = 0.5 * z + w[:, None, None, None]
        return jnp.where(model == losses.TEACHER, eps, own)

    term = losses.distillation(losses.FORWARD, ABAR, z, noise, (t, after, boundary), w)
    aim = term.aim(walked(teacher_and_student, term))
    start = add_noise(ABAR, z, noise, t)
    arrived = consistency_step(ABAR, start, eps, t, after)
    own = 0.5 * arrived + w[:, None, None, None]
    on = consistency_step(ABAR, arrived, own, after, boundary)
    np.testing.assert_allclose(aim.target[0], arrived[0], rtol=1e-6, atol=ROUNDING)
    np.testing.assert_allclose(aim.target[1], on[1], rtol=1e-5)
    assert np.abs(np.asarray(arrived[1] - on[1])).max() > 1e-3
    np.testing.assert_allclose(aim.chain.start, start, rtol=1e-6, atol=ROUNDING)
    assert aim.chain.model.tolist() == [losses.FORWARD] and aim.chain.w.tolist() == [[0, 3]]
    assert (aim.chain.t[0] == t).all() and (aim.chain.s[0] == boundary).all()


def test_preservation_starts_where_the_opposite_step_ends() -> None:
    z, noise, eps = latents(), latents(), latents()
    t, s = jnp.array([259, 519, 999]), jnp.array([19, 259, 779])
    term = losses.preservation(losses.FORWARD, losses.BACKWARD, ABAR, z, noise, t, s)

    def backward(model: Any, z: Any, t: Any, w: Any) -> Any:
        return jnp.where(model == losses.BACKWARD, eps, jnp.nan) + w[:, None, None, None]

    aim = term.aim(walked(backward, term))
    begun = add_noise(ABAR, z, noise, t)
    np.testing.assert_allclose(
        aim.chain.start, consistency_step(ABAR, begun, eps, t, s), rtol=1e-6, atol=ROUNDING
    )
    np.testing.assert_allclose(aim.target, begun, rtol=1e-6, atol=ROUNDING)
    assert aim.chain.model.tolist() == [losses.FORWARD]
    assert (aim.chain.t[0] == s).all() and (aim.chain.s[0] == t).all()


@pytest.mark.parametrize("size", [5, 9])
def test_patches_larger_than_the_image_are_none(size: int) -> None:
    assert len(losses.corners(4, size, 2)) == 0
