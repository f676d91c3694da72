"""Plots of the world protocol, from results as they stand in results.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ie_jax.evaluation.plots import OTHERS, OURS, Point, scatter
from ie_jax.evaluation.report import slashed


def whiskers(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], np.ndarray]:
    """Means, and how far their intervals reach below and above, (2, n); NaN where there is none."""
    numbers = np.array([[row[key][x] for x in ("mean", "low", "high")] for row in rows], float)
    mean, low, high = numbers.T
    return list(mean), np.nan_to_num(np.stack([mean - low, high - mean]))


def plot_trade_off(drawn: Any, results: Mapping[str, Any]) -> None:
    """Success over PSNR outside the mask: a panel for each sweep and method. Strengths and bounds
    have an order and so a line, schedules have none."""
    titles = {"strength": "factor of the guiders", "bound": "upper bound", "schedule": "w by step"}
    points = results["tradeoff"]["points"]
    methods = list(dict.fromkeys(point["method"] for point in points))
    drawn.set_size_inches(16, 5 * len(methods))
    grid = drawn.subplots(len(methods), len(titles), squeeze=False)
    for axes_row, method in zip(grid, methods, strict=True):
        for axes, (sweep, title) in zip(axes_row, titles.items(), strict=True):
            found = [x for x in points if (x["method"], x["sweep"]) == (method, sweep)]
            several = len({x["guided"] for x in found}) > 1
            shown = [
                Point(
                    label_of(x, several), x["psnr_outside_mask"], x["success"], x["guided"] is True
                )
                for x in found
            ]
            scatter(axes, shown, line=sweep != "schedule")
            axes.set_title(f"{method}: {title}", fontsize=10)
            axes.set_xlabel("PSNR outside the mask, dB")
        axes_row[0].set_ylabel("edits with all attributes right")


def label_of(point: Mapping[str, Any], several: bool) -> str:
    """The value of a point, and whether guiders took part where that differs."""
    text = slashed(point["value"])
    return f"{text}, {'guided' if point['guided'] else 'plain'}" if several else text


def plot_reconstruction(drawn: Any, results: Mapping[str, Any]) -> None:
    """PSNR of each way to reconstruct."""
    axes = drawn.subplots()
    rows = results["reconstruction"]
    means, reach = whiskers(rows, "psnr")
    colours = [OURS if row["method"] == "ours" else OTHERS for row in rows]
    axes.barh([row_name(row) for row in rows], means, xerr=reach, capsize=2, color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("PSNR to the picture, dB")
    axes.set_title(f"Reconstruction of {results['scenes']} scenes, w = 0, 95 % intervals")


def row_name(row: Mapping[str, Any]) -> str:
    """A row of the reconstruction table by one name."""
    if row["start_timestep"] is None:
        return str(row["method"])
    noise = "with" if row["start_noise"] else "without"
    return f"{row['method']}, start {row['start_timestep']} {noise} noise"


def plot_edits(drawn: Any, results: Mapping[str, Any]) -> None:
    """Success of each way to edit, by kind."""
    axes = drawn.subplots()
    rows = results["edits"]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    ways = list(dict.fromkeys((row["method"], row["guided"]) for row in rows))
    for i, way in enumerate(ways):
        found = {row["kind"]: row for row in rows if (row["method"], row["guided"]) == way}
        means, reach = whiskers([found[kind] for kind in kinds], "success")
        place = np.arange(len(kinds)) + 0.8 * ((i + 0.5) / len(ways) - 0.5)
        style = {None: "", False: " plain", True: " guided"}[way[1]]
        axes.bar(place, means, 0.8 / len(ways), yerr=reach, capsize=1.5, label=f"{way[0]}{style}")
    axes.set_xticks(np.arange(len(kinds)), [kind.replace("_", "\n") for kind in kinds], fontsize=8)
    axes.set_ylabel("edits with all attributes right")
    axes.set_title(f"Edits of {results['scenes']} scenes, 95 % intervals", loc="left")
    drawn.legend(fontsize=8, ncols=3, loc="outside lower center")
