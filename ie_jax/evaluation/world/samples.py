"""Pictures from noise: whether they show what their captions say."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.report import Pictures, slashed
from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.model import OURS, Model, backward_sample, teacher_sample
from ie_jax.evaluation.world.scores import Results, accuracy
from ie_jax.evaluation.world.tasks import SHOWN, Source


def measure_samples(
    model: Model, config: WorldConfig, size: int, source: Source
) -> tuple[list[Results], Pictures]:
    """How well pictures of captions, made from noise, show what the captions say; and some."""
    models, weights = model.models, model.plain.weights
    w = config.sample_guidance
    teacher = partial(teacher_sample, models, config.ddim_steps, weights, w=jnp.float32(w))

    def backward(guidance: Sequence[float]) -> tuple[str, Any, int, Callable[..., Any]]:
        schedule = model.schedule(model.published[OURS], np.asarray(guidance))
        run = partial(backward_sample, models, weights, schedule=schedule)
        return "backward", list(guidance), len(guidance), run

    same = [w] * len(config.guidance)
    ways: list[tuple[str, Any, int, Callable[..., Any]]] = [
        ("teacher", w, config.ddim_steps, teacher),
        backward(same),
        backward(config.guidance),
    ]
    rows: list[Results] = []
    shown: Pictures = {"one of these words": source.pixels[:SHOWN]}
    for method, scale, steps, run in ways:
        pixels = in_batches(run, size, source.ids, source.noise)
        rows.append(
            {
                "method": method,
                "guidance": scale,
                "steps": steps,
                "count": len(pixels),
                "accuracy": accuracy(model, size, pixels, source.scenes),
            }
        )
        shown[f"{method}, w = {slashed(scale)}"] = pixels[:SHOWN]
    return rows, shown
