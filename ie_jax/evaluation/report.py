"""What evaluation found, to read: tables, plots, sheets of pictures. All from results as they stand
in results.json (see `ie_jax.evaluation.world`)."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ie_jax.data.panels import side_by_side
from ie_jax.evaluation.runner import write

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
    """A cell: an estimate as mean ± half width, anything else as it is."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        if value["mean"] is None:
            return "-"
        factor = 100 if column.percent else 1
        mean = f"{factor * value['mean']:.{column.digits}f}"
        half = value["half_width"]
        return mean if half is None else f"{mean} ± {factor * half:.{column.digits}f}"
    if isinstance(value, list | tuple):
        return "/".join(f"{x:g}" for x in value)
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
    """A table for programs: all digits, an estimate as mean, half width and count."""
    estimated = [
        any(isinstance(row[column.key], Mapping) for row in table.rows) for column in table.columns
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    header: list[str] = []
    for column, several in zip(table.columns, estimated, strict=True):
        more = (f"{column.key}_half_width", f"{column.key}_count") if several else ()
        header += [column.key, *more]
    writer.writerow(header)
    for row in table.rows:
        cells: list[Any] = []
        for column, several in zip(table.columns, estimated, strict=True):
            value = row[column.key]
            if several:
                cells += [value["mean"], value["half_width"], value["count"]]
            else:
                cells.append(
                    "/".join(map(str, value)) if isinstance(value, list | tuple) else value
                )
        writer.writerow(cells)
    return stream.getvalue()


def tables(results: Mapping[str, Any]) -> list[Table]:
    """All tables of the world protocol."""
    edits, points = results["edits"], results["tradeoff"]["points"]
    scenes, fewer = results["scenes"], results["tradeoff"]["scenes"]
    kind = Column("edit", "kind")
    judged = [{"pictures": "real"} | results["classifier"]["accuracy"]]
    for entry in results["samples"]:
        w = "/".join(f"{x:g}" for x in np.atleast_1d(entry["guidance"]))
        name = f"{entry['method']}, {entry['steps']} steps, w = {w}"
        judged.append({"pictures": name} | entry["accuracy"])
    attributes = [Column(f"{name} %", name, 1, True) for name in judged[0] if name != "pictures"]
    facts = (Column("method", "method"), Column("guided", "guided"))
    curves = [x for x in points if x["sweep"] != "schedule"]
    schedules = [x for x in points if x["sweep"] == "schedule"]
    return [
        Table(
            "reconstruction",
            f"Reconstruction of {scenes} scenes, w = 0",
            RECONSTRUCTION,
            results["reconstruction"],
        ),
        Table(
            "edits",
            f"Edits of {scenes} scenes, all kinds together",
            (*EDIT_FACTS, *SCORES),
            [row for row in edits if row["kind"] == "all"],
        ),
        Table(
            "edits-by-kind",
            f"Edits of {scenes} scenes, by kind",
            (kind, *EDIT_FACTS, *SCORES),
            sorted((row for row in edits if row["kind"] != "all"), key=lambda row: row["kind"]),
        ),
        Table(
            "tradeoff",
            f"Strength of guidance, one edit of each of {fewer} scenes",
            (*facts, Column("sweep", "sweep"), Column("value", "value"), *SCORES),
            curves,
        ),
        Table(
            "schedules",
            f"Guidance schedules, one edit of each of {fewer} scenes",
            (*facts, Column("schedule", "value"), *SCORES),
            schedules,
        ),
        Table(
            "classifier",
            f"What the classifier sees in {scenes} pictures as their captions say",
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


def whiskers(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Means and half widths; NaN where there is no mean, 0 where there is no width."""
    means = [float("nan") if r[key]["mean"] is None else r[key]["mean"] for r in rows]
    return means, [r[key]["half_width"] or 0.0 for r in rows]


def curves(points: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The trade-off's points as named curves, in order."""
    names = {
        "strength": "guiders x factor",
        "bound": "upper bound",
        "schedule": "schedule, guided",
    }
    found: dict[str, list[Mapping[str, Any]]] = {}
    for point in points:
        name = names[point["sweep"]] if point["guided"] else "schedule, plain"
        found.setdefault(f"{point['method']}: {name}", []).append(point)
    yield from found.items()


def plot_trade_off(axes: Any, results: Mapping[str, Any]) -> None:
    """Success over PSNR outside the mask, a curve per sweep."""
    for name, points in curves(results["tradeoff"]["points"]):
        x, dx = whiskers(points, "psnr_outside_mask")
        y, dy = whiskers(points, "success")
        axes.errorbar(x, y, xerr=dx, yerr=dy, marker="o", capsize=2, linewidth=1, label=name)
        for point, *place in zip(points, x, y, strict=True):
            label = text(point["value"], Column("", ""))
            axes.annotate(label, place, fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("PSNR outside the mask, dB")
    axes.set_ylabel("edits with all attributes right")
    axes.set_title(f"Edits of {results['tradeoff']['scenes']} scenes, 95 % intervals")
    axes.legend(fontsize=8)


def plot_reconstruction(axes: Any, results: Mapping[str, Any]) -> None:
    """PSNR of each way to reconstruct."""
    rows = results["reconstruction"]
    names = [row_name(row) for row in rows]
    means, widths = whiskers(rows, "psnr")
    axes.barh(names, means, xerr=widths, capsize=2)
    axes.invert_yaxis()
    axes.set_xlabel("PSNR to the picture, dB")
    axes.set_title(f"Reconstruction of {results['scenes']} scenes, w = 0, 95 % intervals")


def row_name(row: Mapping[str, Any]) -> str:
    """A row of the reconstruction table by one name."""
    if row["start_timestep"] is None:
        return str(row["method"])
    noise = "with" if row["start_noise"] else "without"
    return f"{row['method']}, start {row['start_timestep']} {noise} noise"


def plot_edits(axes: Any, results: Mapping[str, Any]) -> None:
    """Success of each way to edit, by kind."""
    rows = results["edits"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    ways = list(dict.fromkeys((row["method"], row["guided"]) for row in rows))
    for i, way in enumerate(ways):
        found = {row["kind"]: row for row in rows if (row["method"], row["guided"]) == way}
        listed = [found[kind] for kind in kinds]
        means, widths = whiskers(listed, "success")
        place = np.arange(len(kinds)) + 0.8 * (i / len(ways) - 0.5)
        style = {None: "", False: " plain", True: " guided"}[way[1]]
        label = f"{way[0]}{style}"
        axes.bar(place, means, 0.8 / len(ways), yerr=widths, capsize=2, label=label)
    axes.set_xticks(np.arange(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=8)
    axes.set_ylabel("edits with all attributes right")
    axes.set_title(f"Edits of {results['scenes']} scenes, 95 % intervals")
    axes.legend(fontsize=8)


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
    from matplotlib.figure import Figure

    for name, plot in PLOTS.items():
        figure = Figure(figsize=(8, 5), layout="constrained")
        plot(figure.subplots(), results)
        stream = io.BytesIO()
        figure.savefig(stream, dpi=150)
        write(folder / f"plot-{name}.png", stream.getvalue())
    return True
