"""Which scenes are measured, and which edits of them."""

from ie_jax.data.world.edits import EDITS
from ie_jax.data.world.scenes import draw_scene
from ie_jax.evaluation.world.tasks import all_edits, one_edit_each, some_of_each_kind


def test_edits_of_scenes_for_two_objects() -> None:
    scenes = [draw_scene(1001, i, 2) for i in range(40)]
    tasks = all_edits(scenes, 1001)
    shown = [sum(not thing.empty for thing in scene.things) for scene in scenes]
    assert len(tasks) == sum({0: 2, 1: 6, 2: 5}[n] for n in shown) and {0, 1, 2} == set(shown)
    about = {(task.edit.kind, task.edit.attribute) for task in tasks}
    assert about == {
        *((kind, name) for kind, name in EDITS.items()),
        *((kind, f"right_{name}") for kind, name in EDITS.items() if name != "background"),
    }


def test_edits_of_scenes() -> None:
    scenes = [draw_scene(1001, i) for i in range(40)]
    tasks = all_edits(scenes, 1001)
    assert len(tasks) == sum(2 if scene.empty else 5 for scene in scenes)
    assert {task.edit.kind for task in tasks} == set(EDITS)
    assert [task.number for task in one_edit_each(scenes, 1001)] == list(range(40))
    assert {task.edit.kind for task in one_edit_each(scenes, 1001)} >= set(EDITS) - {"add_object"}
    same = {(task.number, task.edit.kind): task.edit.target for task in tasks}
    for task in one_edit_each(scenes, 1001):
        assert same[task.number, task.edit.kind] == task.edit.target


def test_edits_that_are_shown() -> None:
    edits = [task.edit for task in all_edits([draw_scene(1001, i) for i in range(40)], 1001)]
    picked = some_of_each_kind(edits, 2)
    assert [edits[i].kind for i in picked] == [kind for kind in EDITS for _ in range(2)]
    shown = [edits[i].source for i in picked if edits[i].kind != "add_object"]
    assert len({id(scene) for scene in shown}) > len(shown) - 2
