"""Two processes train as one does."""

import json
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np

from tests.conftest import ROOT
from tests.training.test_checkpoints import PROGRAM, program
from tests.training.test_loop import lines


def pair(folder: Path, steps: int) -> list[subprocess.Popen[str]]:
    """Two processes that talk over gloo, with one device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [*PROGRAM, str(folder), str(steps), "1", address, "2", str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(2)
    ]


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    whole = np.array(json.loads(program(tmp_path / "whole", 8)))
    for process in pair(tmp_path / "parts", 5):
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    after_five = json.loads(out.strip().splitlines()[-1])
    first = json.loads(program(tmp_path / "five", 5))
    np.testing.assert_allclose(np.array(after_five), np.array(first), rtol=1e-5)
    # One process goes on from what two have saved.
    parts = np.array(json.loads(program(tmp_path / "parts", 8)))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    ours, theirs = lines(tmp_path / "parts"), lines(tmp_path / "whole")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)


def test_sigterm_to_one_of_two_stops_both_after_the_same_step(tmp_path: Path) -> None:
    processes = pair(tmp_path, 100_000)
    try:
        while not (tmp_path / "checkpoints" / "9").is_dir():
            assert processes[0].poll() is None, processes[0].communicate()[1]
        processes[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ends
    weights = [out.splitlines()[-1] for out, _ in ends]
    assert weights[0] == weights[1]
    assert "stopped by SIGTERM after step" in ends[0][1]
