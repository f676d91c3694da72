"""The drawn scenes that are measured, and their edits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import EDITS, Edit, draw_edit, possible
from ie_jax.data.world.scenes import TRAINING_SEEDS, Scene, draw_scene
from ie_jax.errors import UserError
from ie_jax.evaluation.world.model import Model, start_noise

SHOWN = 8
"""Scenes that pictures show."""


def check_seed(seed: int) -> None:
    """Raise UserError unless scenes of this seed are new to every trained model."""
    if seed in TRAINING_SEEDS:
        raise UserError(
            f"seed {seed} is one that models are trained on: take one from {TRAINING_SEEDS.stop} up"
        )
    if seed < 0:
        raise UserError(f"seed {seed} must not be negative")


def check_places(places: int) -> None:
    """Raise UserError unless scenes can have room for so many objects."""
    if places not in (1, 2):
        raise UserError(f"places {places} must be 1 or 2")


@dataclass(frozen=True)
class Source:
    """Scenes with all that the networks take of them, (n, ...)."""

    scenes: Sequence[Scene]
    pixels: np.ndarray
    ids: np.ndarray
    noise: np.ndarray
    """At the start of inversion."""


def draw_source(model: Model, seed: int, count: int, places: int) -> Source:
    """The first scenes of a seed, with room for so many objects."""
    scenes = [draw_scene(seed, i, places) for i in range(count)]
    return Source(
        scenes,
        np.stack([render(scene) for scene in scenes]),
        model.plain.ids([caption(scene) for scene in scenes]),
        start_noise(model, seed, range(count)),
    )


@dataclass(frozen=True)
class Task:
    """An edit of a scene by its number."""

    number: int
    edit: Edit


def all_edits(scenes: Sequence[Scene], seed: int) -> list[Task]:
    """Every scene's edit of each kind that is possible."""
    return [
        Task(i, draw_edit(scene, kind, seed, i))
        for i, scene in enumerate(scenes)
        for kind in EDITS
        if possible(scene, kind)
    ]


def one_edit_each(scenes: Sequence[Scene], seed: int) -> list[Task]:
    """An edit of each scene, the kinds in turn."""
    tasks = []
    for i, scene in enumerate(scenes):
        kinds = [kind for kind in EDITS if possible(scene, kind)]
        tasks.append(Task(i, draw_edit(scene, kinds[i % len(kinds)], seed, i)))
    return tasks


def some_of_each_kind(edits: Sequence[Edit], count: int) -> list[int]:
    """Numbers of edits to show, those of a kind together; mostly of other scenes than those of the
    kind before."""
    picked: list[int] = []
    for n, kind in enumerate(EDITS):
        numbers = [i for i, edit in enumerate(edits) if edit.kind == kind]
        first = max(0, min(n * count, len(numbers) - count))
        picked += numbers[first : first + count]
    return picked
