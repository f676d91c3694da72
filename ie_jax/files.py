"""Files: read within bounds, written whole or not at all."""

import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ie_jax.errors import UserError

MOST_JSON = 4_000_000
"""Bytes of JSON. In memory it may take twenty times as much."""
MOST_LINE = 1_000_000
"""Bytes of a line of text."""


# --- Reading ---


def need_file(path: Path, most: int, name: str = "") -> None:
    """Refuse what is no ordinary file, since a pipe would be waited for and a device never ends, or
    is too large.

    Args:
        most: bytes.
        name: for messages.

    Raises:
        UserError: it is refused.
        OSError: there is nothing of this name.
    """
    name = name or str(path)
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        kind = "a directory" if stat.S_ISDIR(facts.st_mode) else "no ordinary file"
        raise UserError(f"{name}: is {kind}; name a file")
    if facts.st_size > most:
        raise UserError(f"{name}: has over {most / 1e6:g} MB, which is more than is taken")


def read_bytes(path: Path, most: int, name: str = "") -> bytes:
    """What a file holds.

    Raises:
        UserError, OSError: see `need_file`.
    """
    need_file(path, most, name)
    with path.open("rb") as file:
        return file.read(most)


def read_lines(path: Path, most: int) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends, one after the other; a byte order mark is left
    out.

    Raises:
        UserError: see `need_file`; or not UTF-8, or a line is too long.
        OSError: it cannot be read.
    """
    need_file(path, most)
    place = 0
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(MOST_LINE)
            if len(line) == MOST_LINE:
                raise UserError(f"{path} line {number}: has over {MOST_LINE / 1e6:g} MB")
            if not line:
                return
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: is not UTF-8 text (byte {place + error.start}); convert it first"
                ) from error
            place += len(line)


def sha256(path: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str | bytes, most: int = MOST_JSON) -> Any:
    """The value that JSON stands for.

    Raises:
        ValueError: it is no JSON, or too large or deep.
    """
    if len(text) > most:
        raise ValueError(f"it has over {most / 1e6:g} MB")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


# --- Writing ---


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A folder for one process at a time; the lock ends with the process, however that ends.

    Raises:
        UserError: another process is at work there.
        OSError: there is no such folder.
    """
    number = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(number)
        raise UserError(
            f"{folder}: another run is writing there: wait for its end, or name another folder"
        ) from error
    except OSError:  # a file system without locks
        pass
    try:
        yield
    finally:
        os.close(number)


def temporary_name(path: Path) -> Path:
    """A free name in the same folder, so that renaming it to `path` is atomic.

    Names are as long as their bytes: some letters have four.
    """
    start = os.fsencode(path.name)[:100].decode(errors="ignore")
    return path.with_name(f".{start}.{secrets.token_hex(4)}.part")


@contextmanager
def appearing_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` at the end, or vanishes if anything is raised."""
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_appearing_whole(path: Path) -> Iterator[Path]:
    """A folder to fill that takes the name `path` at the end, in place of an older one."""
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
