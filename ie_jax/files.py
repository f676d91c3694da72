"""Files that appear whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
