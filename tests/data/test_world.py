"""The embedded world: scenes are functions of their number, edits change what they say."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ie_jax.data.config import DataConfig
from ie_jax.data.open import open_data
from ie_jax.data.world import (
    ATTRIBUTES,
    EDITS,
    EMPTY_SHARE,
    SIZE,
    TEMPLATES,
    TRAINING_SEEDS,
    WORDS,
    caption,
    draw_edit,
    draw_scene,
    labels,
    object_coverage,
    possible,
    render,
)
from ie_jax.errors import UserError

SEEDS = st.integers(0, 2**31)
INDICES = st.integers(0, 10**6)


@given(SEEDS, INDICES)
@settings(max_examples=40)
def test_a_scene_is_a_function_of_its_number(seed: int, index: int) -> None:
    scene = draw_scene(seed, index)
    assert scene == draw_scene(seed, index)
    picture = render(scene)
    assert picture.shape == (SIZE, SIZE, 3) and picture.dtype == np.uint8
    assert (picture == render(draw_scene(seed, index))).all()
    assert set(caption(scene).split()) <= set(WORDS)
    assert all(0 <= labels(scene)[name] < len(values) for name, values in ATTRIBUTES.items())


def test_other_numbers_and_seeds_give_other_scenes() -> None:
    pictures = {render(draw_scene(seed, i)).tobytes() for seed in range(5) for i in range(20)}
    assert len(pictures) == 100


@given(SEEDS, INDICES, st.sampled_from(sorted(EDITS)))
@settings(max_examples=60)
def test_an_edit_changes_what_it_names_and_nothing_outside_its_mask(
    seed: int, index: int, kind: str
) -> None:
    scene = draw_scene(seed, index)
    if not possible(scene, kind):
        with pytest.raises(ValueError, match=kind):
            draw_edit(scene, kind, seed, index)
        return
    edit = draw_edit(scene, kind, seed, index)
    assert edit.source == scene
    changed = {
        field.name
        for field in fields(scene)
        if getattr(edit.source, field.name) != getattr(edit.target, field.name)
    }
    whole = {"shape", "colour", "surface"}
    assert changed == (whole if kind in ("add_object", "delete_object") else {EDITS[kind]})
    one, other = render(edit.source), render(edit.target)
    assert (one == other)[~edit.mask].all()
    assert (one != other).any()
    assert edit.target == draw_edit(scene, kind, seed, index).target
    assert caption(edit.source) != caption(edit.target)


def test_all_values_of_all_attributes_come_up_and_some_scenes_are_empty() -> None:
    scenes = [draw_scene(3, i) for i in range(600)]
    for name, values in ATTRIBUTES.items():
        assert {getattr(scene, name) for scene in scenes} == set(values)
    share = np.mean([scene.empty for scene in scenes])
    assert EMPTY_SHARE / 2 < share < EMPTY_SHARE * 2


def test_what_no_caption_names_differs_between_scenes_of_one_caption() -> None:
    by_caption: dict[str, list[np.ndarray]] = {}
    for i in range(3000):
        scene = draw_scene(4, i)
        by_caption.setdefault(caption(scene, 0), []).append(render(scene))
    several = [pictures for pictures in by_caption.values() if len(pictures) > 1]
    assert several and all((p[0] != p[1]).any() for p in several)


def test_edges_are_smooth_and_objects_lie_in_the_picture() -> None:
    for i in range(50):
        cover = object_coverage(draw_scene(5, i))
        assert not cover[[0, -1]].any() and not cover[:, [0, -1]].any()
        if cover.any():
            assert ((cover > 0) & (cover < 1)).any()


def test_a_caption_has_several_wordings() -> None:
    scene = next(scene for i in range(9) if not (scene := draw_scene(6, i)).empty)
    assert len({caption(scene, i) for i in range(len(TEMPLATES))}) == len(TEMPLATES)


def test_articles_suit_the_words_after_them() -> None:
    scenes = (replace(draw_scene(6, i), background="olive", template=i) for i in range(3))
    assert all("an olive background" in caption(scene) for scene in scenes)


def tokens(texts: list[str]) -> np.ndarray:
    return np.array([[len(word) for word in text.split()[:2]] for text in texts], np.int32)


def test_batches_of_scenes() -> None:
    config = DataConfig(source="world", world_scenes=32, validation=8, workers=0)
    batch = next(open_data(config, tokens, SIZE, 4))  # type: ignore[arg-type]
    assert batch["pixels"].shape == (4, SIZE, SIZE, 3)
    assert batch["ids"].shape == (4, 2)
    assert batch["labels"].shape == (4, len(ATTRIBUTES))
    held_out = list(open_data(config, tokens, SIZE, 4, training=False))  # type: ignore[arg-type]
    assert (held_out[0]["pixels"][0] == render(draw_scene(0, 24))).all()
    assert len(held_out) == 2


def test_training_and_evaluation_have_their_own_seeds() -> None:
    with pytest.raises(UserError, match="the others are for evaluation"):
        DataConfig(source="world", world_seed=TRAINING_SEEDS.stop)


def test_other_sizes_are_refused() -> None:
    config = DataConfig(source="world", size=32)
    with pytest.raises(UserError, match="have 64 pixels, not 32"):
        open_data(config, tokens, SIZE, 4)  # type: ignore[arg-type]
