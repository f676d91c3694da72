"""Caption files: tables of file names and captions, and texts beside pictures."""

import csv
import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ie_jax.errors import UserError
from ie_jax.files import parse_json, read_lines
from ie_jax.models.tokenizer import is_text

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path", "filepath")
MOST_TABLE, MOST_TEXT = 10_000_000_000, 1_000_000
"""Bytes of a table, and of a text beside a picture."""
CAPTION_COLUMNS = ("caption", "captions", "text", "prompt", "title")


@dataclass(frozen=True)
class Row:
    """One picture of a table."""

    where: str
    """File and line, for messages."""
    file: str
    """As it stands in the table; empty if the line names none."""
    captions: tuple[str, ...] | None
    """None: those of the text beside the picture."""


def read_table(path: Path) -> list[Row]:
    """The pictures of a `.csv` or `.jsonl` table, in its order, with all captions of each.

    The columns are recognised by name (`FILE_COLUMNS`, `CAPTION_COLUMNS`). A line that lacks a
    value becomes a row without file or caption: it is one broken picture, not a broken table.

    Raises:
        UserError: unreadable, not UTF-8, no such columns, or a line that cannot be parsed.
    """
    rows = read_csv(path) if path.suffix == ".csv" else read_jsonl(path)
    return joined(rows)


def lines_of(path: Path, most: int = MOST_TABLE) -> Iterator[str]:
    """The lines of a text, with their ends.

    Raises:
        UserError: unreadable, too large, or not UTF-8.
    """
    try:
        yield from read_lines(path, most)
    except (OSError, ValueError) as error:  # the latter for a name that cannot be one
        problem = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read: {problem}") from error


def read_objects(path: Path, holds: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The lines of a `.jsonl` file, an object each: number, place for messages, and object.

    Args:
        holds: what an object must have, for messages.

    Raises:
        UserError: unreadable, or a line is no object.
    """
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            values = parse_json(line)
        except ValueError as error:
            raise UserError(f"{where}: is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{where}: must be an object with {holds}")
        yield number, where, values


def text_captions(path: Path) -> tuple[str, ...]:
    """The captions of a text file beside a picture: one per line that is not blank."""
    return clean("".join(lines_of(path, MOST_TEXT)).splitlines())


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a table with an object per line. A caption may be a list of several."""
    columns: tuple[str, str] | None = None
    for _, where, values in read_objects(path, "file_name and text"):
        if columns is None:
            columns = named_columns(list(values), where)
        file, captions = (values.get(column) for column in columns)
        listed = captions if isinstance(captions, list) else [captions]
        yield Row(where, file if isinstance(file, str) else "", clean(listed))


def read_csv(path: Path) -> Iterator[Row]:
    """Rows of a table with a header, separated by commas or tabs.

    A header without known names is taken as the original release takes every header: the second
    column is the file and the third the caption.
    """
    lines = lines_of(path)
    first = next(lines, "")
    delimiter = "\t" if "\t" in first else ","
    # Of its own kind are the ends of lines of old Macs.
    ended = (x for line in itertools.chain([first], lines) for x in io.StringIO(line, newline=""))
    table = csv.reader(ended, delimiter=delimiter, strict=True)
    try:
        names = next(table, [])
        file, caption = map(names.index, released_columns(names) or named_columns(names, str(path)))
        for cells in table:
            if len(cells) > len(names) == caption + 1:  # commas of an unquoted caption
                cells = [*cells[:caption], delimiter.join(cells[caption:])]
            if len(cells) > len(names):
                raise UserError(
                    f"{path} line {table.line_num}: has {len(cells)} cells, the header "
                    f"{len(names)}: put a caption with commas in quotes"
                )
            if cells:
                padded = [*cells, *[""] * (len(names) - len(cells))]
                yield Row(f"{path} line {table.line_num}", padded[file], clean([padded[caption]]))
    except csv.Error as error:
        raise UserError(f"{path} line {table.line_num}: is not CSV: {error}") from error


def released_columns(names: Sequence[str]) -> tuple[str, str] | None:
    """The second and third of three columns, if their names say nothing."""
    known = {*FILE_COLUMNS, *CAPTION_COLUMNS}
    unnamed = len(names) == len(set(names)) == 3 and not known & {name.lower() for name in names}
    return (names[1], names[2]) if unnamed else None


def named_columns(names: Sequence[str], where: str) -> tuple[str, str]:
    """The names of the column of files and of that of captions, in any case of letters."""
    lower = {name.strip().lower(): name for name in reversed(names)}
    found = [
        next((lower[known] for known in wanted if known in lower), None)
        for wanted in (FILE_COLUMNS, CAPTION_COLUMNS)
    ]
    if found[0] is None or found[1] is None:
        shown = ", ".join(map(repr, names)) or "nothing"
        raise UserError(
            f"{where}: has the columns {shown}: name one file_name and one caption (or text)"
        )
    return found[0], found[1]


def clean(captions: Sequence[Any]) -> tuple[str, ...]:
    """What is text and not blank, without white space around it."""
    return tuple(c.strip() for c in captions if is_text(c) and c.strip())


def joined(rows: Iterable[Row]) -> list[Row]:
    """One row per file, with the captions of all its lines; lines that name none stay apart."""
    first: dict[str, Row] = {}
    captions: dict[str, list[str]] = {}
    for row in rows:
        key = row.file or row.where
        first.setdefault(key, row)
        captions.setdefault(key, []).extend(row.captions or ())
    return [Row(row.where, row.file, tuple(captions[key])) for key, row in first.items()]
