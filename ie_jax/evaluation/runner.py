"""A protocol's images through methods and metrics: each result is kept as it is made, so that a run
that ended, however, goes on when it is started again.

An output folder holds

    run.json       what all results have in common: protocol, data, model, seed, settings
    METHOD/        each result, NAME.png, with its record, NAME.json
    METHOD.jsonl   the metrics, a line for each image
    results.csv    means and their intervals of what is there, and the same as tables.md
"""

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ie_jax.config import build
from ie_jax.data.images import read_rgb
from ie_jax.editing.command import versions
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import write_errors
from ie_jax.editing.jobs import Job
from ie_jax.editing.many import READERS, Load, ahead, edit_many, output_paths, record_of, told
from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.means import Interval, bootstrap, wilson
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
    mask: np.ndarray | None = None
    """See `Pair`."""


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


def claim(folder: Path, facts: Mapping[str, Any]) -> None:
    """See that a folder is empty or holds results of the same run, and note whose they are.

    Raises:
        UserError: it holds other things, or results of other facts; or it cannot be written.
    """
    record = folder / RUN
    facts = json.loads(json.dumps(facts))
    with write_errors(folder):
        held, known = any(folder.iterdir()), read_record(record)
    if held:
        if not known:
            raise UserError(f"{folder}: holds files that are not from this program: name another")
        for name, value in facts.items():
            if known.get(name) != value:
                raise UserError(
                    f"{folder}: holds results of {difference(name, known.get(name), value)}: name "
                    "another --output"
                )
    write(record, json.dumps({**OWN, **facts}, indent=1) + "\n")


def difference(name: str, old: Any, new: Any) -> str:
    """Two values of one setting, in words; of dicts the first that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(x for x in {**old, **new} if old.get(x) != new.get(x))
        return difference(inner, old.get(inner), new.get(inner))
    return f"{name} {json.dumps(old)}, not {json.dumps(new)}"


def evaluate_method(
    editor: Editor,
    cases: Sequence[Case],
    folder: Path,
    judges: Judges,
    metrics: Sequence[str],
    batch_size: int,
    *,
    side: int | None = None,
    load: Load | None = None,
    quiet: bool = False,
) -> list[str]:
    """Edit all images by the editor's method and measure the results.

    Args:
        side: of the square on which metrics are measured; results of another size are resized.
            None: the results' own.
        load: reads a picture for the editor; None: its own way.

    Returns:
        Names of images that could not be edited.

    Raises:
        UserError: results cannot be written, or a metric cannot be had.
    """
    method, config = editor.config.method, json.loads(json.dumps(asdict(editor.config)))
    pictures = folder / method
    with write_errors(pictures):
        pictures.mkdir(exist_ok=True)
    jobs = [case.job for case in cases]
    notes = {"versions": versions()}
    tally = edit_many(
        editor, jobs, pictures, batch_size, config, notes, load=load, quiet=quiet, name=method
    )
    path = folder / f"{method}.jsonl"
    kept = {line.name: line for line in read_lines(path)}
    # Whatever a kill left at the end would spoil the next line.
    write(path, "".join(map(as_text, kept.values())))

    def line_of(case: Case) -> Line | None:
        """What there is to tell of a result, None if there is none or it is told already."""
        record = record_of(pictures, case.job)
        if not is_finished(record, told(case.job, config)):
            return None
        result, facts = output_paths(pictures, case.job)[0], read_record(record)
        digest, line = facts["outputs"][result.name], kept.get(case.job.name)
        if line and line.sha256 == digest and set(metrics) <= set(line.metrics):
            return None
        source = load_source(editor, case, side, load)
        pixels = resized(read_rgb(result, str(result)), source.shape[0])
        pair = Pair(source, pixels, case.job.source, case.job.targets[0], case.mask)
        values = {name: as_json(x) for name, x in measured(judges, pair, metrics).items()}
        return Line(
            case.job.name, case.kind, digest, facts.get("seconds"), editor.network_calls, values
        )

    found = ahead(line_of, cases, READERS)
    bar = tqdm(found, f"measure {method}", len(cases), unit="image", disable=quiet)
    with write_errors(path), path.open("a", encoding="utf-8") as file:
        for line in filter(None, bar):
            file.write(as_text(line))
            file.flush()
            os.fsync(file.fileno())
    return tally.broken


def load_source(editor: Editor, case: Case, side: int | None, load: Load | None) -> np.ndarray:
    """The picture that a result is compared with."""
    if side is None:
        return (load or editor.load)(case.job.image)
    return resized(read_rgb(Path(case.job.image), case.job.image), side)


def resized(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture as a square, by Pillow (bicubic) where it is none of that size."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))


def config_of(config: EditConfig, method: str) -> EditConfig:
    """The settings for one method of several; guiders are ours alone."""
    if method == "ours":
        return config
    return replace(config, method=method, guiders=())  # type: ignore[arg-type]


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


def write(path: Path, text: str) -> None:
    """A file that appears whole.

    Raises:
        UserError: it cannot be written.
    """
    with write_errors(path), appearing_whole(path) as file:
        file.write(text.encode())


# --- Tables --------------------------------------------------------------------------------------

HEADER = ("method", "kind", "metric", "mean", "low", "high", "count")
Row = tuple[str, str, str, Interval]
"""Method, kind of edit (empty: all), metric, and its mean."""


def summary(method: str, lines: Sequence[Line], images: int) -> list[Row]:
    """The means of a method's lines, of all kinds together and of each.

    Args:
        images: how many there should be.
    """
    rows: list[Row] = [(method, "", "edited", wilson(len(lines), images))]
    seconds = np.array([x.seconds for x in lines if x.seconds is not None])
    rows.append((method, "", "seconds", bootstrap(seconds)))
    calls = Interval(mean=lines[0].network_calls, low=None, high=None, count=len(lines))
    rows.append((method, "", "network_calls", calls))
    kinds = sorted({line.kind for line in lines} - {""})
    for kind in ("", *kinds):
        chosen = [line.metrics for line in lines if kind in ("", line.kind)]
        for name in dict.fromkeys(name for metrics in chosen for name in metrics):
            values = [metrics.get(name) for metrics in chosen]
            numbers = np.array([math.nan if x is None else float(x) for x in values])
            rows.append((method, kind, name, bootstrap(numbers)))
    return rows


def write_tables(folder: Path, methods: Sequence[str], images: int) -> None:
    """`results.csv` and `tables.md` of the lines that are there.

    Raises:
        UserError: they cannot be written.
    """
    rows = [
        row
        for method in methods
        if (lines := read_lines(folder / f"{method}.jsonl"))
        for row in summary(method, lines, images)
    ]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for method, kind, metric, value in rows:
        told = (value["mean"], value["low"], value["high"], value["count"])
        table.writerow((method, kind, metric, *("" if x is None else x for x in told)))
    write(folder / "results.csv", text.getvalue())
    write(folder / "tables.md", markdown(rows))


def markdown(rows: Sequence[Row]) -> str:
    """A line for each method, a column for each metric; of all kinds of edits together."""
    whole = [row for row in rows if not row[1]]
    names = list(dict.fromkeys(metric for _, _, metric, _ in whole))
    lines = [f"| method | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for method in dict.fromkeys(row[0] for row in whole):
        values = {metric: value for m, _, metric, value in whole if m == method}
        lines.append(f"| {method} | {' | '.join(shown(values.get(x)) for x in names)} |")
    note = "Means with 95 % intervals: of shares by Wilson, else by bootstrap over images."
    return "\n".join([*lines, "", note, ""])


def shown(value: Interval | None) -> str:
    """A mean and its interval, four digits."""
    if value is None or value["mean"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:.4g}"
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
