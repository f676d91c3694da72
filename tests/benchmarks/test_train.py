"""The training benchmark: its count of work, its tables and a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import train
from benchmarks.models import pipeline_of
from benchmarks.work import step_work
from ie_jax.errors import UserError
from ie_jax.models.execution import Execution
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import CycleConfig


@pytest.mark.slow
def test_counts_what_is_computed_again_apart() -> None:
    """Whatever is computed again, the useful work of an image stays, and so it does in a batch."""
    arch = pipeline_of("random").architecture
    cycle = CycleConfig(patch_size=32, patch_stride=16)
    config = TrainConfig(model="random", batch_size=1, cycle=cycle)
    plain = step_work(config, arch, 64, 4)
    assert not any(again for _, again in plain.values())
    call = replace(config, batch_size=2, execution=Execution(remat="call"))
    found = step_work(call, arch, 64, 4)
    for name, (useful, again) in found.items():
        assert useful == pytest.approx(plain[name][0], rel=1e-3)
        assert (again > 0.1 * useful) == (name != "prepare")
    # 4 + 4 calls of the cycle have a gradient, one of distillation's three.
    assert 5 < found["cycle"][1] / found["distillation"][1] < 12


def test_tables_relate_ours_to_torch() -> None:
    ours: dict[str, Any] = {
        "step": 2.0,
        "compile": 30.0,
        "first": 3.0,
        "peak": 5e9,
        "matrix rate": 4e12,
        "parts": {"prepare": 0.5},
        "compile parts": {"prepare": 7.0},
    }
    theirs = {"step": 4.0, "first": 6.0, "peak": 8e9, "parts": {"prepare": 1.0}}
    facts = {"ours": ours, "torch": theirs}
    steps = list(train.steps_table(facts, 16, 1e11))
    assert steps[2] == "| ours | 30 | 3 | 2 | 8 | 0.8 | 20 | 5 | - |"
    assert steps[3] == "| torch | - | 6 | 4 | 4 | 0.4 | 10 | 8 | - |"
    assert list(train.parts_table(facts))[2] == "| prepare | 0.5 | 7 | 1 |"
    work = list(train.work_table({"prepare": (1e12, 0.0), "cycle": (2e12, 1e12)}))
    assert work[2] == "| prepare | 1 | 0 | 1 |"
    assert work[-1] == "| all | 3 | 1 | 4 |"


@pytest.mark.slow
def test_measures_steps_and_their_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results.json"
    command = ["--size", "32", "--batch", "1", "--distance", "l2", "--remat", "none"]
    train.main([*command, "--repeats", "2", "--no-torch", "--output", str(output)])
    record = json.loads(output.read_text())
    ours = record["results"]["ours"]
    assert len(ours["all steps"]) == 2
    assert list(ours["parts"]) == ["prepare", "distillation", "cycle", "preservation"]
    assert 0 < ours["step"] < ours["compile"] and ours["peak"] > 0
    assert list(record["work"]) == list(ours["parts"])
    assert "| ours |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "bad",
    [
        ["--repeats", "0"],
        ["--threads", "0"],
        ["--size", "50"],
        ["--patch-size", "65"],
        ["--batch", "0"],
        ["--model", "random-huge"],
    ],
)
def test_refuses_bad_input(bad: list[str]) -> None:
    with pytest.raises(UserError, match=bad[1]):
        train.main(["--size", "64", *bad])
