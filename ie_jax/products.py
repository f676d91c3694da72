"""Files that a command writes: which of those that exist already it may replace.

Beside its pictures a command leaves a record, NAME.json, which names them with their hashes. By it
the next run knows its own files from a person's.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ie_jax.errors import UserError

PROGRAM = "ie_jax"
MOST = 50_000_000
"""Bytes of a record; a larger file is none of ours."""


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
    outputs: dict[str, Any] = own.get("outputs", {})
    for path in paths:
        if path.exists() and outputs.get(path.name) != digest(path):
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


def record_of(paths: Iterable[Path]) -> dict[str, Any]:
    """What a record says of the files written."""
    return {"program": PROGRAM, "outputs": {path.name: digest(path) for path in paths}}


def read_record(path: Path) -> dict[str, Any]:
    """A record of this program; empty if it is something else, or not there."""
    try:
        if not path.is_file() or path.stat().st_size > MOST:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    ours = isinstance(found, dict) and found.get("program") == PROGRAM
    return found if ours and isinstance(found.get("outputs"), dict) else {}


def digest(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
