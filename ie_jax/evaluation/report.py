"""What evaluation found, to read: tables, plots, sheets of pictures. All from results as they stand
in results.json (see `ie_jax.evaluation.world`)."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from ie_jax.data.panels import side_by_side
from ie_jax.editing.command import versions
from ie_jax.evaluation.plots import figure, png
from ie_jax.evaluation.runner import write
from ie_jax.evaluation.world_plots import plot_edits, plot_reconstruction, plot_trade_off, slashed

ZOOM = 2
"""Sheets show each pixel so many times in each direction."""


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    key: str
    """Of a row's entry."""
    digits: int = 2
    """After the point, of an estimate."""
    percent: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of results under a title."""

    name: str
    """Of its files."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Mapping[str, Any]]


RECONSTRUCTION = (
    Column("method", "method"),
    Column("start", "start_timestep"),
    Column("start noise", "start_noise"),
    Column("MSE", "mse", 5),
    Column("PSNR", "psnr"),
    Column("PSNR to autoencoder", "psnr_to_autoencoder"),
    Column("perceptual", "perceptual", 4),
    Column("noise std", "noise_std", 3),
)
SCORES = (
    Column("success %", "success", 1, True),
    Column("changed right %", "changed", 1, True),
    Column("PSNR to truth", "psnr_to_truth"),
    Column("perceptual to truth", "perceptual_to_truth", 4),
    Column("PSNR outside mask", "psnr_outside_mask"),
    Column("finite %", "finite", 1, True),
)
EDIT_FACTS = (
    Column("method", "method"),
    Column("guided", "guided"),
    Column("start", "start_timestep"),
    Column("start noise", "start_noise"),
)


def text(value: Any, column: Column) -> str:
    """A cell: a mean with its interval, anything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        if value["mean"] is None:
            return "-"
        factor = 100 if column.percent else 1
        ends = (value["mean"], value["low"], value["high"])
        mean, *rest = (f"{factor * x:.{column.digits}f}" for x in ends if x is not None)
        return f"{mean} [{', '.join(rest)}]" if rest else mean
    if isinstance(value, list | tuple):
        return slashed(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def markdown(table: Table) -> str:
    """A table with its title as a heading."""
    lines = [
        [column.title for column in table.columns],
        ["---"] * len(table.columns),
        *([text(row[c.key], c) for c in table.columns] for row in table.rows),
    ]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"## {table.title}\n\n{body}\n"


def comma_separated(table: Table) -> str:
    """A table for programs: all digits, an estimate as mean, ends of its interval and count."""
    estimated = [
        any(isinstance(row[column.key], Mapping) for row in table.rows) for column in table.columns
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header: list[str] = []
    for column, several in zip(table.columns, estimated, strict=True):
        more = tuple(f"{column.key}_{x}" for x in ("low", "high", "count")) if several else ()
        header += [column.key, *more]
    writer.writerow(header)
    for row in table.rows:
        cells: list[Any] = []
        for column, several in zip(table.columns, estimated, strict=True):
            value = row[column.key]
            if several:
                cells += [value[x] for x in ("mean", "low", "high", "count")]
            else:
                cells.append(
                    "/".join(map(str, value)) if isinstance(value, list | tuple) else value
                )
        writer.writerow(cells)
    return stream.getvalue()


def tables(results: Mapping[str, Any]) -> list[Table]:
    """All tables of the world protocol."""
    edits, points = results["edits"], results["tradeoff"]["points"]
    what = "scenes" if results["settings"]["places"] == 1 else "scenes for two objects"
    scenes, fewer = (f"{x['scenes']} {what}" for x in (results, results["tradeoff"]))
    kind = Column("edit", "kind")
    judged = [{"pictures": "real"} | results["classifier"]["accuracy"]]
    for entry in results["samples"]:
        name = f"{entry['method']}, {entry['steps']} steps, w = {slashed(entry['guidance'])}"
        judged.append({"pictures": name} | entry["accuracy"])
    attributes = [Column(f"{name} %", name, 1, True) for name in judged[0] if name != "pictures"]
    facts = (Column("method", "method"), Column("guided", "guided"))
    curves = [x for x in points if x["sweep"] != "schedule"]
    schedules = [x for x in points if x["sweep"] == "schedule"]
    return [
        Table(
            "reconstruction",
            f"Reconstruction of {scenes}, w = 0",
            RECONSTRUCTION,
            results["reconstruction"],
        ),
        Table(
            "edits",
            f"Edits of {scenes}, all kinds together",
            (*EDIT_FACTS, *SCORES),
            [row for row in edits if row["kind"] == "all"],
        ),
        Table(
            "edits-by-kind",
            f"Edits of {scenes}, by kind",
            (kind, *EDIT_FACTS, *SCORES),
            sorted((row for row in edits if row["kind"] != "all"), key=lambda row: row["kind"]),
        ),
        Table(
            "tradeoff",
            f"Strength of guidance, one edit of each of {fewer}",
            (*facts, Column("sweep", "sweep"), Column("value", "value"), *SCORES),
            curves,
        ),
        Table(
            "schedules",
            f"Guidance schedules, one edit of each of {fewer}",
            (*facts, Column("schedule", "value"), *SCORES),
            schedules,
        ),
        Table(
            "classifier",
            f"What the classifier sees in pictures of {scenes} as their captions say",
            (Column("pictures", "pictures"), *attributes),
            judged,
        ),
    ]


def write_tables(folder: Path, results: Mapping[str, Any]) -> None:
    """Every table as .md and .csv, and all of them as tables.md."""
    made = tables(results)
    for table in made:
        write(folder / f"{table.name}.md", markdown(table))
        write(folder / f"{table.name}.csv", comma_separated(table))
    write(folder / "tables.md", "\n".join(markdown(table) for table in made))


def environment() -> dict[str, Any]:
    """With what the numbers were measured."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": {"platform": device.platform, "kind": device.device_kind},
    }


def sheet(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures in columns under their names, enlarged: uint8 (h, w, 3).

    Args:
        columns: uint8 (n, h, w, 3) each, of one shape.
    """
    large = {name: np.concatenate(list(x)) for name, x in columns.items()}
    return side_by_side(
        [(name, x.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)) for name, x in large.items()]
    )


def write_sheets(folder: Path, pictures: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """A sheet for each set of pictures: pictures-NAME.png."""
    for name, columns in pictures.items():
        stream = io.BytesIO()
        Image.fromarray(sheet(columns)).save(stream, "PNG")
        write(folder / f"pictures-{name}.png", stream.getvalue())


PLOTS: Mapping[str, Callable[[Any, Mapping[str, Any]], None]] = {
    "reconstruction": plot_reconstruction,
    "edits": plot_edits,
    "tradeoff": plot_trade_off,
}


def write_plots(folder: Path, results: Mapping[str, Any]) -> bool:
    """A plot per entry of `PLOTS`: plot-NAME.png. False, and nothing is written, where matplotlib
    is not installed."""
    if find_spec("matplotlib") is None:
        return False
    for name, plot in PLOTS.items():
        drawn = figure()
        plot(drawn, results)
        write(folder / f"plot-{name}.png", png(drawn))
    return True
