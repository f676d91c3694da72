"""Means of a run's lines as tables."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ie_jax.evaluation.metrics.means import Interval, bootstrap, wilson
from ie_jax.evaluation.runner import Case, Line, lines_of, write

HEADER = ("method", "kind", "metric", "mean", "low", "high", "count")
SHARES = ("edited", "world_success")
Row = tuple[str, str, str, Interval]
"""Method, kind of edit (empty: all), metric, and its mean."""


def summary(method: str, lines: Sequence[Line], cases: Sequence[Case]) -> list[Row]:
    """The means of a method's lines, of all kinds together and of each.

    Args:
        cases: the images of the run; lines of others do not count.
    """
    names = {case.job.name for case in cases}
    lines = [line for line in lines if line.name in names]
    if not lines:
        return []
    rows: list[Row] = [(method, "", "edited", wilson(len(lines), len(cases)))]
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
            rows.append((method, kind, name, mean_of(name, numbers)))
    return rows


def mean_of(metric: str, values: np.ndarray) -> Interval:
    """The mean over images: of a share with Wilson's interval, else with that of the bootstrap."""
    if metric not in SHARES:
        return bootstrap(values)
    found = values[np.isfinite(values)]
    return wilson(int(found.sum()), len(found))


def write_tables(folder: Path, methods: Sequence[str], cases: Sequence[Case]) -> None:
    """`results.csv` and `tables.md` of the lines that are there.

    Raises:
        UserError: they cannot be written.
    """
    rows = [row for method in methods for row in summary(method, lines_of(folder, method), cases)]
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
