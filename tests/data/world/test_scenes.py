"""Scenes are functions of their number."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ie_jax.data.world.captions import WORDS, caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import (
    ATTRIBUTES,
    EMPTY_PLACES,
    EMPTY_SHARE,
    SIZE,
    draw_scene,
    labels,
)

SEEDS = st.integers(0, 2**31)
INDICES = st.integers(0, 10**6)
MOST_WORDS = 14
"""That fit in the world's text encoder, between start and end."""
PLACES = st.sampled_from([1, 2])


@given(SEEDS, INDICES, PLACES)
@settings(max_examples=40)
def test_a_scene_is_a_function_of_its_number(seed: int, index: int, places: int) -> None:
    scene = draw_scene(seed, index, places)
    assert scene == draw_scene(seed, index, places) and len(scene.things) == places
    picture = render(scene)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert (picture == render(draw_scene(seed, index, places))).all()
    assert set(caption(scene).split()) <= set(WORDS)
    assert len(caption(scene).split()) <= MOST_WORDS
    assert all(0 <= labels(scene)[name] < len(values) for name, values in ATTRIBUTES.items())


def test_other_numbers_and_seeds_give_other_scenes() -> None:
    pictures = {render(draw_scene(seed, i)).tobytes() for seed in range(5) for i in range(20)}
    assert len(pictures) == 100


def test_all_values_of_all_attributes_come_up_and_some_scenes_are_empty() -> None:
    scenes = [draw_scene(3, i, places) for i in range(600) for places in (1, 2)]
    for name, values in ATTRIBUTES.items():
        assert {labels(scene)[name] for scene in scenes} == set(range(len(values)))
    for places, share in ((1, EMPTY_SHARE), (2, EMPTY_PLACES**2)):
        found = np.mean([scene.empty for scene in scenes if len(scene.things) == places])
        assert share / 2 < found < share * 2
