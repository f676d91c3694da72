"""What captions say of scenes."""

from dataclasses import replace

import numpy as np

from ie_jax.data.world.captions import (
    EMPTY_TEMPLATES,
    PAIR_TEMPLATES,
    SIDE_TEMPLATES,
    TEMPLATES,
    caption,
    named,
)
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import (
    ATTRIBUTES,
    OBJECT,
    WORDINGS,
    draw_scene,
    labels,
)


def test_what_no_caption_names_differs_between_scenes_of_one_caption() -> None:
    by_caption: dict[str, list[np.ndarray]] = {}
    for i in range(3000):
        scene = draw_scene(4, i)
        by_caption.setdefault(caption(scene, 0), []).append(render(scene))
    several = [pictures for pictures in by_caption.values() if len(pictures) > 1]
    assert several and all((p[0] != p[1]).any() for p in several)


def test_a_lone_object_is_the_first_unless_it_lies_at_the_right() -> None:
    scenes = (draw_scene(7, i, 2) for i in range(99))
    scene = next(s for s in scenes if s.things[0].empty and not s.things[1].empty)
    assert "at the right" in caption(scene)
    assert labels(scene)["shape"] == ATTRIBUTES["shape"].index("nothing")
    at_left = replace(scene, things=scene.things[::-1])
    assert "at the left" in caption(at_left)
    names = (*OBJECT, *(f"right_{name}" for name in OBJECT))
    one, other = (labels(x) for x in (scene, at_left))
    assert [one[name] for name in names] == [other[name] for name in (*names[3:], *names[:3])]


def test_a_caption_has_several_wordings() -> None:
    scene = next(scene for i in range(9) if not (scene := draw_scene(6, i)).empty)
    assert len({caption(scene, i) for i in range(len(TEMPLATES))}) == len(TEMPLATES)


def test_each_kind_of_scene_has_as_many_wordings_as_scenes_draw_from() -> None:
    for templates in (TEMPLATES, EMPTY_TEMPLATES, SIDE_TEMPLATES, PAIR_TEMPLATES):
        assert len(templates) == WORDINGS


def test_articles_suit_the_words_after_them() -> None:
    scenes = (replace(draw_scene(6, i), background="olive", template=i) for i in range(3))
    assert all("an olive background" in caption(scene) for scene in scenes)


def test_captions_name_the_attributes_of_their_scenes() -> None:
    scenes = [draw_scene(1000, i, places) for i in range(60) for places in (1, 2)]
    assert any(scene.empty for scene in scenes)
    for scene in scenes:
        for template in range(3):
            assert named(caption(scene, template)) == list(labels(scene).values())
