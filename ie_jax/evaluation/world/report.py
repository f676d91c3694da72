"""The world protocol's tables, plots and sheets of pictures, from results as they stand in
results.json (see `ie_jax.evaluation.world.protocol`)."""

import io
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from ie_jax.evaluation.plots import figure, png
from ie_jax.evaluation.report import (
    Column,
    Pictures,
    Table,
    comma_separated,
    markdown,
    sheet,
    slashed,
)
from ie_jax.evaluation.runner import write
from ie_jax.evaluation.world.plots import plot_edits, plot_reconstruction, plot_trade_off
from ie_jax.evaluation.world.scores import ALL

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
            [row for row in edits if row["kind"] == ALL],
        ),
        Table(
            "edits-by-kind",
            f"Edits of {scenes}, by kind",
            (kind, *EDIT_FACTS, *SCORES),
            sorted((row for row in edits if row["kind"] != ALL), key=lambda row: row["kind"]),
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


def write_sheets(folder: Path, pictures: Mapping[str, Pictures]) -> None:
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
