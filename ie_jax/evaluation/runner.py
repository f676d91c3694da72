"""A protocol's images through methods and metrics: each result is kept as it is made, so that a run
that ended, however, goes on when it is started again.

An output folder holds

    run.json       what all results have in common: protocol, data, model, seed, settings
    METHOD/        each result, NAME.png, with its record, NAME.json
    METHOD.jsonl   the metrics, a line for each image

Several processes share the images. All but the first write to METHOD.PROCESS.jsonl, which is joined
to METHOD.jsonl at the end.
"""

import glob
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ie_jax.config import build, plain
from ie_jax.data.images import load_image, read_rgb, resized
from ie_jax.data.masks import white
from ie_jax.editing.command import versions
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import write_errors
from ie_jax.editing.jobs import Job
from ie_jax.editing.many import READERS, ahead, edit_many, output_paths, record_of, told
from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.table import Judges, Pair, measured
from ie_jax.files import appearing_whole, parse_json
from ie_jax.products import OWN, is_finished, read_record

RUN = "run.json"


@dataclass(frozen=True)
class Case:
    """One image of a protocol."""

    job: Job
    kind: str
    """Of the edit; empty if there is but one."""
    mask: np.ndarray | str | None = None
    """See `Pair`; or a picture's file, white where the image is to be edited."""
    truth: str | None = None
    """The file of a picture: what the result should be."""


@dataclass(frozen=True)
class Run:
    """What all methods of a run share."""

    folder: Path
    cases: Sequence[Case]
    judges: Judges
    metrics: Sequence[str]
    batch_size: int
    side: int | None = None
    """Of the square on which metrics are measured; results of another size are resized. None: the
    results' own."""
    load: Callable[[str, int], np.ndarray] = load_image
    """Reads a picture for networks that take so many pixels of a side."""
    process: int = 0
    """Of `processes`, which share the images."""
    processes: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class Line:
    """What is known of one result."""

    name: str
    kind: str
    sha256: str
    """Of the result's file."""
    seconds: float | None
    """Of the edit, without compilation. None: it was among the first of a run."""
    network_calls: int
    metrics: Mapping[str, Any]
    """null where nothing is left of a mask, "inf" where PSNR has no error."""


def claim(folder: Path, facts: Mapping[str, Any], methods: Mapping[str, Any]) -> None:
    """See that a folder is empty or holds results of the same run, and note whose they are.

    Args:
        methods: settings by name; further ones may come to those that are there.

    Raises:
        UserError: it holds other things, or results of other facts; or it cannot be written.
    """
    record = folder / RUN
    facts, methods = plain(facts), plain(methods)
    with write_errors(folder):
        held, known = any(folder.iterdir()), read_record(record)
    if held:
        if not known:
            raise UserError(f"{folder}: holds files that are not from this program: name another")
        there = known.get("methods", {})
        pairs = {name: (known.get(name), value) for name, value in facts.items()}
        pairs |= {name: (there[name], x) for name, x in methods.items() if name in there}
        for name, (old, new) in pairs.items():
            if old != new:
                raise UserError(
                    f"{folder}: holds results of {difference(name, old, new)}: name another "
                    "--output"
                )
        methods = there | methods
    write(record, json.dumps({**OWN, **facts, "methods": methods}, indent=1) + "\n")


def difference(name: str, old: Any, new: Any) -> str:
    """Two values of one setting, in words; of dicts the first that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(x for x in {**old, **new} if old.get(x) != new.get(x))
        return difference(inner, old.get(inner), new.get(inner))
    return f"{name} {json.dumps(old)}, not {json.dumps(new)}"


def evaluate_method(run: Run, name: str, editor: Editor) -> list[str]:
    """Edit this process' images by the editor's method and measure the results.

    Args:
        name: of the folder and the lines.

    Returns:
        Names of images that could not be edited.

    Raises:
        UserError: results cannot be written, or a metric cannot be had.
    """
    pictures, own = run.folder / name, run.cases[run.process :: run.processes]
    with write_errors(pictures):
        pictures.mkdir(exist_ok=True)
    tally = edit_many(
        editor,
        [case.job for case in own],
        pictures,
        run.batch_size,
        plain(editor.config),
        {"versions": versions()},
        load=lambda path: editor.load(run.load(path, editor.size)),
        quiet=run.quiet,
        name=name,
    )
    measure_method(run, name, editor, own)
    return tally.broken


def measure_method(run: Run, name: str, editor: Editor, own: Sequence[Case]) -> None:
    """Measure the results that are there and have no line yet.

    Raises:
        UserError: see `evaluate_method`.
    """
    kept = {line.name: line for line in lines_of(run.folder, name)}
    path = part_of_lines(run.folder, name, run.process)
    # Whatever a kill left at the end would spoil the next line.
    write(path, "".join(map(as_text, read_lines(path))))
    found = ahead(
        lambda case: measure(run, name, editor, case, kept.get(case.job.name)), own, READERS
    )
    bar = tqdm(found, f"measure {name}", len(own), unit="image", disable=run.quiet)
    with write_errors(path), path.open("a", encoding="utf-8") as file:
        for line in filter(None, bar):
            file.write(as_text(line))
            file.flush()
            os.fsync(file.fileno())


def measure(run: Run, name: str, editor: Editor, case: Case, line: Line | None) -> Line | None:
    """What there is to tell of a result; None if there is none, or `line` tells it."""
    record = record_of(run.folder / name, case.job)
    if not is_finished(record, told(case.job, plain(editor.config))):
        return None
    result, facts = output_paths(run.folder / name, case.job)[0], read_record(record)
    digest = facts["outputs"][result.name]
    if line and line.sha256 == digest and set(run.metrics) <= set(line.metrics):
        return None
    values = measured(run.judges, pair_of(run, editor.size, case, result), run.metrics)
    return Line(
        case.job.name,
        case.kind,
        digest,
        facts.get("seconds"),
        editor.network_calls,
        {name: as_json(x) for name, x in values.items()},
    )


def pair_of(run: Run, size: int, case: Case, result: Path) -> Pair:
    """A result with all that it is compared with."""
    load = partial(load_picture, run, size=size)
    source, mask = load(case.job.image), case.mask
    if isinstance(mask, str):
        mask = white(load(mask)).astype(np.uint8)
    truth = None if case.truth is None else load(case.truth)
    pixels = resized(read_rgb(result, str(result)), source.shape[:2])
    return Pair(source, pixels, case.job.source, case.job.targets[0], mask, truth)


def load_picture(run: Run, path: str, size: int) -> np.ndarray:
    """A picture as it is measured, by networks of that size: uint8 (h, w, 3)."""
    if run.side is None:
        return run.load(path, size)
    return resized(read_rgb(Path(path), path), (run.side, run.side))


# --- Lines ---------------------------------------------------------------------------------------


def as_json(value: float) -> Any:
    """A number as JSON has it."""
    return value if math.isfinite(value) else None if math.isnan(value) else "inf"


def as_text(line: Line) -> str:
    """A line of the file."""
    return json.dumps(asdict(line)) + "\n"


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, without those that a kill cut off; none if there is no file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        texts = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    found = []
    for text in texts:
        try:
            found.append(build(Line, parse_json(text), str(path)))
        except (ValueError, UserError):
            continue
    return found


def write(path: Path, content: str | bytes) -> None:
    """A file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors(path), appearing_whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def part_of_lines(folder: Path, name: str, process: int) -> Path:
    """Where a process writes a method's lines."""
    return folder / (f"{name}.{process}.jsonl" if process else f"{name}.jsonl")


def parts_of_lines(folder: Path, name: str) -> list[Path]:
    """All files of a method's lines, the latest last."""
    parts = [x for x in folder.glob(f"{glob.escape(name)}.*.jsonl") if x.suffixes[-2][1:].isdigit()]
    whole = part_of_lines(folder, name, 0)
    found = [*([whole] if whole.exists() else []), *parts]
    return sorted(found, key=lambda x: x.stat().st_mtime_ns)


def lines_of(folder: Path, name: str) -> list[Line]:
    """All lines of a method, of several for an image the latest.

    Raises:
        UserError: they cannot be read.
    """
    return list(
        {
            line.name: line for part in parts_of_lines(folder, name) for line in read_lines(part)
        }.values()
    )


def join_parts(folder: Path, name: str, cases: Sequence[Case]) -> None:
    """Make one file of what the processes wrote, in the order of the images.

    Raises:
        UserError: it cannot be written.
    """
    place = {case.job.name: i for i, case in enumerate(cases)}
    parts, lines = parts_of_lines(folder, name), lines_of(folder, name)
    lines.sort(key=lambda line: place.get(line.name, len(place)))
    whole = part_of_lines(folder, name, 0)
    write(whole, "".join(map(as_text, lines)))
    for part in parts:
        if part != whole:
            part.unlink()
