"""A real training process is killed again and again; what comes out is what would have come out."""

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from tests.forks import Fork
from tests.training import lives
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


class Lives:
    """Runs of the command into a folder, one after the other, which all print into one file."""

    def __init__(self, settings: Sequence[str], folder: Path) -> None:
        self.argv = [*settings, "--output", str(folder), "--resume"]
        self.log = folder.with_suffix(".txt")

    def begin(self) -> Fork:
        """Begin or resume."""
        return Fork(lives.main, self.argv, self.log)

    def finish(self) -> None:
        """Begin or resume, and let it end."""
        status, _, errors = self.begin().wait()
        assert status == 0, errors

    def steps_told(self) -> int:
        """How many steps were logged so far."""
        log = Path(f"{self.log}.errors")
        return log.read_text().count("\nstep ") if log.exists() else 0


@pytest.mark.long("two whole runs, and three that start anew after a kill")
def test_a_run_killed_at_three_moments_equals_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    # While it starts; after a step; in the save or the step after that.
    moments = [(0, 0.7), (1, 0.0), (1, 0.02)]
    kill_again_and_again(CLASSIFIER, tmp_path, moments)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(
    tmp_path: Path,
) -> None:
    draw = random.Random(0)
    moments = [
        (0, draw.uniform(0, 5)) if steps < 0 else (steps, draw.uniform(0, 0.5))
        for steps in draw.choices([-1, -1, 1, 1, 2], k=20)
    ]
    kill_again_and_again(SETTINGS, tmp_path, moments)


def kill_again_and_again(
    settings: Sequence[str], tmp_path: Path, moments: Sequence[tuple[int, float]]
) -> None:
    """Kill a run after so many steps and seconds, resume it, and so on; then let it end.

    A run that was finished before is begun anew and killed at that moment again.
    """
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    Lives(settings, whole).finish()
    run, kills = Lives(settings, parts), 0
    while kills < len(moments):
        steps, seconds = moments[kills]
        told = run.steps_told()
        fork = run.begin()
        end = time.monotonic() + 120
        while run.steps_told() < told + steps and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(seconds)
        with suppress(ProcessLookupError):  # it ended
            os.kill(fork.pid, signal.SIGKILL)
        status, _, errors = fork.wait()
        assert status in (0, -signal.SIGKILL), errors
        kills += status != 0
        if status == 0:  # finished before: once more
            same_result(whole, parts)
            shutil.rmtree(parts)
    run.finish()
    same_result(whole, parts)


def same_result(whole: Path, parts: Path) -> None:
    """Equal bit for bit."""
    written = sorted(path.relative_to(whole) for path in whole.rglob("*.safetensors"))
    assert written
    for name in written:
        assert same_tensors(whole / name, parts / name), name
    assert lines(whole) == lines(parts)
