"""Fetching of published files: resumed when broken off, and hashed so that later changes show.

A download folder holds, for every source fetched into it,

    hashes.json                     sha256 and size of every complete file, a hub file's commit
    stable-diffusion-v1-5/...       a hub repository's files, as they lie there
    iCD-SD15_4steps_1/...           what the archive of that name held
    iCD-SD15_4steps_1.tar.gz.part   a download that broke off

A file counts as complete only once it is in `hashes.json`. The first download has nothing to be
compared with but the hash that the hub announces for large files; from then on the record decides.
A repository's further files come from the commit of its first, so that all fit together.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import tarfile
import textwrap
import time
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

import filelock
import huggingface_hub
import pooch  # type: ignore[import-untyped]
import requests
from huggingface_hub.utils import tqdm

from ie_jax.errors import UserError
from ie_jax.files import need_file
from ie_jax.weights.formats import TORCH_SUFFIXES, need_torch, read_json
from ie_jax.weights.published import (
    ICD_URL,
    ArchivedFile,
    Files,
    HubFile,
    Published,
    Source,
    WebFile,
    single_files,
)

RECORD = "hashes.json"
_RETRY_PAUSES = (1.0, 3.0)  # seconds before the second and the third attempt
_TIMEOUTS = (10.0, 60.0)  # seconds to connect, and between two packets
_FINAL_STATUSES = {400, 401, 403, 404, 410}  # asking again will not help
_CHUNK = 1 << 18  # bytes
MOST_ARCHIVE, MOST_MEMBERS = 40_000_000_000, 500
"""Bytes of an archive, and files in it."""
SMALL_ARCHIVE, MOST_PACKED = 50_000_000, 10
"""An archive of any size may unpack to the one, or to the other times its size."""
_REPAIR = f"delete it to fetch it again, or delete {RECORD} beside it to record all files anew"


class Entry(TypedDict):
    """What `hashes.json` says of one file: sha256 in hexadecimal, bytes, and the hub's commit."""

    sha256: str
    size: int
    commit: NotRequired[str]


Record = dict[str, Entry]


def home() -> Path:
    """`$IE_JAX_HOME`, or the platform's cache folder for this program."""
    configured = os.environ.get("IE_JAX_HOME")
    return Path(configured).expanduser() if configured else Path(pooch.os_cache("ie_jax"))


def fetch(source: Source, folder: Path, *, offline: bool = False, progress: bool = True) -> Files:
    """`fetch_files` for a pair of models; returns where everything lies then."""
    folder = folder.expanduser().absolute()
    fetch_files(source, folder, offline=offline, progress=progress)
    return Files(
        pipeline=folder / source.pipeline[0].folder,
        teacher=_locate(source.teacher, folder),
        forward=_locate(source.forward, folder),
        backward=_locate(source.backward, folder),
    )


def fetch_files(
    source: Published, folder: Path, *, offline: bool = False, progress: bool = True
) -> None:
    """Makes sure that all files of a source lie in `folder`; downloads those that do not.

    Files already there are compared with the record by size only, which costs nothing; call
    `verify` before reading them. Several processes may fetch into one folder: they take turns.

    Args:
        source: anything of `sources`.
        folder: the download folder; sources may share it.
        offline: never use the network; also set by HF_HUB_OFFLINE=1 or IE_JAX_OFFLINE=1.
        progress: show progress bars on standard error.

    Raises:
        UserError: a file is missing while offline, cannot be downloaded, is not the one that was
            recorded, or comes in an archive that is damaged or unsafe.
    """
    folder = folder.expanduser().absolute()
    missing = _missing(source, folder)
    if missing and (offline or _offline_by_environment()):
        raise UserError(
            f"offline, and {folder} lacks {_listing(missing)}: run once with network access, or "
            "name a local folder that holds the files"
        )
    if missing:
        names = [name.removesuffix(".tar.gz") for name in source.archives]
        held = (Path(name) for name in (*names, *(file.name for file in source.web_files)))
        if any(path.suffix in TORCH_SUFFIXES for path in held):
            need_torch("the published weights")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / ".lock"):
                _fetch_missing(source, folder, progress)
        except OSError as error:
            raise UserError(f"cannot write to the download folder {folder}: {error}") from error


def verify(folder: Path, source: Published | None = None) -> dict[str, str]:
    """Compares files in a download folder with their recorded hashes, reading them in full.

    Returns the sha256 of each file by its path in the folder: of one source, or of all.

    Raises:
        UserError: a recorded file is missing or has changed; or the source was not fetched.
    """
    record = _read_record(folder)
    if source is not None:
        if missing := _missing(source, folder):
            raise UserError(f"{folder} lacks {_listing(missing)}: fetch the files first")
        record = _recorded(record, *_origins(source))
    for path, entry in record.items():
        if not (folder / path).is_file():
            raise UserError(f"{folder / path} is recorded in {RECORD} but missing: fetch it again")
        if not _same(_entry(folder / path), entry):
            raise UserError(f"{folder / path} has changed since it was downloaded: {_REPAIR}")
    return {path: entry["sha256"] for path, entry in record.items()}


def _offline_by_environment() -> bool:
    names = ("IE_JAX_OFFLINE", "HF_HUB_OFFLINE")
    return any(os.environ.get(name, "").lower() in {"1", "true", "yes", "on"} for name in names)


# ---------------------------------------------------------------------------------- the record


Origin = HubFile | WebFile | str


def _origins(source: Published) -> dict[str, Origin]:
    """What a source consists of: files by path, archives by the folder that they become."""
    files: dict[str, Origin] = {file.path: file for file in single_files(source)}
    return files | {f"{folder}/": archive for archive, folder in source.archives.items()}


def _recorded(record: Record, *prefixes: str) -> Record:
    return {path: entry for path, entry in record.items() if path.startswith(prefixes)}


def _missing(source: Published, folder: Path) -> dict[str, Origin]:
    """Those origins of a source whose files are not all recorded and there.

    Raises:
        UserError: a recorded file has another size now.
    """
    record = _read_record(folder)
    missing = {}
    for prefix, origin in _origins(source).items():
        entries = _recorded(record, prefix)
        present = {path: entry for path, entry in entries.items() if (folder / path).is_file()}
        if not entries or present != entries:
            missing[prefix] = origin
        for path, entry in present.items():
            if _size(folder / path) != entry["size"]:
                raise UserError(f"{folder / path} has changed since it was downloaded: {_REPAIR}")
    return missing


def _listing(origins: dict[str, Origin]) -> str:
    return ", ".join(
        origin if isinstance(origin, str) else origin.path for origin in origins.values()
    )


def _read_record(folder: Path) -> Record:
    path = folder / RECORD
    if not path.exists():
        return {}
    record = read_json(path)
    for entry in record.values():
        if not isinstance(entry, dict) or entry.keys() - {"commit"} != {"sha256", "size"}:
            raise UserError(f"{path} is not a record of hashes: delete it to record all files anew")
    return record


def _add_to_record(folder: Path, entries: Record) -> None:
    unfinished = folder / f"{RECORD}.part"
    record = _read_record(folder) | entries
    unfinished.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    os.replace(unfinished, folder / RECORD)


def _entry(path: Path) -> Entry:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": _size(path)}


def _same(one: Entry, other: Entry) -> bool:
    """Whether both are of the same bytes."""
    return (one["sha256"], one["size"]) == (other["sha256"], other["size"])


def _size(path: Path) -> int:
    return path.stat().st_size


def _same_as_recorded(folder: Path, entries: Record) -> None:
    """Refuses new downloads that differ from what was recorded for the same paths."""
    record = _read_record(folder)
    for path, entry in entries.items():
        if path in record and not _same(record[path], entry):
            raise UserError(
                f"the published file for {folder / path} is not the one recorded in {RECORD}: "
                f"delete {folder / RECORD} if the new one is wanted"
            )


def _locate(file: HubFile | ArchivedFile, folder: Path) -> Path:
    if isinstance(file, HubFile):
        return folder / file.path
    found = files_like(folder / file.folder, file.pattern)
    if len(found) != 1:
        raise UserError(f"expected one {file.pattern} in {file.archive}, found {len(found)}")
    return found[0]


# --------------------------------------------------------------------------------- the archives


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
        need_file(archive, MOST_ARCHIVE)
        unfinished.mkdir(parents=True)
        with gzip.open(archive) as packed:
            most = max(SMALL_ARCHIVE, MOST_PACKED * _size(archive))
            stream = Bounded(packed, most)
            with tarfile.open(fileobj=stream, mode="r|") as members:  # type: ignore[call-overload]
                members.extractall(unfinished, filter=careful(most))
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
    except (ValueError, ArithmeticError, LookupError) as error:  # names, times, numbers
        raise UserError(f"{archive} is damaged or not a .tar.gz archive: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class Bounded:
    """A stream that ends in an error after so many bytes."""

    def __init__(self, stream: Any, most: int) -> None:
        self.stream, self.left = stream, most

    def read(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            tarfile.ReadError: there are too many.
        """
        content: bytes = self.stream.read(min(count, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise tarfile.ReadError("it unpacks to many times its size")
        return content


def careful(most: int) -> Callable[[tarfile.TarInfo, str], tarfile.TarInfo | None]:
    """A filter that refuses what reaches outside, and links to what is not there, in place of
    mending or leaving out; and more than so many bytes, of which sparse files take none here."""
    seen: set[str] = set()
    left = most

    def check(member: tarfile.TarInfo, target: str) -> tarfile.TarInfo | None:
        nonlocal left
        left -= member.size
        parts = PurePosixPath(member.name).parts
        if member.name.startswith(("/", "\\")) or ".." in parts:
            raise tarfile.OutsideDestinationError(member, member.name)
        name = "/".join(parts)
        found = tarfile.data_filter(member, target)
        if member.islnk() and "/".join(PurePosixPath(member.linkname).parts) not in seen:
            raise tarfile.ReadError(f"{member.name!r} is a link to a file that is not there")
        seen.add(name)
        if left < 0 or len(seen) > MOST_MEMBERS:
            raise tarfile.ReadError(f"it holds over {most} bytes or {MOST_MEMBERS} files")
        return found

    return check


def files_like(folder: Path, pattern: str) -> list[Path]:
    """All files at any depth whose names match, sorted, without hidden ones.

    Hidden files are what some packers add beside each member (`._name`).
    """
    return sorted(
        path for path in folder.rglob(pattern) if path.is_file() and not path.name.startswith(".")
    )


# -------------------------------------------------------------------------------- the transfer


def _fetch_missing(source: Published, folder: Path, progress: bool) -> None:
    # Asked again under the lock: another process may just have fetched some.
    for prefix, origin in _missing(source, folder).items():
        if isinstance(origin, HubFile):
            _fetch_hub_file(origin, folder, progress)
        elif isinstance(origin, WebFile):
            _fetch_web_file(origin, folder, progress)
        else:
            _fetch_archive(origin, folder / prefix, folder, progress)


class _Silent(tqdm):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"disable": True}))


def _fetch_hub_file(file: HubFile, folder: Path, progress: bool) -> None:
    # The hub's client reads HF_ENDPOINT once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    entries = _recorded(_read_record(folder), f"{file.folder}/").values()
    recorded = next((entry["commit"] for entry in entries if "commit" in entry), None)
    revision = str(recorded or file.revision)
    url = huggingface_hub.hf_hub_url(file.repo, file.name, revision=revision, endpoint=endpoint)
    try:
        # Asked first, because this fails at once where the download would retry for half a minute.
        told = huggingface_hub.get_hf_file_metadata(url)
        commit = told.commit_hash or ""
        if revision not in (commit, "main"):
            raise ValueError(f"the hub answers with commit {commit}")
        huggingface_hub.hf_hub_download(
            file.repo,
            file.name,
            revision=commit,
            local_dir=folder / file.folder,
            endpoint=endpoint,
            tqdm_class=None if progress else _Silent,
        )
    # The client's errors come from whichever of several HTTP libraries its version uses.
    except Exception as error:
        newest = f": to take the newest files, delete {folder / RECORD}" if recorded else ""
        raise UserError(f"cannot download {url}: {_one_line(error)}{newest}") from error

    path = folder / file.path
    entry: Entry = {**_entry(path), "commit": commit}
    # Large files are announced with their sha256, small ones with a git hash.
    if re.fullmatch("[0-9a-f]{64}", told.etag or "") and told.etag != entry["sha256"]:
        path.unlink()
        raise UserError(f"{url} did not arrive with the hash that the hub announces: try again")
    _keep(path, file.path, entry, folder)


def _fetch_web_file(file: WebFile, folder: Path, progress: bool) -> None:
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    _download(file.url, path, progress)
    entry = _entry(path)
    if not entry["sha256"].startswith(file.start):
        path.unlink()
        raise UserError(f"{file.url} did not arrive with the hash that its name tells: try again")
    _keep(path, file.path, entry, folder)


def _keep(path: Path, name: str, entry: Entry, folder: Path) -> None:
    """Records a download, or removes it if it is not what was recorded before."""
    try:
        _same_as_recorded(folder, {name: entry})
    except UserError:
        path.unlink()
        raise
    _add_to_record(folder, {name: entry})


def _fetch_archive(archive: str, target: Path, folder: Path, progress: bool) -> None:
    """Downloads and unpacks one archive, and removes it: only its content is kept."""
    base = os.environ.get("IE_JAX_ICD_URL") or ICD_URL
    url = f"{base.rstrip('/')}/{archive}"
    packed = folder / archive
    if not packed.exists():  # else a run ended between download and unpacking
        _download(url, packed, progress)
    try:
        unpack(packed, target)
    except UserError as error:
        packed.unlink()
        raise UserError(f"{error} (downloaded from {url}, and deleted)") from error
    files = (path for path in target.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): _entry(path) for path in files}
    try:
        _same_as_recorded(folder, entries)
    except UserError:
        shutil.rmtree(target)
        raise
    finally:
        packed.unlink()
    _add_to_record(folder, entries)


def _download(url: str, target: Path, progress: bool) -> None:
    """Downloads one file, continuing `<target>.part`; `target` appears only when complete."""
    for pause in (*_RETRY_PAUSES, None):
        try:
            return _continue_download(url, target, progress)
        except requests.RequestException as error:
            if pause is None or _status(error) in _FINAL_STATUSES:
                raise UserError(f"cannot download {url}: {_one_line(error)}") from error
            time.sleep(pause)


def _continue_download(url: str, target: Path, progress: bool) -> None:
    part = target.with_name(f"{target.name}.part")
    with part.open("ab") as output:
        # One byte is asked for again, so that the range is valid even if nothing is missing.
        start = max(output.tell() - 1, 0)

        def before_body(response: requests.Response, **_: Any) -> None:
            if response.ok and not response.is_redirect:
                sent = response.headers.get("Content-Range", "")
                output.truncate(start if sent.startswith(f"bytes {start}-") else 0)

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        download = pooch.HTTPDownloader(
            progressbar=progress,
            chunk_size=_CHUNK,
            headers=headers,
            timeout=_TIMEOUTS,
            hooks={"response": before_body},
        )
        try:
            download(url, output, None)
        except requests.HTTPError as error:
            if _status(error) == requests.codes.requested_range_not_satisfiable:
                output.truncate(0)  # the published file is shorter now
            raise
    os.replace(part, target)


def _status(error: requests.RequestException) -> int | None:
    return None if error.response is None else error.response.status_code


def _one_line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 300) or type(error).__name__
