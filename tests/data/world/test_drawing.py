"""Pictures of scenes."""

from dataclasses import replace

from ie_jax.data.world.drawing import object_coverage
from ie_jax.data.world.scenes import (
    draw_scene,
)


def test_edges_are_smooth_and_objects_lie_in_the_picture() -> None:
    things = [o for i in range(50) for places in (1, 2) for o in draw_scene(5, i, places).things]
    for cover in map(object_coverage, things):
        assert not cover[[0, -1]].any() and not cover[:, [0, -1]].any()
        if cover.any():
            assert ((cover > 0) & (cover < 1)).any()


def test_two_objects_lie_apart() -> None:
    for i in range(200):
        left, right = draw_scene(5, i, 2).things
        left, right = (replace(x, shape=x.shape if not x.empty else "cross") for x in (left, right))
        assert not (object_coverage(left) * object_coverage(right)).any()
