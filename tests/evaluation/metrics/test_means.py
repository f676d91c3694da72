"""Metrics against their definitions."""

import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.metrics.attributes import right
from ie_jax.evaluation.metrics.means import (
    bootstrap,
    estimate,
    estimate_share,
    share_difference,
    wilson,
)
from ie_jax.evaluation.metrics.pixels import psnr_of, squared_error
from ie_jax.training.losses import psnr as training_psnr


@pytest.fixture
def pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 256, (2, 3, 4, 5, 3), np.uint8)
    return one, two


def test_squared_error_is_on_minus_one_to_one() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert squared_error(black, white) == [4.0]
    assert psnr_of(squared_error(black, white)) == [0.0]


def test_squared_error_of_each_picture(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    one, two = (x / 127.5 - 1 for x in pictures)
    expected = ((one - two) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(squared_error(*pictures), expected, rtol=1e-12)


def test_only_pixels_of_the_mask_count(pictures: tuple[np.ndarray, np.ndarray]) -> None:
    where = np.zeros((3, 4, 5), bool)
    where[0, 1, 2] = where[1] = True
    found = squared_error(*pictures, where)
    one, two = pictures[0][0, 1, 2] / 127.5, pictures[1][0, 1, 2] / 127.5
    assert found[0] == pytest.approx(((one - two) ** 2).mean())
    assert found[1] == squared_error(*pictures)[1]
    assert np.isnan(found[2])


def test_psnr_is_the_one_of_training_and_ends() -> None:
    errors = np.array([1e-3, 0.5, 4.0])
    np.testing.assert_allclose(psnr_of(errors), training_psnr(jnp.asarray(errors)), rtol=1e-5)
    assert psnr_of(np.zeros(1)) == psnr_of(np.full(1, 1e-10))


def test_all_attributes_must_be_right() -> None:
    each, whole = right(np.array([[1, 2], [1, 3]]), np.array([[1, 2], [1, 2]]))
    assert each.tolist() == [[1, 1], [1, 0]]
    assert whole.tolist() == [1, 0]


def test_the_interval_of_independent_values() -> None:
    values = np.random.default_rng(1).normal(3, 2, 50)
    found = estimate(values)
    assert found["mean"] == pytest.approx(values.mean())
    half = 1.96 * values.std(ddof=1) / 50**0.5
    assert (found["low"], found["high"]) == pytest.approx(
        (values.mean() - half, values.mean() + half), rel=1e-4
    )
    assert found["count"] == 50


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    """Also where scenes have several edits each, whose scores are alike."""
    rng = np.random.default_rng(2)
    scenes = np.repeat(np.arange(60), 4)
    hits = 0
    for _ in range(1000):
        values = rng.normal(0, 1, 60)[scenes] + rng.normal(0, 0.3, 240)
        found = estimate(values, scenes)
        assert found["low"] is not None and found["high"] is not None
        hits += found["low"] < 0 < found["high"]
    # 0.95 of 1000 with a deviation of 6.9, and a little less for 60 scenes.
    assert 920 <= hits <= 970


def test_missing_values_are_left_out() -> None:
    assert estimate(np.array([1.0, np.nan, 3.0])) == estimate(np.array([1.0, 3.0]))
    none = {"low": None, "high": None}
    assert estimate(np.array([np.nan])) == {"mean": None, "count": 0, **none}
    assert estimate(np.array([2.0])) == {"mean": 2.0, "count": 1, **none}


def test_the_interval_of_a_share_of_scenes() -> None:
    """As Wilson's where each has a scene of its own; as that of the scenes where those of one are
    all alike or nothing tells; and it covers the share."""
    hits = np.arange(40) % 4 != 0
    assert estimate_share(hits) == wilson(30, 40)
    alike = estimate_share(np.repeat(hits, 3), np.repeat(np.arange(40), 3))
    assert alike["count"] == 120
    assert (alike["low"], alike["high"]) == pytest.approx(
        (wilson(30, 40)["low"], wilson(30, 40)["high"])
    )
    always = estimate_share(np.ones(120), np.repeat(np.arange(40), 3))
    assert always["low"] == wilson(40, 40)["low"] and always["high"] == 1.0
    rng, covered = np.random.default_rng(3), 0
    for _ in range(500):
        likely = rng.beta(9, 1, 50)[:, None]
        found = estimate_share((rng.random((50, 5)) < likely).ravel(), np.repeat(np.arange(50), 5))
        assert found["low"] is not None and found["high"] is not None
        covered += found["low"] <= 0.9 <= found["high"]
    assert 460 <= covered <= 495


@pytest.mark.parametrize("count", [1, 4, 5, 8])
def test_batches_have_one_size_and_leave_no_trace(count: int) -> None:
    x, sizes = np.arange(count * 2.0).reshape(count, 2), set()

    def twice(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sizes.add(len(x))
        return 2 * x, x + y

    double, total = in_batches(twice, 4, x, 3 * x)
    assert double.tolist() == (2 * x).tolist() and total.tolist() == (4 * x).tolist()
    assert sizes == {min(count, 4)}
    assert in_batches(lambda x: -x, 4, x).tolist() == (-x).tolist()


def test_intervals_by_bootstrap_and_of_shares() -> None:
    values = np.random.default_rng(0).normal(5, 2, 400)
    found = bootstrap(np.append(values, [np.nan, np.inf]))
    assert found["count"] == 400 and found["mean"] == pytest.approx(values.mean())
    assert found["low"] is not None and found["high"] is not None
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * 2 / 20, rel=0.15)
    assert bootstrap(np.array([2.0])) == {"mean": 2.0, "low": None, "high": None, "count": 1}
    # Wilson 1927, worked out by hand: 10 of 10 at z = 1.96 is from 0.7225 up.
    sure = wilson(10, 10)
    assert (sure["mean"], sure["high"]) == (1.0, pytest.approx(1))
    assert sure["low"] == pytest.approx(0.7225, abs=1e-4)
    assert wilson(0, 0)["mean"] is None


def test_the_difference_of_shares_is_never_sure() -> None:
    equal = share_difference(0, 0, 48)
    assert equal["mean"] == 0 and equal["high"] == -float(equal["low"] or 0) > 0.05
    up, down = share_difference(9, 2, 48), share_difference(2, 9, 48)
    assert up["mean"] == -float(down["mean"] or 0) and up["low"] == -float(down["high"] or 0)
    assert share_difference(0, 0, 0)["mean"] is None
    rng, covered = np.random.default_rng(4), 0
    for _ in range(500):
        kinds = rng.choice(3, 60, p=[0.85, 0.1, 0.05])
        found = share_difference(int(np.sum(kinds == 1)), int(np.sum(kinds == 2)), 60)
        assert found["low"] is not None and found["high"] is not None
        covered += found["low"] <= 0.05 <= found["high"]
    assert 465 <= covered <= 499
