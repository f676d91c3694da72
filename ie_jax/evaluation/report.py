"""What evaluation found, to read: tables as Markdown and CSV, sheets of pictures."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from ie_jax.data.panels import side_by_side
from ie_jax.editing.command import versions

ZOOM = 2
"""Sheets show each pixel so many times in each direction."""

Pictures = dict[str, np.ndarray]
"""uint8 (n, h, w, 3) by what they show."""


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


def slashed(values: Any) -> str:
    """A number, or the numbers of a schedule: 0/1/1/1."""
    return "/".join(f"{x:g}" for x in np.atleast_1d(values))


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


def environment() -> dict[str, Any]:
    """With what the numbers were measured."""
    device = jax.devices()[0]
    return {
        "versions": versions(),
        "device": {"platform": device.platform, "kind": device.device_kind},
    }


def sheet(columns: Pictures) -> np.ndarray:
    """Pictures in columns under their names, enlarged: uint8 (h, w, 3).

    Args:
        columns: uint8 (n, h, w, 3) each, of one shape.
    """
    large = {name: np.concatenate(list(x)) for name, x in columns.items()}
    return side_by_side(
        [(name, x.repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)) for name, x in large.items()]
    )
