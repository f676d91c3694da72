"""The GPU benchmark: its report, its processes, its end, and a run at a tiny size."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu
from benchmarks.edits import Figure
from benchmarks.gpu import OutOfTime, Report
from benchmarks.harness import Worker
from ie_jax.errors import UserError

PLAIN = Figure("plain", 2)


def report(tmp_path: Path, seconds: float = 60.0) -> Report:
    record = {"results": {}, "matrix rate": 100e12}
    return Report(
        time.monotonic() + seconds, tmp_path / "gpu.json", record, lambda: {"plain": 5e12}
    )


def test_each_figure_is_on_paper_at_once(tmp_path: Path) -> None:
    found = report(tmp_path)
    latents = np.ones((4, 2, 3, 3, 1), np.float32)
    found.add(PLAIN, "ours", {"compile": 3.0, "temporaries": 2_000_000_000})
    found.add(PLAIN, "ours", {"seconds": [0.3, 0.2, 0.1], "latents": latents})
    found.add(PLAIN, "torch graph", {"seconds": [0.5], "latents": 1.01 * latents})
    found.add(PLAIN, "torch compiled", {"error": "no memory"})
    rows = list(found.table())[2:]
    # 2 images of 5 TFLOP in 0.2 s are 50 TFLOP/s.
    assert rows[0] == "| plain-2 | ours | 3 | 200 | 1 | 50 | 50 | 2 | - |"
    assert rows[1] == "| plain-2 | torch graph | - | 500 | 2.5 | 20 | 20 | - | 1.0e-02 |"
    assert rows[2] == "| plain-2 | torch compiled | no memory |"
    assert json.loads((tmp_path / "gpu.json").read_text())["results"]["plain-2"]["ours"] == {
        "compile": 3.0,
        "temporaries": 2_000_000_000,
        "seconds": [0.3, 0.2, 0.1],
        "median": 0.2,
    }


class Program:
    """Answers slowly, or not at all."""

    def __init__(self, broken: bool = False) -> None:
        if broken:
            raise RuntimeError("cannot\nload")

    def nap(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


def test_an_error_is_a_figure_and_the_minutes_are_kept(tmp_path: Path) -> None:
    patient = report(tmp_path)
    expected = {"error": "RuntimeError: cannot load"}
    with Worker(Program, True) as broken, Worker(Program) as slow:
        assert patient.wait(broken.loaded, "load") == expected
        assert patient.wait(broken.ask("nap", 0.0), "nap") == expected
        assert patient.wait(slow.ask("nap", 0.1), "nap") == 0.1
        with pytest.raises(OutOfTime, match="long nap"):
            report(tmp_path, 0.1).wait(slow.ask("nap", 1.0), "long nap")


def test_refuses_no_minutes() -> None:
    with pytest.raises(UserError, match="positive"):
        gpu.parse(["--minutes", "0"])


@pytest.mark.slow
def test_measures_edits_and_a_step_beside_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    output = tmp_path / "gpu.json"
    figures = ["plain-1", "guided-1", "train-4"]
    options = ["--model", "random", "--size", "64", "--dtype", "float32", "--torch", "eager"]
    options += ["--figures", *figures, "--cache", str(tmp_path / "cache")]
    gpu.main(["--minutes", "9", *options, "--output", str(output)])
    results = json.loads(output.read_text())["results"]
    for name in figures:
        ours, theirs = results[name]["ours"], results[name]["torch eager"]
        assert ours["median"] > 0 and theirs["median"] > 0
        if name != "train-4":
            assert theirs["difference"] < 1e-4
    assert set(results["train-4"]["ours"]["parts"]) == set(
        results["train-4"]["torch eager"]["parts"]
    )
