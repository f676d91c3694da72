"""Plots of results, by matplotlib."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from ie_jax.evaluation.metrics.means import Interval

OURS, OTHERS, FAINT = "#c2410c", "#1d4ed8", "#9ca3af"
GAP = 0.055
"""Between two labels, of the axes' height."""


class Point(NamedTuple):
    """One way to edit."""

    label: str
    x: Interval
    y: Interval
    marked: bool = False
    """In another colour."""


def figure(width: float = 7.5, height: float = 4.8) -> Any:
    """An empty figure."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(drawn: Any) -> bytes:
    """A figure as a picture."""
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def scatter(axes: Any, points: Sequence[Point], line: bool = False) -> None:
    """Points with their intervals; labels in a column at the right, a thin line to each point.

    Args:
        line: the points have an order, and are joined in it.
    """
    points = [p for p in points if p.x["mean"] is not None and p.y["mean"] is not None]
    if not points:
        return
    x, y = [p.x["mean"] for p in points], [p.y["mean"] for p in points]
    if line:
        axes.plot(x, y, color=FAINT, linewidth=1, zorder=1)
    for p in points:
        axes.errorbar(
            p.x["mean"],
            p.y["mean"],
            xerr=arms(p.x),
            yerr=arms(p.y),
            marker="o",
            markersize=5,
            color=OURS if p.marked else OTHERS,
            ecolor=FAINT,
            elinewidth=0.8,
            zorder=2,
        )
    axes.grid(color="#e5e7eb", linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    label_points(axes, points)


def label_points(axes: Any, points: Sequence[Point]) -> None:
    """Write the labels at the right of the axes, from top to bottom as the points lie."""
    axes.autoscale_view()
    axes.set_autoscale_on(False)
    to_axes = axes.transScale + axes.transLimits
    placed = sorted(
        ((to_axes.transform((p.x["mean"], p.y["mean"])), p) for p in points),
        key=lambda both: (-round(both[0][1], 3), -both[0][0]),
    )
    heights = apart([place[1] for place, _ in placed], GAP)
    for (_, p), height in zip(placed, heights, strict=True):
        axes.annotate(
            p.label,
            (p.x["mean"], p.y["mean"]),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=OURS if p.marked else "black",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.5, "relpos": (0, 0.5)},
        )


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Falling heights, at least a gap from each other, from 1 down and near those wanted."""
    found: list[float] = []
    for i, height in enumerate(wanted):
        below = len(wanted) - 1 - i
        lowest = gap * below  # room for those that come
        highest = found[-1] - gap if found else 1.0
        found.append(min(max(height, lowest), highest))
    return found


def arms(value: Interval) -> list[list[float]] | None:
    """How far an interval reaches below and above its mean."""
    mean, low, high = value["mean"], value["low"], value["high"]
    if mean is None or low is None or high is None:
        return None
    return [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
