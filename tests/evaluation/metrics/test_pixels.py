"""Metrics of pixels against their definitions."""

import numpy as np
import pytest

from ie_jax.evaluation.metrics.pixels import mse, psnr, ssim, truncated


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 256, (2, 14, 17, 3), np.uint8)
    return one, (one // 2 + other // 2).astype(np.uint8)


def test_mse_and_psnr(pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = (x.astype(float) / 255 for x in pair)
    assert mse(*pair) == pytest.approx(np.mean((one - other) ** 2))
    assert psnr(*pair) == pytest.approx(10 * np.log10(1 / mse(*pair)))
    assert psnr(pair[0], pair[0]) == np.inf and mse(pair[0], pair[0]) == 0


def test_ssim_is_the_mean_over_whole_windows(pair: tuple[np.ndarray, np.ndarray]) -> None:
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line)[..., None] / line.sum() ** 2
    found = []
    for top in range(14 - 10):
        for left in range(17 - 10):
            x, y = (p[top : top + 11, left : left + 11] / 255 for p in pair)
            mx, my = ((window * z).sum((0, 1)) for z in (x, y))
            vx, vy = ((window * z * z).sum((0, 1)) - m * m for z, m in ((x, mx), (y, my)))
            both = (window * x * y).sum((0, 1)) - mx * my
            light = (2 * mx * my + 1e-4) / (mx**2 + my**2 + 1e-4)
            found.append(light * (2 * both + 9e-4) / (vx + vy + 9e-4))
    assert ssim(*pair) == pytest.approx(np.mean(found), abs=1e-12)
    assert ssim(pair[0], pair[0]) == pytest.approx(1)


def test_truncation_lowers_some_levels_by_one() -> None:
    levels = np.arange(256, dtype=np.uint8)
    lost = levels.astype(int) - truncated(levels)
    assert set(lost) == {0, 1}
