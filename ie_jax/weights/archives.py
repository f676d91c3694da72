"""Unpacking of downloaded archives, without trusting them."""

import gzip
import os
import shutil
import tarfile
import zlib
from pathlib import Path

from ie_jax.errors import UserError


def unpack(archive: Path, target: Path) -> None:
    """Unpacks a `.tar.gz` as the new folder `target`, replacing one that is there.

    The folder appears only when the whole archive has been read and its checksum was right.
    Two processes must not unpack to one target at once; the caller holds a lock.

    Raises:
        UserError: the archive is damaged, or has a member that would reach outside the folder
            (a path, a link) or is a device.
    """
    unfinished = target.with_name(f".{target.name}.unpacking")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        with gzip.open(archive) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as members:
                members.extractall(unfinished, filter="data")
            # tarfile stops at its own end mark; gzip compares checksums at the very end.
            while stream.read(1 << 20):
                pass
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}") from error
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{archive} is damaged or not a .tar.gz archive: {error}") from error
    except OSError as error:
        raise UserError(f"cannot unpack {archive} to {target}: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def find(folder: Path, pattern: str) -> list[Path]:
    """All files at any depth whose names match, sorted, without hidden ones.

    Hidden files are what some packers add beside each member (`._name`).
    """
    return sorted(
        path for path in folder.rglob(pattern) if path.is_file() and not path.name.startswith(".")
    )
