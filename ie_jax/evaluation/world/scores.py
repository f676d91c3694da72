"""How good pictures of the world are: what the judge sees in them, how near they are to the exact
result, and what they keep of the source."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import EDITS, Edit
from ie_jax.data.world.scenes import ATTRIBUTES, Scene, labels
from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.metrics.attributes import predict, right
from ie_jax.evaluation.metrics.means import Interval, Values, estimate, estimate_share
from ie_jax.evaluation.metrics.pixels import psnr_of, squared_error
from ie_jax.evaluation.world.model import Model, perceptual_distance
from ie_jax.evaluation.world.tasks import Task

Results = dict[str, Any]

SHARES = ("success", "changed", "finite")
"""Scores that are 0 or 1 of an edit."""

ALL = "all"


def label_rows(scenes: Sequence[Scene]) -> np.ndarray:
    """Value numbers of scenes in the order of `ATTRIBUTES`: int (n, 7)."""
    return np.array([list(labels(scene).values()) for scene in scenes])


def predicted(model: Model, size: int, pixels: np.ndarray) -> np.ndarray:
    """The classifier's value numbers: int (n, 7)."""
    rows: np.ndarray = in_batches(partial(predict, model.classifier), size, pixels)
    return rows


def distance(model: Model, size: int, pixels: np.ndarray, other: np.ndarray) -> Values:
    """Perceptual distance of pairs of pictures: (n)."""
    measure = partial(perceptual_distance, model.perceptual)
    values: np.ndarray = in_batches(measure, size, pixels, other)
    return values.astype(np.float64)


def accuracy(model: Model, size: int, pixels: np.ndarray, scenes: Sequence[Scene]) -> Results:
    """Share of pictures in which the classifier sees what the scene has, by attribute."""
    each, whole = right(predicted(model, size, pixels), label_rows(scenes))
    columns = zip((*ATTRIBUTES, ALL), (*each.T, whole), strict=True)
    return {name: estimate_share(values) for name, values in columns}


def score_edits(
    model: Model,
    size: int,
    pixels: np.ndarray,
    sources: np.ndarray,
    edits: Sequence[Edit],
    finite: np.ndarray | None = None,
) -> dict[str, Values]:
    """Scores of results, one per edit.

    Args:
        pixels, sources: uint8 (n, h, w, 3).
        finite: bool (n), whether the networks gave numbers; None: they did.
    """
    truths = np.stack([render(edit.target) for edit in edits])
    each, whole = right(predicted(model, size, pixels), label_rows([edit.target for edit in edits]))
    about = [list(ATTRIBUTES).index(edit.attribute) for edit in edits]
    outside = ~np.stack([edit.mask for edit in edits])
    return {
        "success": whole,
        "changed": each[np.arange(len(edits)), about],
        "psnr_to_truth": psnr_of(squared_error(pixels, truths)),
        "perceptual_to_truth": distance(model, size, pixels, truths),
        "psnr_outside_mask": psnr_of(squared_error(pixels, sources, outside)),
        "finite": np.ones(len(edits)) if finite is None else finite.astype(np.float64),
    }


def estimates(
    scores: Mapping[str, Values], groups: np.ndarray, where: np.ndarray | None = None
) -> dict[str, Interval]:
    """Each score's mean over the edits that count, all those of a scene going together."""
    kept = np.ones(len(groups), bool) if where is None else where
    return {
        name: (estimate_share if name in SHARES else estimate)(values[kept], groups[kept])
        for name, values in scores.items()
    }


def by_kind(row: Results, scores: Mapping[str, Values], tasks: Sequence[Task]) -> Iterator[Results]:
    """A row for each kind of edit, and for all."""
    groups = np.array([task.number for task in tasks])
    kinds = np.array([task.edit.kind for task in tasks])
    for kind in (*EDITS, ALL):
        where = np.full(len(tasks), True) if kind == ALL else kinds == kind
        if where.any():
            yield row | {"kind": kind} | estimates(scores, groups, where)
