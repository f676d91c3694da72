"""Files that a command writes: which of those that exist already it may replace, and how it leaves
them.

Beside its pictures a command leaves a record, NAME.json, which names them with their hashes. By it
the next run knows its own files from a person's, and what is finished. The record comes first: a
picture without one is never this program's, however a run ended.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, need_file, parse_json, read_bytes, sha256

PROGRAM = "ie_jax"
OWN: dict[str, Any] = {"program": PROGRAM, "outputs": {}}
"""A record of nothing but itself."""
MOST = 5_000_000
"""Bytes of a record; a larger file is none of ours."""
MOST_PICTURE = 10_000_000_000


def check_free(
    paths: Sequence[Path], record: Path, inputs: Iterable[Path] = (), overwrite: bool = False
) -> None:
    """Refuse to replace what a person would miss.

    Args:
        paths: what is to be written beside the record.
        inputs: what is read.
        overwrite: the person insists.

    Raises:
        UserError: a path is an input, or exists and is not as an earlier run left it.
    """
    if overwrite:
        return
    insist = "name another --output, or insist with --overwrite"
    for path in [*paths, record]:
        for given in inputs:
            if path.exists() and given.exists() and path.samefile(given):
                raise UserError(f"{path}: is what is to be edited: {insist}")
    own = read_record(record)
    for path in paths:
        if path.exists() and digest(path) not in known(own, path):
            raise UserError(f"{path}: exists already, and not from this program: {insist}")
    if record.exists() and not own:
        raise UserError(f"{record}: exists already, and not from this program: {insist}")


def check_folder(folder: Path, record: Path, overwrite: bool = False) -> None:
    """Refuse to write into a folder that holds other things than an earlier run's.

    Raises:
        UserError: it does, as its record tells, and the person does not insist.
    """
    if not overwrite and folder.is_dir() and any(folder.iterdir()) and not read_record(record):
        raise UserError(
            f"{folder}: holds files that are not from this program: name another --output, or "
            "insist with --overwrite"
        )


def known(record: Mapping[str, Any], path: Path) -> list[Any]:
    """The hashes that a record gives a file: as it was written, and as it was before, if the run
    ended between the record and the file."""
    return [record.get(when, {}).get(path.name) for when in ("outputs", "replaced")]


def leave(files: Mapping[Path, bytes], record: Path, facts: Mapping[str, Any]) -> None:
    """Write a record and its files, each of which appears whole.

    Args:
        files: what each holds.
        facts: what else the record says.

    Raises:
        UserError: one cannot be written.
    """
    old = {path.name: digest(path) for path in files if path.exists()}
    outputs = {path.name: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    told = {"program": PROGRAM, "outputs": outputs, "replaced": old} | dict(facts)
    text = json.dumps(told, indent=1, allow_nan=False) + "\n"
    for path, content in {record: text.encode(), **files}.items():
        try:
            with appearing_whole(path) as file:
                file.write(content)
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise UserError(f"{path}: cannot be written: {problem}") from error


def is_finished(record: Path, facts: Mapping[str, Any]) -> bool:
    """Whether an earlier run left a record with these facts, and all its files are as it left
    them."""
    own = read_record(record)
    same = all(own.get(name) == value for name, value in facts.items())
    return (
        bool(own)
        and same
        and all(
            (path := record.with_name(name)).is_file() and digest(path) == value
            for name, value in own["outputs"].items()
        )
    )


def read_record(path: Path) -> dict[str, Any]:
    """A record of this program; empty if it is something else, or not there."""
    try:
        found = parse_json(read_bytes(path, MOST), MOST)
    except (OSError, ValueError, UserError):
        return {}
    ours = isinstance(found, dict) and found.get("program") == PROGRAM
    return found if ours and isinstance(found.get("outputs"), dict) else {}


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        need_file(path, MOST_PICTURE)
        return sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
