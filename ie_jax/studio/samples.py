"""Pictures to begin with: scenes of the embedded world."""

from dataclasses import dataclass
from pathlib import Path

from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import draw_edit
from ie_jax.data.world.scenes import draw_scene
from ie_jax.editing.images import save_image

SEED = 2026
KINDS = {"change_color": 1, "change_object": 1, "change_background": 1, "delete_object": 2}
"""Of edits, and how many objects their scenes show."""


@dataclass(frozen=True)
class Sample:
    """A photo, what it shows, and what to make of it."""

    path: str
    source: str
    target: str


def draw_samples(folder: Path) -> list[Sample]:
    """A scene for each kind of edit, written into a folder."""
    samples: list[Sample] = []
    index = 0
    for kind, places in KINDS.items():
        while (scene := draw_scene(SEED, index, places)).free:
            index += 1
        edit = draw_edit(scene, kind, SEED, index)
        path = folder / f"scene-{index}.png"
        save_image(render(scene), path)
        samples.append(Sample(str(path), caption(scene), caption(edit.target)))
        index += 1
    return samples
