"""Two processes train as one does."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.forks import Fork, free_address
from tests.training import lives, regression
from tests.training.regression import fit
from tests.training.test_kill import SETTINGS
from tests.training.test_loop import lines


def pair(folder: Path, steps: int) -> list[Fork]:
    """Two processes that talk over gloo, with one device each."""
    address = free_address()
    return [
        Fork(
            regression.main,
            [folder, steps, 1, address, 2, number],
            folder.with_name(f"{folder.name}-{number}.txt"),
        )
        for number in range(2)
    ]


def train(folder: Path, *options: str) -> Fork:
    """The command, with the smallest real model."""
    argv = [*SETTINGS, "--steps", "4", "--save-every", "2", "--quiet", *options]
    number = len(list(folder.parent.iterdir()))
    return Fork(lives.main, [*argv, "--output", folder], folder.with_name(f"train-{number}.txt"))


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 8).params["w"]
    for fork in pair(tmp_path / "parts", 5):
        status, out, errors = fork.wait()
        assert status == 0, errors
    after_five = json.loads(out.strip().splitlines()[-1])
    first = fit(tmp_path / "five", 5).params["w"]
    np.testing.assert_allclose(np.array(after_five), first, rtol=1e-5)
    # One process goes on from what two have saved.
    parts = fit(tmp_path / "parts", 8).params["w"]
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    ours, theirs = lines(tmp_path / "parts"), lines(tmp_path / "whole")
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)


@pytest.mark.long("two processes start and wait for each other")
def test_sigterm_to_one_of_two_stops_both_after_the_same_step(tmp_path: Path) -> None:
    forks = pair(tmp_path / "run", 100_000)
    try:
        while not (tmp_path / "run" / "checkpoints" / "9").is_dir():
            assert forks[0].poll() is None, forks[0].wait()
        os.kill(forks[1].pid, signal.SIGTERM)
        ends = [fork.wait() for fork in forks]
    finally:
        for fork in forks:
            fork.process.kill()
    assert [status for status, _, _ in ends] == [0, 0], ends
    weights = [out.splitlines()[-1] for _, out, _ in ends]
    assert weights[0] == weights[1]
    assert "stopped by SIGTERM after step" in ends[0][2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_fine_tune_the_real_model_as_one_does(tmp_path: Path) -> None:
    group = ("--coordinator", free_address(), "--processes", "2")
    alone = [train(tmp_path / "one")]
    both = [train(tmp_path / "two", *group, "--process-id", str(i)) for i in range(2)]
    for fork in alone + both:
        status, _, errors = fork.wait(400)
        assert status == 0, errors
    ours, theirs = lines(tmp_path / "two"), lines(tmp_path / "one")
    assert [row.keys() for row in ours] == [row.keys() for row in theirs]
    for row, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-5)
    trained, expected = (
        load_file(tmp_path / name / "forward_lora.safetensors") for name in ("two", "one")
    )
    assert trained.keys() == expected.keys()
    for name, array in expected.items():
        error = np.linalg.norm(trained[name] - array) / np.linalg.norm(array)
        assert error < 1e-4, name
