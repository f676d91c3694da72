"""The points of the trade-off."""

import numpy as np

from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.tradeoff import trade_off_points


def test_points_of_the_trade_off() -> None:
    points = trade_off_points(WorldConfig())
    assert [sum(p.sweep == x for p in points) for x in ("strength", "bound", "schedule")] == [
        6,
        5,
        12,
    ]
    assert np.isfinite([point.upper for point in points]).all()
