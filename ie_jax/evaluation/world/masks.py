"""What masks and strengths do, on the embedded world, where the true mask of every edit is known.

python -m ie_jax.evaluation masks --scenes 128 --seed 2026 --output masks
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from ie_jax.config import parse
from ie_jax.data.masks import AUTO, mask_picture
from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import draw_scene
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import encoded, write_errors
from ie_jax.errors import UserError
from ie_jax.evaluation.batches import in_batches
from ie_jax.evaluation.metrics.means import Values
from ie_jax.evaluation.metrics.pixels import squared_error
from ie_jax.evaluation.report import Column, Table, comma_separated, markdown, sheet
from ie_jax.evaluation.world.model import Model, load_model
from ie_jax.evaluation.world.scores import ALL, by_kind, score_edits
from ie_jax.evaluation.world.tasks import (
    Task,
    all_edits,
    check_places,
    check_seed,
    some_of_each_kind,
)
from ie_jax.products import check_folder, leave
from ie_jax.progress import Stages

DESCRIPTION = """masks: edit scenes of the embedded world without a mask, in the mask that is found
and in the true one, and at several strengths; measure each result against the exact one."""
TRUE, NONE = "true", "none"
EQUAL = 60.0
"""dB that equal pictures get, whose PSNR is infinite."""
SHOWN = 2
"""Edits of each kind in the picture."""
KIND = Column("edit", "kind")
COLUMNS = (
    Column("success %", "success", 1, True),
    Column("changed right %", "changed", 1, True),
    Column("PSNR outside the mask", "psnr_outside_mask"),
    Column("PSNR to truth", "psnr_to_truth"),
    Column("perceptual to truth", "perceptual_to_truth", 4),
    Column("distance to source", "distance", 1),
)


@dataclass(frozen=True)
class MasksRequest:
    """What to measure, and where the results go."""

    scenes: int = 128
    seed: int = 2026
    """Of the scenes: one that no model was trained on."""
    places: int = 1
    """How many objects a scene has room for, 1 or 2."""
    margins: tuple[int, ...] = ()
    """Pixels by which true masks are drawn too wide, as a person might: a row for each."""
    strengths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    batch_size: int = 16
    """Edits at once."""
    output: str = "masks"
    """A folder for tables and pictures."""
    overwrite: bool = False
    """Write into a folder that holds other things than an earlier run's."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class MasksConfig:
    """How the scenes are edited."""

    edit: EditConfig = field(default_factory=lambda: EditConfig(match_statistics=False))


@dataclass(frozen=True)
class Edits:
    """All edits of all scenes, (n, ...)."""

    tasks: Sequence[Task]
    pixels: np.ndarray
    truths: np.ndarray
    masks: np.ndarray
    """True where source and truth may differ."""


def draw(seed: int, scenes: int, places: int) -> Edits:
    """Every possible edit of the first scenes of a seed, with room for so many objects."""
    tasks = all_edits([draw_scene(seed, i, places) for i in range(scenes)], seed)
    edits = [task.edit for task in tasks]
    return Edits(
        tasks,
        np.stack([render(edit.source) for edit in edits]),
        np.stack([render(edit.target) for edit in edits]),
        np.stack([edit.mask for edit in edits]),
    )


def masks_of(edits: Edits, margins: Sequence[int]) -> dict[str, Any]:
    """The masks to compare, by name: None, `auto`, or those of all edits, bool (n, h, w)."""
    wider = {
        f"{TRUE} + {margin} px": np.stack(
            [binary_dilation(x, iterations=margin) for x in edits.masks]
        )
        for margin in margins
    }
    return {NONE: None, AUTO: AUTO, TRUE: edits.masks, **wider}


def edited(
    editor: Editor, edits: Edits, size: int, mask: Any, strengths: Sequence[float], bar: Any
) -> Any:
    """Results, uint8 (n, strengths, h, w, 3), and where there is a mask those, bool (n, h, w).

    Args:
        mask: see `masks_of`.
    """
    ahead = iter(range(0, len(edits.tasks), size))

    def run(rows: np.ndarray) -> Any:
        tasks = [edits.tasks[i] for i in rows]
        given = list(mask[rows]) if isinstance(mask, np.ndarray) else mask
        inversion = editor.invert(
            list(edits.pixels[rows]),
            [caption(task.edit.source) for task in tasks],
            [task.number for task in tasks],
        )
        targets = [[caption(task.edit.target)] * len(strengths) for task in tasks]
        result = editor.edit(inversion, targets, strength=list(strengths), mask=given)
        bar.update(min(size, len(edits.tasks) - next(ahead)))
        return result.images if result.masks is None else (result.images, result.masks[:, 0])

    return in_batches(run, size, np.arange(len(edits.tasks)))


def scores(model: Model, size: int, pixels: np.ndarray, edits: Edits) -> dict[str, Values]:
    """Measures of each result, see `world.score_edits`; and how far it is from the source."""
    found = score_edits(model, size, pixels, edits.pixels, [task.edit for task in edits.tasks])
    found["psnr_outside_mask"] = np.minimum(found["psnr_outside_mask"], EQUAL)
    return found | {"distance": 127.5 * np.sqrt(squared_error(pixels, edits.pixels))}


def union_shares(masks: np.ndarray, truths: np.ndarray) -> Values:
    """Intersection over union of pairs of masks (n, h, w); NaN where both are empty."""
    both, either = ((f(masks, truths)).sum((1, 2)) for f in (np.logical_and, np.logical_or))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def measure(
    editor: Editor, model: Model, edits: Edits, request: MasksRequest
) -> tuple[dict[str, list[Any]], dict[str, np.ndarray]]:
    """Rows of both tables, and the results at full strength by mask."""
    size, rows = request.batch_size, {"mask": list[Any](), "strength": list[Any]()}
    shown = {"source": edits.pixels}
    masks = masks_of(edits, request.margins)
    total = len(edits.tasks) * (len(masks) + 1)
    with tqdm(total=total, desc="edits", unit="edit", disable=request.quiet) as bar:
        for name, mask in masks.items():
            result = edited(editor, edits, size, mask, [1.0], bar)
            images, found = (result, None) if name == NONE else result
            values = scores(model, size, images[:, 0], edits)
            none = np.full(len(edits.tasks), np.nan)
            values["iou"] = none if found is None else union_shares(found, edits.masks)
            rows["mask"] += by_kind({"mask": name}, values, edits.tasks)
            if name == AUTO and found is not None:
                shown["found mask"] = mask_picture(found)
            shown[f"mask: {name}"] = images[:, 0]
        images = edited(editor, edits, size, None, request.strengths, bar)
        for i, strength in enumerate(request.strengths):
            values = scores(model, size, images[:, i], edits)
            rows["strength"] += by_kind({"strength": strength}, values, edits.tasks)
            shown[f"strength {strength:g}"] = images[:, i]
    return rows, {**shown, "truth": edits.truths}


def pictures(shown: Mapping[str, np.ndarray], edits: Edits) -> dict[str, np.ndarray]:
    """Sheets of some edits of each kind: by mask and by strength."""
    picked = some_of_each_kind([task.edit for task in edits.tasks], SHOWN)

    def some(word: str) -> dict[str, np.ndarray]:
        names = [name for name in shown if name in ("source", "truth") or word in name]
        return {name: shown[name][picked].astype(np.uint8) for name in names}

    return {"masks": sheet(some("mask")), "strengths": sheet(some("strength"))}


def masks(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: bad input, before anything is written.
    """
    request, config, _ = parse(argv, DESCRIPTION, MasksRequest, MasksConfig)
    check_seed(request.seed)
    check_places(request.places)
    if min(request.scenes, request.batch_size, *request.margins) < 1 or not request.strengths:
        raise UserError("scenes, batch_size, margins and strengths must be positive")
    output = Path(request.output)
    record = output / "results.json"
    check_folder(output, record, request.overwrite)
    model = load_model(config.edit.model, config.edit)
    announce = Stages(request.quiet).before_the_bar
    editor = Editor.from_pretrained(config=config.edit, progress=False, announce=announce)
    edits = draw(request.seed, request.scenes, request.places)
    rows, shown = measure(editor, model, edits, request)
    tables = [
        Table(name, title, (Column(name, name), KIND, *COLUMNS, *more), rows[name])
        for name, title, more in (
            ("mask", "Edits by mask", (Column("IoU with the true mask", "iou", 3),)),
            ("strength", "Edits by strength", ()),
        )
    ]
    files = {output / f"{name}.png": image for name, image in pictures(shown, edits).items()}
    contents = {path: encoded(image, path) for path, image in files.items()}
    for table in tables:
        contents[output / f"{table.name}.csv"] = comma_separated(table).encode()
        short = replace(table, rows=[row for row in table.rows if row["kind"] == ALL])
        contents[output / f"{table.name}.md"] = markdown(short).encode()
        print(markdown(short))
    with write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    leave(contents, record, {"request": asdict(request), "config": asdict(config), **rows})
    print("wrote", *contents, record)
