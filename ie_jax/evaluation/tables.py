"""Means of a run's lines, and tables of them: CSV, Markdown, LaTeX."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ie_jax.editing.config import EditConfig
from ie_jax.evaluation.metrics.means import Interval, bootstrap, share_difference, wilson
from ie_jax.evaluation.published import Published, published
from ie_jax.evaluation.runner import Case, Line, lines_of, write

SHARES = ("edited", "world_success")
"""Measures that are 0 or 1 of an image."""
HEADER = (
    *("method", "kind", "metric", "mean", "low", "high", "count", "published", "table"),
    *("gain", "gain_low", "gain_high", "gain_count"),
)
VALUES: tuple[Literal["mean", "low", "high", "count"], ...] = ("mean", "low", "high", "count")
NOTE = "Means with 95 % intervals: of shares by Wilson, else by bootstrap over images."


class Row(NamedTuple):
    """A mean."""

    method: str
    kind: str
    """Of edit; empty: all."""
    metric: str
    value: Interval
    paper: Published | None = None
    gain: Interval | None = None
    """Over the first method, of the images that both have."""


def summary(
    method: str,
    lines: Sequence[Line],
    cases: Sequence[Case],
    paper: Mapping[str, Published] = {},
    first: Sequence[Line] = (),
) -> list[Row]:
    """The means of a method's lines, of all kinds together and of each.

    Args:
        cases: the images of the run; lines of others do not count.
        paper: published means by metric.
        first: the lines of the method to compare with.
    """
    names = {case.job.name for case in cases}
    lines = [line for line in lines if line.name in names]
    if not lines:
        return []
    rows = [Row(method, "", "edited", wilson(len(lines), len(cases)))]
    # No intervals: the images of a batch share their time.
    for name in ("seconds", "network_calls"):
        there = [x for line in lines if (x := getattr(line, name)) is not None]
        mean = float(np.mean(there)) if there else None
        value = Interval(mean=mean, low=None, high=None, count=len(there))
        rows.append(Row(method, "", name, value))
    kinds = sorted({line.kind for line in lines} - {""})
    others = {line.name: line for line in first}
    for kind in ("", *kinds):
        chosen = [line for line in lines if kind in ("", line.kind)]
        for name in dict.fromkeys(name for line in chosen for name in line.metrics):
            values = np.array([number(line, name) for line in chosen])
            base = np.array([number(others.get(line.name), name) for line in chosen])
            gain = gain_of(name, values, base) if first else None
            known = None if kind else paper.get(name)
            rows.append(Row(method, kind, name, mean_of(name, values), known, gain))
    return rows


def number(line: Line | None, metric: str) -> float:
    """A metric of a line; NaN where it has none."""
    value = None if line is None else line.metrics.get(metric)
    return math.nan if value is None else float(value)


def gain_of(metric: str, values: np.ndarray, base: np.ndarray) -> Interval:
    """The mean difference over the images in which both are finite."""
    both = np.isfinite(values) & np.isfinite(base)
    found = values[both] - base[both]
    if metric not in SHARES:
        return bootstrap(found)
    return share_difference(int(np.sum(found > 0)), int(np.sum(found < 0)), len(found))


def mean_of(metric: str, values: np.ndarray) -> Interval:
    """The mean over images: of a share with Wilson's interval, else with that of the bootstrap."""
    if metric not in SHARES:
        return bootstrap(values)
    found = values[np.isfinite(values)]
    return wilson(int(found.sum()), len(found))


def rows_of(
    folder: Path, protocol: str, configs: Mapping[str, EditConfig], cases: Sequence[Case]
) -> list[Row]:
    """The means of all methods of which there are lines; gains are over the first of these.

    Raises:
        UserError: lines cannot be read.
    """
    lines = {name: found for name in configs if (found := lines_of(folder, name))}
    first = next(iter(lines), "")
    return [
        row
        for name, found in lines.items()
        for row in summary(
            name,
            found,
            cases,
            published(protocol, cases, configs[name]),
            () if name == first else lines[first],
        )
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
    for row in rows:
        cells = (*numbers(row.value), *(row.paper or (None, None)), *numbers(row.gain))
        texts = ("" if x is None else x for x in cells)
        table.writerow((row.method, row.kind, row.metric, *texts))
    return text.getvalue()


def numbers(value: Interval | None) -> tuple[float | None, ...]:
    """Mean, ends and count."""
    return (None,) * 4 if value is None else tuple(value[x] for x in VALUES)


def wide(rows: Sequence[Row], kind: str = "") -> tuple[list[str], dict[str, dict[str, Row]]]:
    """The metrics of a kind of edits, and of each method the row of each."""
    chosen = [row for row in rows if row.kind == kind]
    found: dict[str, dict[str, Row]] = {}
    for row in chosen:
        found.setdefault(row.method, {})[row.metric] = row
    return list(dict.fromkeys(row.metric for row in chosen)), found


class Gains(NamedTuple):
    """A table of differences to the first method."""

    title: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]


def gains(rows: Sequence[Row]) -> Gains | None:
    """How much more each method has than the first, image by image; None if there is but one."""
    names, methods = wide(rows)
    first, *others = methods or [""]
    known = [x for x in names if any(x in f and f[x].gain for f in methods.values())]
    if not others or not known:
        return None
    title = f"Difference to {first}, image by image, with 95 % intervals"
    body = [
        (m, *(shown(row.gain) if (row := methods[m].get(x)) and row.gain else "-" for x in known))
        for m in others
    ]
    return Gains(title, ("method", *known), body)


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
    if against := gains(rows):
        text += f"\n{against.title}:\n\n{pipes(against.head, against.body)}\n"
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
