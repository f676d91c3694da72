"""A real training process is killed again and again; what comes out is what would have come out."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.training.test_loop import lines, same_tensors

SETTINGS = [
    *("--config", "tests/training/tiny.yaml", "--data.validation", "0"),
    *("--cycle.distance", "l2", "--cycle.cycle-weight", "0", "--cycle.preservation-weight", "0"),
    *("--steps", "30", "--save-every", "1"),
]
"""Distillation of the smallest model."""
CLASSIFIER = [
    *("--config", "configs/world/classifier.yaml", "--data.validation", "0"),
    *("--model", "configs/world/blueprint", "--data.world-scenes", "64", "--batch-size", "2"),
    *("--classifier.widths", "8", "8", "--classifier.depths", "1", "1"),
    *("--optimiser.warmup-steps", "0", "--optimiser.decay-steps", "30", "--log-every", "1"),
    *("--steps", "15", "--save-every", "1"),
]
"""A stage that starts in a second."""


class Server:
    """Starts runs one after the other."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.lives"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )

    def answer(self) -> int:
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def start(self, settings: Sequence[str], folder: Path) -> int:
        """Begin or resume a run; returns the process's number."""
        assert self.process.stdin
        arguments = [*settings, "--output", str(folder), "--resume", str(self.log)]
        self.process.stdin.write(json.dumps(arguments) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def steps_told(self) -> int:
        return self.log.read_text().count("\nstep ") if self.log.exists() else 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "log.txt")
    yield server
    assert server.process.stdin and server.process.stdout
    server.process.stdin.close()
    server.process.wait(60)
    server.process.stdout.close()


@pytest.mark.long("two whole runs, and five that start anew after a kill")
def test_a_run_killed_at_five_moments_equals_an_uninterrupted_one(
    server: Server, tmp_path: Path
) -> None:
    # While it starts; after a step; in the save or the step after that.
    moments = [(0, 2.0), (1, 0.0), (1, 0.02), (2, 0.1), (1, 0.3)]
    kill_again_and_again(server, CLASSIFIER, tmp_path, moments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(
    server: Server, tmp_path: Path
) -> None:
    draw = random.Random(0)
    moments = [
        (0, draw.uniform(0, 5)) if steps < 0 else (steps, draw.uniform(0, 0.5))
        for steps in draw.choices([-1, -1, 1, 1, 2], k=20)
    ]
    kill_again_and_again(server, SETTINGS, tmp_path, moments)


def kill_again_and_again(
    server: Server, settings: Sequence[str], tmp_path: Path, moments: Sequence[tuple[int, float]]
) -> None:
    """Kill a run after so many steps and seconds, resume it, and so on; then let it end.

    A run that was finished before is begun anew and killed at that moment again.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    server.start(settings, whole)
    assert server.answer() == 0, server.log.read_text()
    kills = 0
    while kills < len(moments):
        steps, seconds = moments[kills]
        pid, told = server.start(settings, parts), server.steps_told()
        end = time.monotonic() + 120
        while server.steps_told() < told + steps and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        status = server.answer()
        assert status in (0, -signal.SIGKILL), server.log.read_text()
        kills += status != 0
        if status == 0:  # finished before: once more
            same_result(whole, parts)
            shutil.rmtree(parts)
    server.start(settings, parts)
    assert server.answer() == 0, server.log.read_text()
    same_result(whole, parts)


def same_result(whole: Path, parts: Path) -> None:
    """Equal bit for bit."""
    written = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert written
    for name in written:
        assert same_tensors(whole / name, parts / name), name
    assert lines(whole) == lines(parts)
