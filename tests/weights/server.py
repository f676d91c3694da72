"""A loopback HTTP server with the upstream names, for tests of downloads."""

import hashlib
import os
import random
import re
import tarfile
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import pytest

from ie_jax.weights.published import FINE_TUNED, HUB_CYCLE, HUB_SD15, PIPELINE_FILES

TEACHER = "sd15_cfg_distill.pt"
REVERSE = "iCD-SD15-reverse_259_519_779_999.safetensors"
ARCHIVE_PATH = "/invertible-cd/"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make_up_checkpoints(folder: Path) -> None:
    """Fills a folder with files of the published names and random bytes."""
    names = [f"stable-diffusion-v1-5/{name}" for name in PIPELINE_FILES]
    random_bytes = random.Random(0).randbytes
    for name in (*names, FINE_TUNED, REVERSE, TEACHER):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(random_bytes(1 << 20 if name == TEACHER else 5000))


def recorded_checkpoints() -> Path:
    """The small checkpoints of the recorded data, whose folder IE_JAX_GOLDENS may name."""
    beside = Path(__file__).parents[3] / "shared" / "goldens"
    checkpoints = Path(os.environ.get("IE_JAX_GOLDENS") or beside) / "checkpoints"
    if not checkpoints.is_dir():
        pytest.skip("needs the recorded data: set IE_JAX_GOLDENS to its folder")
    return checkpoints


def publish(checkpoints: Path, archives: Path) -> dict[str, Path]:
    """What upstream serves, by URL path, made from a folder of checkpoints.

    `archives` is an empty folder for the archives to be built in.
    """
    forward, reverse = checkpoints / FINE_TUNED, checkpoints / REVERSE
    contents = {
        "sd15_cfg_distill.pt.tar.gz": {TEACHER: checkpoints / TEACHER},
        "iCD-SD15_4steps_1.tar.gz": {
            "iCD-SD15_4steps_1/iCD-SD15-forward_19_259_519_779.safetensors": forward,
            "iCD-SD15_4steps_1/iCD-SD15-reverse_259_519_779_999.safetensors": reverse,
        },
        "iCD-SD15_4steps_2.tar.gz": {
            "iCD-SD15-forward_19_249_499_699.safetensors": forward,
            "iCD-SD15-reverse_249_499_699_999.safetensors": reverse,
        },
        "iCD-SD15_3steps.tar.gz": {
            "iCD-SD15-forward_19_339_699.safetensors": forward,
            "iCD-SD15-reverse_339_699_999.safetensors": reverse,
        },
    }
    served = {
        f"/{HUB_SD15}/resolve/main/{name}": checkpoints / "stable-diffusion-v1-5" / name
        for name in PIPELINE_FILES
    }
    served[f"/{HUB_CYCLE}/resolve/main/{FINE_TUNED}"] = forward
    for archive, members in contents.items():
        with tarfile.open(archives / archive, "w:gz", compresslevel=1) as packed:
            for name, path in members.items():
                packed.add(path, name)
        served[ARCHIVE_PATH + archive] = archives / archive
    return served


class Request(NamedTuple):
    """One request that came in; `start` is the first byte of its range, if it had one. The path of
    a commit is that of `main`, and `commit` tells which."""

    method: str
    path: str
    start: int | None
    commit: str | None = None


class Server:
    """Serves `files`, from URL paths to local files, on a port of its own.

    Answers as the hub does (`ETag`, `X-Repo-Commit`, ranges), which ordinary clients do not mind.
    `requests` lists what was asked. `breaks[path]` holds, for each of the next GETs of that path,
    the number of body bytes after which the connection is cut although more were promised.
    `etags` replaces tags that are otherwise true: sha256 for weights, something else for the rest.
    Of every commit there are the same files, but for those in `gone`; `main` is `commit`.
    """

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.requests: list[Request] = []
        self.breaks: dict[str, list[int]] = defaultdict(list)
        self.etags: dict[str, str] = {}
        self.ignore_ranges = False
        self.commit, self.gone = COMMIT, set[str]()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def gets(self, path: str = "") -> list[Request]:
        """The GET requests whose path contains this."""
        return [r for r in self.requests if r.method == "GET" and path in r.path]

    def __enter__(self) -> "Server":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each file waits 40 ms for an acknowledgement

            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, with_body: bool) -> None:
                asked = self.headers.get("Range")
                start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else None
                found = re.search("(?<=/resolve/)[0-9a-f]{40}(?=/)", self.path)
                commit = found.group() if found else None
                self.path = self.path.replace(commit or "main", "main")
                server.requests.append(Request(self.command, self.path, start, commit))
                if self.path not in server.files or commit in server.gone:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = server.files[self.path].read_bytes()
                if start is not None and start >= len(content) and not server.ignore_ranges:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = content
                if start is None or server.ignore_ranges:
                    self.send_response(200)
                else:
                    body = content[start:]
                    self.send_response(206)
                    last = len(content) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Accept-Ranges", "bytes")
                hashed = hashlib.sha256 if self.path.endswith(".safetensors") else hashlib.sha1
                etag = server.etags.get(self.path, hashed(content).hexdigest())
                self.send_header("ETag", f'"{etag}"')
                self.send_header("X-Repo-Commit", commit or server.commit)
                self.end_headers()
                if not with_body:
                    return
                if server.breaks[self.path]:
                    body = body[: server.breaks[self.path].pop(0)]
                    self.close_connection = True
                self.wfile.write(body)

        return Handler
