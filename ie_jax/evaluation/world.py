"""The protocol of the embedded world: reconstruction, edits with exact ground truth, trade-offs.

`evaluate` gives what is written to results.json:

    protocol, model, seed  as asked for; `scenes` the number of scenes
    settings               `WorldConfig`
    files                  file name of each method's forward model
    seconds                of each stage
    versions, device       added by the command
    classifier             how well the judge knows real pictures: `count`, and `accuracy` by
                           attribute and for `all` of a picture's
    samples                a list: the same of pictures made from noise, by `method` (teacher, by
                           DDIM; backward, the consistency model), with `guidance` and `steps`
    reconstruction         a list, one entry per row: `method`, `start_timestep`, `start_noise`
                           (null for autoencoder and DDIM); `mse` on [-1, 1], `psnr` and
                           `perceptual` to the picture, `psnr_to_autoencoder`, `noise_std`
    edits                  a list: `method`, `guided`, `start_timestep`, `start_noise` (null for the
                           bound, the truth through the autoencoder), `kind` (one of `EDITS`, or
                           `all`), and scores
    tradeoff               `scenes`, and `points`, a list: `method`, `sweep` (strength, bound or
                           schedule), `value`, `guided`, and scores

Scores are `success` (all attributes of the target right by the classifier), `changed` (the one that
the edit is about), `psnr_to_truth` and `perceptual_to_truth` (to the exact edit),
`psnr_outside_mask` (to the source, where source and truth cannot differ), and `finite` (whether the
networks gave numbers). Every measured number is an `Interval`: `mean`, `low` and `high` of its 95 %
interval over scenes (of shares by Wilson), `count`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import EDITS, Edit, draw_edit, possible
from ie_jax.data.world.scenes import ATTRIBUTES, TRAINING_SEEDS, Scene, draw_scene, labels
from ie_jax.editing.config import EditConfig, GuiderConfig, GuiderOptions, RescalingConfig
from ie_jax.errors import UserError
from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.metrics.attributes import predict, right
from ie_jax.evaluation.metrics.means import Interval, Values, estimate, estimate_share
from ie_jax.evaluation.metrics.pixels import psnr_of, squared_error
from ie_jax.evaluation.model import (
    OURS,
    Model,
    Pair,
    autoencode,
    backward_sample,
    edit,
    load_model,
    perceptual_distance,
    reconstruct,
    start_noise,
    teacher_reconstruct,
    teacher_sample,
)
from ie_jax.evaluation.world_plots import slashed
from ie_jax.methods.guidance import Strength
from ie_jax.progress import Stages

Results = dict[str, Any]
Pictures = dict[str, np.ndarray]
"""uint8 (n, h, w, 3) by what they are."""

AUTOENCODER, DDIM, BOUND = "autoencoder", "DDIM", "truth through the autoencoder"
ALL = "all"
PER_KIND = 2
"""Edits of each kind that pictures show."""
SHOWN = 8
"""Reconstructions that pictures show."""


SHARES = ("success", "changed", "finite")
"""Scores that are 0 or 1 of an edit."""

GUIDERS = (GuiderConfig("features_map_l2", (8.0, 8.0, 8.0, 0.0), GuiderOptions(block="mid")),)
RESCALING = RescalingConfig(init_setup=(0.0, 0.5))
"""What keeps most of the source in this world and lets edits be. The published guiders and bound
hold many of them back."""


@dataclass(frozen=True)
class WorldConfig:
    """What scenes are drawn, and how reconstructions, edits and samples are made."""

    places: int = 1
    """How many objects a scene has room for, 1 or 2."""
    guidance: tuple[float, ...] = (0.0, 1.0, 1.0, 1.0)
    """Scale w of each generation step of edits."""
    guiders: tuple[GuiderConfig, ...] = GUIDERS
    """Of guided edits, as a YAML list of {name, g_scale, kwargs}."""
    noise_rescaling_setup: RescalingConfig = RESCALING
    match_statistics: bool = False
    """Give edits the source's brightness and contrast."""
    ddim_steps: int = 50
    """Of the teacher, in either direction."""
    sample_guidance: float = 3.0
    """Scale w of the teacher's samples, and of the backward model's beside them."""
    sweep_scenes: int = 128
    """Scenes of the trade-off curves, one edit of each."""
    sweep_batch: int = 8
    """Of these, how many at once; all strengths of a scene are one call."""
    sweep_methods: tuple[Literal["iCD", "ours"], ...] = ("ours",)
    """Whose trade-off."""
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
    """Factors of the guiders' weights."""
    bounds: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 2.0)
    """Upper bounds of the gradient's ratio."""
    schedules: tuple[tuple[float, ...], ...] = (
        (0.0, 1.0, 1.0, 1.0),
        (0.0, 1.0, 2.0, 3.0),
        (0.0, 2.0, 3.0, 5.0),
        (0.0, 3.0, 3.0, 3.0),
        (0.0, 7.0, 11.0, 19.0),
        (0.0, 19.0, 19.0, 19.0),
    )
    """Guidance schedules, each with and without guiders."""

    def __post_init__(self) -> None:
        check_places(self.places)
        if not self.guiders:
            raise UserError("guiders is empty: guided edits need one")
        if any(len(schedule) != len(self.guidance) for schedule in self.schedules):
            raise UserError("schedules must have as many values each as guidance")
        if min(self.sweep_scenes, self.sweep_batch) < 1:
            raise UserError("sweep_scenes and sweep_batch must be positive")
        if self.ddim_steps < 1 or 1000 % self.ddim_steps:
            raise UserError(f"ddim_steps {self.ddim_steps} must divide 1000")
        if min(self.bounds, default=0) < self.noise_rescaling_setup.bounds[0]:
            raise UserError("bounds must not lie below the lower bound of noise_rescaling_setup")

    def edit_config(self, model: str) -> EditConfig:
        """The guided editor's."""
        return EditConfig(
            model=model,
            cfg_schedule=self.guidance,
            guiders=self.guiders,
            noise_rescaling_setup=self.noise_rescaling_setup,
            match_statistics=self.match_statistics,
        )


@dataclass(frozen=True)
class Source:
    """Scenes with all that the networks take of them, (n, ...)."""

    scenes: Sequence[Scene]
    pixels: np.ndarray
    ids: np.ndarray
    noise: np.ndarray
    """At the start of inversion."""


@dataclass(frozen=True)
class Task:
    """An edit of a scene by its number."""

    number: int
    edit: Edit


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


def draw_source(model: Model, seed: int, count: int, places: int) -> Source:
    """The first scenes of a seed, with room for so many objects."""
    scenes = [draw_scene(seed, i, places) for i in range(count)]
    return Source(
        scenes,
        np.stack([render(scene) for scene in scenes]),
        model.plain.ids([caption(scene) for scene in scenes]),
        start_noise(model, seed, range(count)),
    )


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


def reconstruction_row(
    model: Model,
    size: int,
    source: Source,
    bound: np.ndarray,
    pixels: np.ndarray,
    std: np.ndarray | None = None,
) -> Results:
    """The measures of one way to reconstruct.

    Args:
        bound: what the autoencoder alone gives.
        std: deviation of each scene's noise.
    """
    mse = squared_error(pixels, source.pixels)
    none = estimate(np.empty(0))
    return {
        "mse": estimate(mse),
        "psnr": estimate(psnr_of(mse)),
        "psnr_to_autoencoder": (
            none if pixels is bound else estimate(psnr_of(squared_error(pixels, bound)))
        ),
        "perceptual": estimate(distance(model, size, pixels, source.pixels)),
        "noise_std": none if std is None else estimate(std),
    }


def measure_reconstruction(
    model: Model, config: WorldConfig, size: int, source: Source, stages: Stages
) -> tuple[list[Results], Pictures]:
    """The reconstruction table, and the first pictures of its main rows."""
    weights, models = model.plain.weights, model.models
    rows: list[Results] = []
    shown: Pictures = {"source": source.pixels[:SHOWN]}

    def add(row: Results, pixels: np.ndarray, std: np.ndarray | None, name: str | None) -> None:
        rows.append(row | reconstruction_row(model, size, source, bound, pixels, std))
        if name:
            shown[name] = pixels[:SHOWN]

    with stages("reconstruct: autoencoder"):
        bound = in_batches(partial(autoencode, models, weights), size, source.pixels)
        nothing = {"start_timestep": None, "start_noise": None}
        add({"method": AUTOENCODER, **nothing}, bound, None, AUTOENCODER)
    with stages(f"reconstruct: DDIM, {config.ddim_steps} steps there and back"):
        teacher = partial(teacher_reconstruct, models, config.ddim_steps, weights)
        pixels, std = in_batches(teacher, size, source.pixels, source.ids)
        add({"method": DDIM, **nothing}, pixels, std, DDIM)
    main = {pair: name for name, pair in model.published.items()}
    for pair in model.pairs:
        noise = "with" if pair.start_noise else "without"
        with stages(f"reconstruct: {pair.method}, start {pair.start_timestep} {noise} noise"):
            run = partial(reconstruct, model, pair)
            pixels, std = in_batches(run, size, source.pixels, source.ids, source.noise)
            add(asdict(pair), pixels, std, main.get(pair))
    return rows, shown


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


def evaluate(
    name: str, scenes: int, seed: int, batch_size: int, config: WorldConfig, stages: Stages
) -> tuple[Results, dict[str, Pictures]]:
    """The whole protocol.

    Args:
        name: the model, see `load_model`.
        scenes: how many, at least 1.
        seed: of the scenes, outside of `TRAINING_SEEDS`.

    Returns:
        The results (see this module), and pictures of `samples`, `reconstruction` and `edits`,
        columns by name.

    Raises:
        UserError: the seed is one of training, a number is not positive, or the model cannot be
            used.
    """
    check_seed(seed)
    if min(scenes, batch_size) < 1:
        raise UserError("scenes and batch_size must be positive")
    with stages(f"load {name}"):
        model = load_model(name, config.edit_config(name))
    source = draw_source(model, seed, scenes, config.places)
    with stages("classify real pictures"):
        real = accuracy(model, batch_size, source.pixels, source.scenes)
    reconstruction, reconstructed = measure_reconstruction(
        model, config, batch_size, source, stages
    )
    with stages(f"samples of teacher and backward model ({scenes})"):
        samples, sampled = measure_samples(model, config, batch_size, source)
    edits, edited = measure_edits(model, config, batch_size, source, seed, stages)
    tradeoff = measure_trade_off(model, config, batch_size, source, seed, stages)
    results = {
        "protocol": "world",
        "model": name,
        "seed": seed,
        "scenes": scenes,
        "settings": asdict(config),
        "files": dict(model.files),
        "seconds": {stage: round(value, 1) for stage, value in stages.seconds.items()},
        "classifier": {"count": scenes, "accuracy": real},
        "samples": samples,
        "reconstruction": reconstruction,
        "edits": edits,
        "tradeoff": tradeoff,
    }
    return results, {"samples": sampled, "reconstruction": reconstructed, "edits": edited}
