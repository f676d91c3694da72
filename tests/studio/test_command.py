"""The command: how it begins, and that nothing is left when it ends."""

import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ie_jax.cli import run
from ie_jax.editing.config import EditConfig
from ie_jax.studio import command
from ie_jax.studio.command import StudioRequest, serve
from tests.forks import Fork

ROOT = Path(__file__).parents[2]


def begin(argv: Sequence[str]) -> None:
    run(serve, argv)


@pytest.mark.parametrize(
    ("argv", "gradio", "message"),
    [
        ([], None, "the studio needs gradio: pip install 'ie_jax[studio]'"),
        (["--method", "ddim"], "here", "the studio is of our method, not of ddim"),
        (["--port", "x"], "here", "port"),
    ],
)
def test_what_cannot_begin_is_one_line(
    argv: list[str],
    gradio: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: gradio)
    with pytest.raises(SystemExit) as caught:
        begin(argv)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and message in error and len(error.splitlines()) == 1


def test_the_app_of_a_space_is_as_the_docs_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    told = (ROOT / "docs" / "studio.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", told, re.DOTALL)
    assert len(code.split("\n\n")) == 2 and len(code.strip().splitlines()) == 4
    called: list[object] = []
    monkeypatch.setattr(command, "launch", lambda *given: called.extend(given))
    exec(code, {})
    assert called == [EditConfig(model="sd15"), StudioRequest(host="0.0.0.0")]


def test_nothing_is_left_when_it_is_ended(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the studio's page needs gradio")
    argv = ["--model", "random", "--offline", "--port", str(20000 + os.getpid() % 20000)]
    output = tmp_path / "out.txt"
    output.touch()
    fork = Fork(begin, argv, output, {"TMPDIR": str(tmp_path)})
    try:
        end = time.monotonic() + 60
        while "the studio is at" not in output.read_text() and time.monotonic() < end:
            assert fork.poll() is None, fork.errors.read_text()
            time.sleep(0.1)
        (folder,) = tmp_path.glob("ie_jax-studio-*")
        assert list(folder.iterdir())
        os.kill(fork.pid, signal.SIGTERM)
        status, _, errors = fork.wait(20)
        assert (status, "Traceback" in errors) == (0, False)
        assert not folder.exists()
    finally:
        fork.process.kill()
