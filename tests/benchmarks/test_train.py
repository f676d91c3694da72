"""The training benchmark: its count of work, its tables and a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from benchmarks import train, train_flops
from benchmarks.train_flops import Plan
from ie_jax.devices import make_mesh
from ie_jax.errors import UserError
from ie_jax.models.execution import Execution
from ie_jax.models.lpips import lpips_shapes
from ie_jax.training.config import optimiser_of
from ie_jax.training.recipe import NARROW
from ie_jax.training.stage import initial_state
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import CycleConfig, cycle_stage, frozen_of
from ie_jax.training.step import make_step

SIZE, RANK = 64, 4
CYCLE = CycleConfig(patch_size=32, patch_stride=16)
COSTS = {
    "text": train_flops.Cost(1),
    "encode": train_flops.Cost(10),
    "decode": train_flops.Cost(100, inputs=100, inputs_again=80),
    "lpips": train_flops.Cost(1000, inputs=1000),
    "unet": train_flops.Cost(1e5, inputs=1e5, lora=2e5, inputs_again=0.5e5, lora_again=0.6e5),
    "merge": train_flops.Cost(1e6, lora=2e6),
}


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "block", "call"])
@pytest.mark.parametrize("lora", ["low_rank", "merge"])
@pytest.mark.parametrize("order", ["in_turn", "sum"])
def test_counts_what_the_step_computes(order: Any, lora: Any, remat: str) -> None:
    """XLA's count of the whole program, whose scans are unrolled so that each step counts."""
    config = TrainConfig(
        model="random",
        batch_size=1,
        lora=lora,
        cycle=replace(CYCLE, order=order),
        execution=Execution(
            attention="explicit",
            query_chunk=0,
            unroll=2 * len(CYCLE.boundaries),
            remat_block=remat == "block",
            remat_call=remat == "call",
        ),
    )
    task, pipeline = train.Task(config, SIZE), train.pipeline_of("random")
    arch = pipeline.architecture
    stage = cycle_stage(
        config.cycle, train.networks_of(config, arch), optimiser_of(config.optimiser)
    )
    step = make_step(stage, make_mesh(devices=jax.devices()[:1]))
    found = train_flops.operations(
        step,
        initial_state(stage, pipeline.weights.forward),
        frozen_of(config, config.cycle, pipeline, train.perceptual_of(config)),
        train.batch_of(task, arch),
        jax.random.key(0),
    )
    costs = train_flops.network_costs(arch, SIZE, RANK, config.lora)
    costs["lpips"] = train_flops.lpips_cost(config.cycle, lpips_shapes(NARROW), SIZE)
    # XLA also counts losses, consistency steps and the optimiser.
    assert train_flops.total(train_flops.plan_of(config), costs) == pytest.approx(found, rel=0.01)


def total(plan: Plan) -> float:
    """With costs that tell themselves apart in the sum."""
    return train_flops.total(plan, COSTS)


def test_counts_every_call_of_the_published_step() -> None:
    forward = 13 * 1e5 + 1 + 10 + 2 * 100 + 2 * 1000
    backward = 10 * 2e5 + 100 + 1000
    assert total(Plan(CYCLE)) == forward + backward


def test_counts_what_is_computed_again() -> None:
    without = total(Plan(CYCLE))
    assert total(Plan(CYCLE, remat="call")) - without == 10 * 1e5 + 100 + 2 * 1000
    blocks = 10 * 0.6e5 + 100 + 80 + 2 * 1000
    assert total(Plan(CYCLE, remat="block")) - without == blocks
    once = total(Plan(CYCLE, remat="block", target_features=True))
    assert once - without == blocks - 1000


def test_shares_merges_between_the_images_of_a_batch() -> None:
    without = total(Plan(CYCLE))
    once, with_gradient = 1e6, 1e6 + 1e6 + 2e6
    merges = 3 * once + 10 * with_gradient
    assert total(Plan(CYCLE, lora="merge", batch=4)) - without == merges / 4


def test_leaves_out_what_a_plan_does_without() -> None:
    without = total(Plan(CYCLE))
    assert without - total(Plan(CYCLE, cached=True)) == 11
    assert without - total(Plan(replace(CYCLE, target="image"))) == 100
    latent = Plan(replace(CYCLE, distance="l2"))
    assert without - total(latent) == 3 * 100 + 3 * 1000
    no_cycle = Plan(replace(CYCLE, cycle_weight=0.0))
    assert total(no_cycle) == 1 + 10 + 5 * 1e5 + 2 * 2e5


def test_tables_relate_ours_to_torch() -> None:
    ours: dict[str, Any] = {
        "step": 2.0,
        "compile": 30.0,
        "first": 3.0,
        "peak": 5e9,
        "matrix rate": 4e12,
    }
    ours["parts"] = {"prepare": {"seconds": 0.5, "compile": 7.0}}
    theirs = {"step": 4.0, "first": 6.0, "peak": 8e9}
    facts = {"ours": ours, "torch": theirs | {"parts": {"prepare": {"seconds": 1.0}}}}
    steps = list(train.steps_table(facts, 16, 1e11))
    assert steps[2] == "| ours | 30 | 3 | 2 | 8 | 0.8 | 20 | 5 | - |"
    assert steps[3] == "| torch | - | 6 | 4 | 4 | 0.4 | 10 | 8 | - |"
    assert list(train.parts_table(facts))[2] == "| prepare | 0.5 | 7 | 1 |"
    work = train_flops.work(Plan(CYCLE), {k: train_flops.Cost(1e12) for k in COSTS})
    assert list(train.work_table(work))[-1] == "| all |  |  |  | 19 | 0 | 0 | 19 |"


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
    assert sum(x["calls"] for x in record["work"]) == 19 - 4
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
