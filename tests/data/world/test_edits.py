"""Edits change what they say, and nothing outside of their mask."""

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import EDITS, draw_edit, possible
from ie_jax.data.world.scenes import (
    OBJECT,
    draw_scene,
    labels,
)

SEEDS = st.integers(0, 2**31)
INDICES = st.integers(0, 10**6)
PLACES = st.sampled_from([1, 2])


@given(SEEDS, INDICES, PLACES, st.sampled_from(sorted(EDITS)))
@settings(max_examples=90)
def test_an_edit_changes_what_it_names_and_nothing_outside_its_mask(
    seed: int, index: int, places: int, kind: str
) -> None:
    scene = draw_scene(seed, index, places)
    if not possible(scene, kind):
        with pytest.raises(ValueError, match=kind):
            draw_edit(scene, kind, seed, index)
        return
    edit = draw_edit(scene, kind, seed, index)
    assert edit.source == scene
    before, after = (asdict(x) for x in (edit.source, edit.target))
    objects = [x.pop("things") for x in (before, after)]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == ({"background"} if kind == "change_background" else set())
    for number, (old, new) in enumerate(zip(*objects, strict=True)):
        changed = {name for name in old if old[name] != new[name]}
        about = set(OBJECT) if kind in ("add_object", "delete_object") else {EDITS[kind]}
        assert changed == (about - {"background"} if number == edit.thing else set())
    numbers = [labels(x)[edit.attribute] for x in (edit.source, edit.target)]
    assert numbers[0] != numbers[1]
    one, other = render(edit.source), render(edit.target)
    assert (one == other)[~edit.mask].all()
    assert (one != other).any()
    assert edit.target == draw_edit(scene, kind, seed, index).target
    assert caption(edit.source) != caption(edit.target)
