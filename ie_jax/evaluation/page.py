"""A run's results as one HTML page with everything in it, and its plots and pictures as files."""

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ie_jax.config import plain
from ie_jax.data.images import read_rgb, resized
from ie_jax.editing.config import EditConfig
from ie_jax.editing.many import output_paths
from ie_jax.evaluation import plots
from ie_jax.evaluation.report import environment, sheet
from ie_jax.evaluation.runner import Case, Line, lines_of, write
from ie_jax.evaluation.tables import BESIDE, NOTE, Row, beside_paper, cell, gains, wide

DONE = ("world_success", "clip_score_edited", "clip_score_target", "clip_l14", "clip_b32")
KEPT = ("psnr_outside", "psnr_unedited", "lpips_vgg", "dinov2", "psnr", "mse")
CLOSE = ("psnr_truth", "lpips_vgg_truth", *KEPT)
"""Measures of an edit's effect, of what it keeps, and by which pictures are chosen: the first that
was measured counts."""
FALLING = ("mse", "lpips", "structure_distance", "world_perceptual")
"""Metrics that are the better the lower they are begin so."""
SPOKEN = {
    "mse": "squared error",
    "psnr": "PSNR in dB",
    "ssim": "SSIM",
    "lpips_vgg": "LPIPS (VGG)",
    "lpips_alex": "LPIPS (AlexNet)",
    "lpips_squeeze": "LPIPS (SqueezeNet)",
    "lpips_vgg_224": "LPIPS (VGG, at 224 pixels)",
    "clip_b32": "CLIP B/32, picture and target prompt",
    "clip_l14": "CLIP L/14, picture and target prompt",
    "clip_l14_images": "CLIP L/14, result and source",
    "clip_score_target": "CLIP score, picture and target prompt",
    "dinov2": "DINOv2 likeness",
    "image_reward": "ImageReward",
    "world_success": "share of edits with all attributes right",
    "world_perceptual": "perceptual distance",
}
"""Metrics by the names that people know; of others the underscores go."""
PARTS = {
    "_truth": " to the exact result",
    "_outside": " outside the mask",
    "_unedited": " outside the mask",
    "_edited": " inside the mask",
}
"""What the end of a metric's name says."""
THUMBNAIL = 192
"""Pixels of a side of a large picture on the page."""


class Shown(NamedTuple):
    """A row of pictures."""

    rank: str
    case: Case
    pictures: dict[str, np.ndarray]
    """By column."""
    values: dict[str, str]


def write_page(
    folder: Path,
    facts: Mapping[str, Any],
    configs: Mapping[str, EditConfig],
    cases: Sequence[Case],
    rows: Sequence[Row],
    load: Callable[[str], np.ndarray],
) -> bool:
    """`report.html`, the plots `tradeoff.png` and `cost.png`, and `pictures.png`. False, and
    nothing is written, where jinja2 or matplotlib is not installed.

    Args:
        facts: of the run, shown at the top.
        load: reads a source or a truth as it was measured.

    Raises:
        UserError: a file cannot be written.
    """
    if not rows:
        return True
    if find_spec("matplotlib") is None or find_spec("jinja2") is None:
        return False
    from jinja2 import Environment

    drawn = {name: plots.png(x) for name, x in figures(rows)}
    for name, content in drawn.items():
        write(folder / f"{name}.png", content)
    methods = [name for name in configs if any(row.method == name for row in rows)]
    metric, groups = grids(folder, methods, cases, load)
    if groups:
        write(folder / "pictures.png", median_sheet(groups))
    template = (files("ie_jax.evaluation") / "page.html").read_text(encoding="utf-8")
    kinds = sorted({row.kind for row in rows} - {""})
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    text = page.render(
        facts={**facts, **flat(environment())},
        small=all(max(x.pictures["source"].shape) <= 128 for y in groups.values() for x in y),
        tables={kind: table(rows, kind) for kind in ("", *kinds)},
        gains=gains(rows),
        beside=(BESIDE, beside_paper(rows)),
        note=NOTE,
        plots={name: embedded(content, "png") for name, content in drawn.items()},
        metric=metric,
        grids={kind: [as_shown(x) for x in shown] for kind, shown in groups.items()},
        settings={name: json.dumps(changes(configs[name]), indent=1) for name in methods},
    )
    write(folder / "report.html", text)
    return True


def changes(config: EditConfig) -> dict[str, Any]:
    """The settings that are not the usual ones."""
    usual = plain(EditConfig())
    return {name: x for name, x in plain(config).items() if x != usual[name]}


def flat(values: Mapping[str, Any]) -> dict[str, str]:
    """Mappings as texts."""
    return {name: ", ".join(f"{k} {v}" for k, v in x.items()) for name, x in values.items()}


# --- Tables and plots ---


def table(rows: Sequence[Row], kind: str) -> tuple[list[str], dict[str, list[tuple[str, ...]]]]:
    """The metrics of a kind of edits, and each method's cells: mean, interval, "best" where no
    other mean is better."""
    names, methods = wide(rows, kind)
    best = {}
    for name in names:
        means = [x[name].value["mean"] for x in methods.values() if name in x]
        numbers = [x for x in means if x is not None]
        plain_fact = name in ("edited", "seconds", "network_calls")
        if len(set(numbers)) > 1 and not plain_fact:
            best[name] = min(numbers) if name.startswith(FALLING) else max(numbers)
    body: dict[str, list[tuple[str, ...]]] = {}
    for method, found in methods.items():
        body[method] = []
        for name in names:
            mean, _, interval = cell(found.get(name)).partition(" [")
            won = name in found and found[name].value["mean"] == best.get(name, "none")
            body[method].append((mean, f"[{interval}" * bool(interval), "best" * won))
    return names, body


def first_of(names: Sequence[str], there: Sequence[str]) -> str | None:
    """The first name that is there."""
    return next((name for name in names if name in there), None)


def figures(rows: Sequence[Row]) -> Iterator[tuple[str, Any]]:
    """The plots that the metrics allow, by name."""
    names, methods = wide(rows)
    done, kept, close = (first_of(x, names) for x in (DONE, KEPT, CLOSE))
    pairs = {"tradeoff": (kept, done), "cost": ("network_calls", close)}
    for file, (x, y) in pairs.items():
        if not x or not y:
            continue
        drawn = plots.figure()
        axes = drawn.subplots()
        axes.set_xlabel(title(x))
        axes.set_ylabel(title(y))
        if x == "network_calls":
            axes.set_xscale("log")
        for name, invert in ((x, axes.invert_xaxis), (y, axes.invert_yaxis)):
            if name.startswith(FALLING):
                invert()
        points = [
            plots.Point(method, found[x].value, found[y].value, method.startswith("ours"))
            for method, found in methods.items()
            if x in found and y in found
        ]
        plots.scatter(axes, points)
        yield file, drawn


def title(metric: str) -> str:
    """A metric on an axis, in words."""
    if metric == "network_calls":
        return "network calls for one edit"
    where = next((x for x in PARTS if metric.endswith(x)), "")
    name = SPOKEN.get(metric.removesuffix(where), metric.removesuffix(where).replace("_", " "))
    better = "lower" if metric.startswith(FALLING) else "higher"
    return f"{name}{PARTS.get(where, '')} ({better} is better)"


# --- Pictures ---


def grids(
    folder: Path,
    methods: Sequence[str],
    cases: Sequence[Case],
    load: Callable[[str], np.ndarray],
) -> tuple[str | None, dict[str, list[Shown]]]:
    """For each kind of edits the best, the median and the worst by the first method's metric, and
    which metric that is; none where nothing was measured that orders them."""
    lines = {name: {line.name: line for line in lines_of(folder, name)} for name in methods}
    own = lines[methods[0]]
    metric = first_of(CLOSE, list(next(iter(own.values())).metrics) if own else [])
    found: dict[str, list[Shown]] = {}
    if metric is None:
        return None, found
    for kind in sorted({case.kind for case in cases}):
        ranked = sorted(
            (value_of(own[case.job.name], metric), case.job.name, case)
            for case in cases
            if case.kind == kind and case.job.name in own
        )
        if metric.startswith(FALLING):
            ranked.reverse()
        ends = {len(ranked) - 1: "best", 0: "worst" if ranked[1:] else "the only one"}
        places = {**ends, len(ranked) // 2: "median"} if len(ranked) > 2 else ends
        order = sorted(places, reverse=True)
        shown = [
            row_of(folder, places[i], ranked[i][2], lines, metric, load) for i in order if ranked
        ]
        if shown:
            found[kind] = shown
    return metric, found


def value_of(line: Line, metric: str) -> float:
    """A metric of a line; the lowest number where it has none."""
    value = line.metrics.get(metric)
    return float("-inf") if value is None else float(value)


def row_of(
    folder: Path,
    rank: str,
    case: Case,
    lines: Mapping[str, Mapping[str, Line]],
    metric: str,
    load: Callable[[str], np.ndarray],
) -> Shown:
    """The pictures of a case: source, the methods' results, truth where it is known."""
    pictures = {"source": load(case.job.image)}
    values = {}
    for name, found in lines.items():
        path = output_paths(folder / name, case.job)[0]
        if case.job.name not in found or not path.is_file():
            continue
        pictures[name] = resized(read_rgb(path, str(path)), pictures["source"].shape[:2])
        values[name] = f"{value_of(found[case.job.name], metric):.3g}"
    if case.truth is not None:
        pictures["truth"] = load(case.truth)
    return Shown(rank, case, pictures, values)


def as_shown(row: Shown) -> dict[str, Any]:
    """A row as the page has it."""
    return {
        "rank": row.rank,
        "source": row.case.job.source,
        "target": row.case.job.targets[0],
        "cells": [
            (name, thumbnail(x), row.values.get(name, "")) for name, x in row.pictures.items()
        ],
    }


def thumbnail(picture: np.ndarray) -> str:
    """A picture in a page: small ones without loss."""
    image, stream = Image.fromarray(picture), io.BytesIO()
    if max(image.size) <= THUMBNAIL:
        image.save(stream, "PNG")
        return embedded(stream.getvalue(), "png")
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(stream, "JPEG", quality=88)
    return embedded(stream.getvalue(), "jpeg")


def embedded(content: bytes, kind: str) -> str:
    """A picture as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def median_sheet(groups: Mapping[str, Sequence[Shown]]) -> bytes:
    """The median row of each kind, as one picture."""
    rows = [x for shown in groups.values() for x in shown if x.rank == "median"]
    rows = rows or [shown[0] for shown in groups.values()]
    names = [x for x in rows[0].pictures if all(x in row.pictures for row in rows)]
    side = min(max(rows[0].pictures["source"].shape[:2]), THUMBNAIL)
    columns = {
        name: np.stack([resized(row.pictures[name], (side, side)) for row in rows])
        for name in names
    }
    stream = io.BytesIO()
    Image.fromarray(sheet(columns)).save(stream, "PNG")
    return stream.getvalue()
