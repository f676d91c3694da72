"""Settings of methods for a model of the world, chosen on scenes that no comparison shows.

Of a method's grid the setting is taken that comes nearest to the exact result (PSNR) among those
whose success is at most `SLACK` below the best of the grid: an edit must be done first.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ie_jax.config import build, merged, parse, plain
from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import draw_scene
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import check_place
from ie_jax.errors import UserError
from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.compare import ALL, refuse_unknown
from ie_jax.evaluation.drawn import config_of_world
from ie_jax.evaluation.metrics.table import Judges, Pair, measured
from ie_jax.evaluation.runner import write
from ie_jax.evaluation.world.config import GUIDERS
from ie_jax.evaluation.world.model import model_folder
from ie_jax.evaluation.world.tasks import Task, check_seed, one_edit_each
from ie_jax.progress import Stages
from ie_jax.weights.layout import PARTS
from ie_jax.weights.load import load_pipeline, use_compilation_cache

SLACK = 0.1
SCORES = ("world_success", "psnr_truth")
DESCRIPTION = """tune: try a small grid of settings of each method on drawn scenes, and write the
best of each into a YAML file for `world --methods ... --settings FILE`."""


def grid(fixed: Mapping[str, Any], **lists: Sequence[Any]) -> list[dict[str, Any]]:
    """Below `baseline`, `fixed` and each combination of the lists' values."""
    rows = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    return [{"baseline": {**fixed, **row}} for row in rows]


SCHEDULES = ([0.0] * 4, [0.0, 0.5, 0.5, 0.5], [0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 2.0, 3.0])
TWENTY: dict[str, Any] = {"steps": 20}
SHARES = ({"cross_steps": 0.4, "self_steps": 0.2}, {"cross_steps": 0.8, "self_steps": 0.6})
UP_AND_MIDDLE: list[Any] = [{"name": "features_map_l2", "g_scale": 8.0}, *map(plain, GUIDERS)]
PLAIN = grid(TWENTY, guidance=(1.0, 2.0, 3.0, 5.0))
TAKEN = [row for shares in SHARES for row in grid(TWENTY | shares, guidance=(1.0, 2.0))]
GRIDS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "ours": [{"cfg_schedule": schedule} for schedule in SCHEDULES],
    "ours-guided": [
        {
            "method": "ours",
            "cfg_schedule": schedule,
            "guiders": [guider],
            "noise_rescaling_setup": {"init_setup": [0.0, upper]},
        }
        for guider in UP_AND_MIDDLE
        for schedule in SCHEDULES
        for upper in (0.25, 0.5)
    ],
    **dict.fromkeys(("ddim", "npi", "nti", "renoise"), PLAIN),
    **dict.fromkeys(("p2p", "p2p-direct", "p2p-npi"), TAKEN),
    "masactrl": grid(TWENTY, guidance=(1.0, 2.0), first_step=(4, 10), first_layer=(4,)),
    "guide-and-rescale": [
        row
        for weights in ({"layout": 3e2, "appearance": 5.0}, {"layout": 3e3, "appearance": 50.0})
        for row in grid(TWENTY | weights, guidance=(2.0, 4.0))
    ],
    "infedit": [row for shares in SHARES for row in grid(shares, guidance=(1.0, 2.3))],
    "icd": [
        {"forward": PARTS["forward"], "cfg_schedule": schedule, "baseline": shares}
        for schedule in SCHEDULES[1:3]
        for shares in SHARES
    ],
    "p2p-nti": TAKEN[:2],
    "turboedit": grid({}, guidance=(1.0, 1.5, 2.0, 3.0)),
    "gnri": grid({}, guidance=(1.0, 1.2, 2.0, 3.0)),
    "renoise-turbo": grid({}, guidance=(1.2, 2.0, 3.0)),
    "postedit": grid({}, guidance=(1.0, 2.0, 4.0), kept=(0.0, 0.25)),
}
"""Of each method, the settings that are tried. Those of one method share compiled programs, so
steps are not among them: 20 in place of 50, as the model and the machine are small."""


@dataclass(frozen=True)
class TuneRequest:
    """What to try, and where the best goes."""

    model: str = "world"
    """As of `world`."""
    methods: tuple[str, ...] = tuple(GRIDS)
    """Whose settings."""
    scenes: int = 32
    """How many scenes, one edit of each."""
    scene_seed: int = 3026
    """Of the scenes; another than those that are reported."""
    batch_size: int = 16
    """Edits at once."""
    output: str = "settings.yaml"
    """The file of the best settings; all that was tried goes to a .jsonl beside it."""
    overwrite: bool = False
    """Replace the file, whoever wrote it."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class NoConfig:
    """Nothing."""


def tune(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: bad input, or the file cannot be written.
    """
    request, _, _ = parse(argv, DESCRIPTION, TuneRequest, NoConfig)
    refuse_unknown("methods", request.methods, tuple(GRIDS))
    check_seed(request.scene_seed)
    if min(request.scenes, request.batch_size) < 1:
        raise UserError("--scenes and --batch-size must be positive")
    output = Path(request.output)
    tried = output.with_suffix(".jsonl")
    for path in (output, tried):
        check_place(path)
        if path.exists() and not request.overwrite:
            raise UserError(f"{path}: exists already: name another --output, or --overwrite")
    scenes = [draw_scene(request.scene_seed, i) for i in range(request.scenes)]
    tasks = one_edit_each(scenes, request.scene_seed)
    use_compilation_cache()
    rows: list[dict[str, Any]] = []
    chosen = {}
    stages = Stages(request.quiet)
    for name in request.methods:
        with stages(f"tune {name}"):
            rows += (found := list(tried_settings(name, request, tasks)))
        chosen[name] = plain(best(found)["settings"])
        write(tried, "".join(json.dumps(row) + "\n" for row in rows))
        write(output, yaml.safe_dump(chosen, default_flow_style=None, sort_keys=False))
    print(f"wrote {output} {tried}")


def best(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row that this module says."""
    most = max(row["world_success"] for row in rows)
    near = [row for row in rows if row["world_success"] >= most - SLACK]
    return max(near, key=lambda row: row["psnr_truth"])


def tried_settings(
    name: str, request: TuneRequest, tasks: Sequence[Task]
) -> Iterator[dict[str, Any]]:
    """Each setting of a method's grid, with its scores."""
    usual = {"method": name} if name in ALL else {}
    base = plain(config_of_world(EditConfig(model=request.model), ()))
    judges = Judges(world=model_folder(request.model))
    pipeline = None
    programs: dict[Any, Any] = {}
    for settings in GRIDS[name]:
        config = build(EditConfig, merged(merged(base, usual), settings), name)
        if pipeline is None:
            pipeline = load_pipeline(config.model, config.forward, config.backward, progress=False)
        editor = Editor(pipeline, config)
        editor.programs = programs.setdefault(editor.models, editor.programs)
        yield {"method": name, "settings": settings, **scores(editor, judges, tasks, request)}


def scores(
    editor: Editor, judges: Judges, tasks: Sequence[Task], request: TuneRequest
) -> dict[str, float]:
    """The mean of each of `SCORES` over edits."""
    edits = [task.edit for task in tasks]
    sources, targets = ([caption(getattr(x, y)) for x in edits] for y in ("source", "target"))
    pictures = np.stack([render(edit.source) for edit in edits])

    def run(numbers: np.ndarray) -> np.ndarray:
        texts, wanted = ([x[i] for i in numbers] for x in (sources, targets))
        edit = editor.apply(list(pictures[numbers]), texts, [[x] for x in wanted], list(numbers))
        return np.asarray(edit.pixels)[:, 0]

    results = in_batches(run, request.batch_size, np.arange(len(edits)))
    rows = [
        measured(judges, Pair(x, y, s, t, truth=render(edit.target)), SCORES)
        for x, y, s, t, edit in zip(pictures, results, sources, targets, edits, strict=True)
    ]
    return {name: round(float(np.mean([row[name] for row in rows])), 4) for name in SCORES}
