"""The trade-off between doing an edit and keeping the rest, over strengths of guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ie_jax.data.world.captions import caption
from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.world.config import WorldConfig
from ie_jax.evaluation.world.model import Model, edit
from ie_jax.evaluation.world.scores import Results, estimates, score_edits
from ie_jax.evaluation.world.tasks import Source, one_edit_each
from ie_jax.methods.guidance import Strength
from ie_jax.progress import Stages


@dataclass(frozen=True)
class Point:
    """One way to edit that the trade-off measures."""

    sweep: Literal["strength", "bound", "schedule"]
    value: Any
    guided: bool
    guidance: tuple[float, ...]
    factor: float
    """Of the guiders' weights."""
    upper: float


def trade_off_points(config: WorldConfig) -> list[Point]:
    """All that the trade-off measures."""
    upper, w = config.noise_rescaling_setup.bounds[1], config.guidance
    return [
        *(Point("strength", x, True, w, x, upper) for x in config.strengths),
        *(Point("bound", x, True, w, 1.0, x) for x in config.bounds),
        *(
            Point("schedule", schedule, guided, schedule, float(guided), upper)
            for guided in (False, True)
            for schedule in config.schedules
        ),
    ]


def measure_trade_off(
    model: Model, config: WorldConfig, size: int, source: Source, seed: int, stages: Stages
) -> Results:
    """The trade-off between doing the edit and keeping the rest, over strengths of guidance."""
    count = min(len(source.scenes), config.sweep_scenes)
    tasks = one_edit_each(source.scenes[:count], seed)
    edits, groups = [task.edit for task in tasks], np.arange(count)
    points = trade_off_points(config)
    ids = model.plain.ids([caption(edit.target) for edit in edits])
    targets = np.repeat(ids[:, None], len(points), axis=1)
    # Every point is one of the edits axis, so that one call makes all of them of some scenes.
    guidance = np.array([point.guidance for point in points], np.float32)
    strength = Strength(
        jnp.asarray(np.array([point.factor for point in points], np.float32))[:, None, None]
        * model.guided.strength.scales[None],
        model.guided.strength.lower,
        jnp.asarray(np.array([point.upper for point in points], np.float32)),
    )
    rows: list[Results] = []
    for name in config.sweep_methods:
        pair = model.published[name]
        run: Callable[..., Any] = partial(
            edit, model, pair, True, guidance=guidance, strength=strength
        )
        with stages(f"trade-off: {name} ({count} edits in {len(points)} ways)"):
            arrays = (source.pixels[:count], source.ids[:count], source.noise[:count], targets)
            results, finite = in_batches(run, config.sweep_batch, *arrays)
            for i, point in enumerate(points):
                scores = score_edits(model, size, results[:, i], arrays[0], edits, finite[:, i])
                facts = {"sweep": point.sweep, "value": point.value, "guided": point.guided}
                rows.append({"method": name} | facts | dict(estimates(scores, groups)))
    return {"scenes": count, "points": rows}
