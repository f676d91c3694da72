"""Edits of scenes beside their exact results."""

from dataclasses import asdict
from functools import partial

import numpy as np

from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.report import Pictures
from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.model import Model, Pair, autoencode, edit
from ie_jax.evaluation.world.scores import Results, by_kind, score_edits
from ie_jax.evaluation.world.tasks import Source, all_edits, some_of_each_kind
from ie_jax.methods.guidance import Strength
from ie_jax.progress import Stages

BOUND = "truth through the autoencoder"

PER_KIND = 2
"""Edits of each kind that pictures show."""


def measure_edits(
    model: Model, config: WorldConfig, size: int, source: Source, seed: int, stages: Stages
) -> tuple[list[Results], Pictures]:
    """The editing table, and pictures of some edits of each kind."""
    tasks = all_edits(source.scenes, seed)
    edits = [task.edit for task in tasks]
    at = np.array([task.number for task in tasks])
    pixels, ids, noise = source.pixels[at], source.ids[at], source.noise[at]
    truths = np.stack([render(edit.target) for edit in edits])
    targets = model.plain.ids([caption(edit.target) for edit in edits])[:, None]
    picked = some_of_each_kind(edits, PER_KIND)
    rows: list[Results] = []
    shown: Pictures = {"source": pixels[picked]}
    strengths = {
        guided: editor.strength for guided, editor in ((False, model.plain), (True, model.guided))
    }
    guidance = np.asarray(config.guidance, np.float32)
    with stages("edits: the bound"):
        bound = in_batches(partial(autoencode, model.models, model.plain.weights), size, truths)
        row = {"method": BOUND, "start_timestep": None, "start_noise": None, "guided": None}
        rows += by_kind(row, score_edits(model, size, bound, pixels, edits), tasks)
    for name, pair in model.published.items():
        for guided, strength in strengths.items():
            style = "guided" if guided else "plain"
            with stages(f"edits: {name}, {style} ({len(tasks)})"):

                def run(
                    pixels: np.ndarray,
                    ids: np.ndarray,
                    noise: np.ndarray,
                    targets: np.ndarray,
                    pair: Pair = pair,
                    guided: bool = guided,
                    strength: Strength = strength,
                ) -> tuple[np.ndarray, np.ndarray]:
                    return edit(
                        model, pair, guided, pixels, ids, noise, targets, guidance, strength
                    )

                result, finite = in_batches(run, size, pixels, ids, noise, targets)
                scores = score_edits(model, size, result[:, 0], pixels, edits, finite[:, 0])
            row = asdict(pair) | {"guided": guided}
            rows += by_kind(row, scores, tasks)
            shown[f"{name} {style}"] = result[picked, 0]
    return rows, shown | {"truth": truths[picked]}
