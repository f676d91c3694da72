"""Edits of scenes: the same scene with one named thing changed, and so the exact result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ie_jax.data.world.drawing import object_coverage
from ie_jax.data.world.scenes import ATTRIBUTES, OBJECT, RIGHT, Scene

EDITS: Mapping[str, str] = {
    "change_object": "shape",
    "add_object": "shape",
    "delete_object": "shape",
    "change_color": "colour",
    "change_material": "surface",
    "change_background": "background",
}
"""Kinds of edits by PIE-Bench's names, and the attribute that each is about."""


@dataclass(frozen=True)
class Edit:
    """A change of a scene, and its exact result."""

    kind: str
    """One of `EDITS`."""
    thing: int
    """Number of the object that it is about; 0 for the background."""
    source: Scene
    target: Scene
    """The source with the change; all else is the same."""
    mask: np.ndarray
    """bool (SIZE, SIZE): True where source and target may differ."""

    @property
    def attribute(self) -> str:
        """Which of `ATTRIBUTES` it is about."""
        return (RIGHT if self.thing else "") + EDITS[self.kind]


def candidates(scene: Scene, kind: str) -> list[int]:
    """Numbers of the things that an edit of this kind can change: add wants a place without an
    object, all others but the background's an object."""
    if kind == "change_background":
        return [0]
    return [i for i, thing in enumerate(scene.things) if thing.empty == (kind == "add_object")]


def possible(scene: Scene, kind: str) -> bool:
    """Whether an edit of this kind can be made."""
    return bool(candidates(scene, kind))


def draw_edit(scene: Scene, kind: str, seed: int, index: int) -> Edit:
    """An edit of a scene, the object and the new value drawn from seed and index.

    Raises:
        ValueError: it is not `possible`.
    """
    if not possible(scene, kind):
        raise ValueError(f"{kind} of a scene with {[thing.shape for thing in scene.things]}")
    rng = np.random.default_rng((seed, index, list(EDITS).index(kind)))

    def other(attribute: str, present: str) -> str:
        values = [v for v in ATTRIBUTES[attribute] if v not in (present, "nothing")]
        return str(rng.choice(values))

    if kind == "change_background":
        target = replace(scene, background=other("background", scene.background))
        return Edit(kind, 0, scene, target, difference_mask(scene, target))
    numbers = candidates(scene, kind)
    number = numbers[0] if len(numbers) == 1 else int(rng.choice(numbers))
    thing = scene.things[number]
    if kind == "delete_object":
        change = dict.fromkeys(OBJECT, "nothing")
    else:
        names = OBJECT if kind == "add_object" else [EDITS[kind]]
        change = {name: other(name, getattr(thing, name)) for name in names}
    things = list(scene.things)
    things[number] = replace(thing, **change)  # type: ignore[arg-type]
    target = replace(scene, things=tuple(things))
    return Edit(kind, number, scene, target, difference_mask(scene, target))


def difference_mask(source: Scene, target: Scene) -> np.ndarray:
    """Where two scenes that share their hidden details may differ: bool (SIZE, SIZE)."""
    pairs = list(zip(source.things, target.things, strict=True))
    covers = [(object_coverage(a), object_coverage(b)) for a, b in pairs]
    if source.background != target.background:
        return np.all([np.minimum(a, b) < 1 for a, b in covers], axis=0)
    changed = [cover for cover, (a, b) in zip(covers, pairs, strict=True) if a != b]
    return np.any([np.maximum(a, b) > 0 for a, b in changed], axis=0)
