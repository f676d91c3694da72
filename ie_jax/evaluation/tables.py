"""Means of a run's lines, and tables of them: CSV, Markdown, LaTeX."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ie_jax.editing.config import EditConfig
from ie_jax.evaluation.metrics.means import Interval, bootstrap, wilson
from ie_jax.evaluation.published import Published, published
from ie_jax.evaluation.runner import Case, Line, lines_of, write

SHARES = ("edited", "world_success")
"""Measures that are 0 or 1 of an image."""
HEADER = ("method", "kind", "metric", "mean", "low", "high", "count", "published", "table")
NOTE = "Means with 95 % intervals: of shares by Wilson, else by bootstrap over images."


class Row(NamedTuple):
    """A mean."""

    method: str
    kind: str
    """Of edit; empty: all."""
    metric: str
    value: Interval
    paper: Published | None = None


def summary(
    method: str,
    lines: Sequence[Line],
    cases: Sequence[Case],
    paper: Mapping[str, Published] = {},
) -> list[Row]:
    """The means of a method's lines, of all kinds together and of each.

    Args:
        cases: the images of the run; lines of others do not count.
        paper: published means by metric.
    """
    names = {case.job.name for case in cases}
    lines = [line for line in lines if line.name in names]
    if not lines:
        return []
    rows = [Row(method, "", "edited", wilson(len(lines), len(cases)))]
    # No intervals: the images of a batch share their time.
    for name in ("seconds", "network_calls"):
        known = [x for line in lines if (x := getattr(line, name)) is not None]
        mean = float(np.mean(known)) if known else None
        value = Interval(mean=mean, low=None, high=None, count=len(known))
        rows.append(Row(method, "", name, value))
    kinds = sorted({line.kind for line in lines} - {""})
    for kind in ("", *kinds):
        chosen = [line.metrics for line in lines if kind in ("", line.kind)]
        for name in dict.fromkeys(name for metrics in chosen for name in metrics):
            values = [metrics.get(name) for metrics in chosen]
            numbers = np.array([math.nan if x is None else float(x) for x in values])
            rows.append(
                Row(method, kind, name, mean_of(name, numbers), None if kind else paper.get(name))
            )
    return rows


def mean_of(metric: str, values: np.ndarray) -> Interval:
    """The mean over images: of a share with Wilson's interval, else with that of the bootstrap."""
    if metric not in SHARES:
        return bootstrap(values)
    found = values[np.isfinite(values)]
    return wilson(int(found.sum()), len(found))


def rows_of(
    folder: Path, protocol: str, configs: Mapping[str, EditConfig], cases: Sequence[Case]
) -> list[Row]:
    """The means of all methods of which there are lines.

    Raises:
        UserError: lines cannot be read.
    """
    return [
        row
        for name, config in configs.items()
        for row in summary(name, lines_of(folder, name), cases, published(protocol, cases, config))
    ]


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """`results.csv`, `tables.md` and `tables.tex`.

    Raises:
        UserError: they cannot be written.
    """
    write(folder / "results.csv", comma_separated(rows))
    write(folder / "tables.md", markdown(rows))
    write(folder / "tables.tex", latex(rows))


def comma_separated(rows: Sequence[Row]) -> str:
    """A line for each mean, with all digits."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    for method, kind, metric, value, paper in rows:
        numbers = (value["mean"], value["low"], value["high"], value["count"])
        cells = (*numbers, *(paper or (None, None)))
        table.writerow((method, kind, metric, *("" if x is None else x for x in cells)))
    return text.getvalue()


def wide(rows: Sequence[Row], kind: str = "") -> tuple[list[str], dict[str, dict[str, Row]]]:
    """The metrics of a kind of edits, and of each method the row of each."""
    chosen = [row for row in rows if row.kind == kind]
    found: dict[str, dict[str, Row]] = {}
    for row in chosen:
        found.setdefault(row.method, {})[row.metric] = row
    return list(dict.fromkeys(row.metric for row in chosen)), found


def beside_paper(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The means of which the paper has one too, see `BESIDE`."""
    return [
        (
            row.method,
            row.metric,
            shown(row.value),
            f"{row.paper.value:g}",
            f"{row.value['mean'] - row.paper.value:+.2g}",
            row.paper.table,
        )
        for row in rows
        if row.paper and row.value["mean"] is not None
    ]


BESIDE = ("method", "metric", "here", "paper", "difference", "of the paper")


def markdown(rows: Sequence[Row]) -> str:
    """A line for each method, a column for each metric; all kinds of edits together."""
    names, methods = wide(rows)
    body = [(m, *(cell(found.get(x)) for x in names)) for m, found in methods.items()]
    text = f"{pipes(('method', *names), body)}\n\n{NOTE}\n"
    beside = beside_paper(rows)
    return f"{text}\n{pipes(BESIDE, beside)}\n" if beside else text


def pipes(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    return "\n".join("| " + " | ".join(x) + " |" for x in (head, ["---"] * len(head), *body))


def latex(rows: Sequence[Row]) -> str:
    """The same as LaTeX, for the package booktabs."""
    names, methods = wide(rows)
    body = [(m, *(cell(found.get(x)) for x in names)) for m, found in methods.items()]
    lines = [" & ".join(map(escaped, x)) + r" \\" for x in (("method", *names), *body)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * len(names)}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            f"% {NOTE}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """A text as LaTeX has it; an interval in small letters."""
    for letter in "_%&#$":
        text = text.replace(letter, f"\\{letter}")
    mean, bracket, rest = text.partition(" [")
    return f"{mean} {{\\scriptsize [{rest}}}" if bracket else text


def cell(row: Row | None) -> str:
    """A mean in a table."""
    return "-" if row is None else shown(row.value)


def shown(value: Interval) -> str:
    """A mean and its interval, four digits."""
    if value["mean"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:.4g}"
    return f"{value['mean']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
