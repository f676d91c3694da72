"""Time, work and memory of a step of cycle fine-tuning, ours beside the PyTorch counterpart.

    python -m benchmarks.train --model random --size 64
    python -m benchmarks.train --model random-sd15 --remat block --output results.json

prints Markdown tables. Each program has a process of its own; its steps, after a first one, take
turns with the other's, or, on an accelerator, whose memory would not hold both, come after them.
Both start from the same weights, images and draws, so that their losses can be compared.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, get_args

from benchmarks import harness
from benchmarks.harness import Worker, say, shown, table
from benchmarks.models import facts_of
from benchmarks.steps import OurSteps, Task, TorchSteps
from benchmarks.work import step_work
from ie_jax.cli import run
from ie_jax.errors import UserError
from ie_jax.models.execution import DType, Execution, Precision, Remat
from ie_jax.models.networks import Architecture
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import CycleConfig
from ie_jax.weights.load import RANDOM

PROGRAMS = {"ours": OurSteps, "torch": TorchSteps}


def measure(
    task: Task, names: Sequence[str], repeats: int, sequential: bool, parts: bool
) -> dict[str, Any]:
    """All figures of the programs named."""
    facts: dict[str, Any] = {}
    for group in [[name] for name in names] if sequential else [names]:
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(Worker(PROGRAMS[name], task, threads=task.threads))
                for name in group
            }
            for name, worker in workers.items():
                facts[name] = worker.tell("compile") if name == "ours" else {}
                facts[name]["first"], facts[name]["metrics"] = worker.tell("run")
            seconds: dict[str, list[float]] = {name: [] for name in group}
            for _ in range(repeats):
                for name, worker in workers.items():
                    seconds[name].append(worker.tell("run")[0])
            for name, worker in workers.items():
                facts[name] |= {"step": median(seconds[name]), "all steps": seconds[name]}
                facts[name]["peak"] = worker.tell("peak")
                if parts:
                    compiled = worker.tell("compile_parts", False) if name == "ours" else {}
                    facts[name]["compile parts"] = compiled.get("compile parts", {})
                    found = worker.tell("parts", repeats)
                    facts[name]["parts"] = {part: median(each) for part, each in found.items()}
            if "ours" in workers:
                facts["ours"]["matrix rate"] = workers["ours"].tell("matrix_rate")
    if len(names) > 1:
        facts["difference"] = difference(*(facts[name]["metrics"] for name in names))
    return facts


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The largest relative difference of a loss of the first step."""
    losses = [name for name in theirs if name.endswith("/loss")]
    return max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in losses)


# --- The tables -----------------------------------------------------------------------------------


def steps_table(facts: Mapping[str, Any], images: int, useful: float) -> Iterator[str]:
    """A row for each program. Useful work leaves out what is computed again."""
    header = ("program", "compile s", "first step s", "step s", "images/s", "useful TFLOP/s")
    rate = facts["ours"].get("matrix rate")
    rows = []
    for name in PROGRAMS:
        if own := facts.get(name):
            speed = images / own["step"]
            rows.append(
                [
                    name,
                    *(shown(own.get(key)) for key in ("compile", "first", "step")),
                    shown(speed),
                    shown(useful * speed, 1e-12),
                    shown(useful * speed / rate if rate else None, 100),
                    shown(own["peak"], 1e-9),
                    shown(own.get("temporaries"), 1e-9),
                ]
            )
    yield from table((*header, "% of the matrix peak", "peak GB", "temporaries GB"), rows)


def parts_table(facts: Mapping[str, Any]) -> Iterator[str]:
    """A row for each part of a step."""
    ours, theirs = facts["ours"], facts.get("torch", {}).get("parts", {})
    compiled = ours["compile parts"]
    header = ("part", "ours s", "ours compile s", "torch s")
    rows = (
        [part, shown(seconds), shown(compiled[part]), shown(theirs.get(part))]
        for part, seconds in ours["parts"].items()
    )
    yield from table(header, rows)


def work_table(work: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """A row for each part of a step, TFLOP per image."""
    sums = [sum(column) for column in zip(*work.values(), strict=True)]
    rows = ([part, *(shown(x, 1e-12) for x in (*row, sum(row)))] for part, row in work.items())
    all_parts = ["all", *(shown(x, 1e-12) for x in (*sums, sum(sums)))]
    yield from table(("part", "useful", "again", "TFLOP"), [*rows, all_parts])


# --- The command ----------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description="Time, work and memory of a step of cycle fine-tuning, ours beside PyTorch's.",
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument(
        "--model", default=RANDOM, help="random, random-SIZE, or a folder of upstream files"
    )
    parser.add_argument("--size", type=int, help="pixels of either side (default: the model's)")
    parser.add_argument("--batch", type=int, help="images per step (default: 16, or 2 on a CPU)")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches of a batch")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and products (default: float32 on a CPU, else bfloat16)",
    )
    parser.add_argument("--perceptual-dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--order", choices=("in_turn", "sum"), default="in_turn")
    parser.add_argument("--lora", choices=("low_rank", "merge"), default="low_rank")
    parser.add_argument(
        "--remat",
        choices=get_args(Remat),
        help="what backward passes compute again (default: none on a CPU, else block)",
    )
    parser.add_argument("--distance", choices=("lpips", "l2"), default="lpips")
    parser.add_argument("--target", choices=("decoded", "image"), default="decoded")
    parser.add_argument("--patch-size", type=int, help="of LPIPS (default: 224, or half the size)")
    parser.add_argument("--patch-stride", type=int, help="(default: 110, or a quarter)")
    parser.add_argument("--repeats", type=int, default=5, help="steps, of which the median")
    parser.add_argument("--torch", action=switch, default=True)
    parser.add_argument("--parts", action=switch, default=True, help="time a step's parts too")
    parser.add_argument(
        "--measure", action=switch, default=True, help="--no-measure: only count the work"
    )
    parser.add_argument("--threads", type=int, help="CPU cores for either program (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = harness.positive(parser.parse_args(argv), "repeats", "threads")
    cores = os.cpu_count() or 1
    if options.threads and options.threads > cores:
        raise UserError(f"--threads {options.threads} must be from 1 to {cores}")
    return options


def task_of(options: argparse.Namespace, platform: str, arch: Architecture) -> Task:
    """What the command line asks for, on this platform.

    Raises:
        UserError: sizes do not fit.
    """
    cpu = platform == "cpu"
    size = options.size or arch.image_size
    if size < 1 or size % arch.latent_factor:
        raise UserError(f"--size {size} must divide by {arch.latent_factor}")
    remat: Remat = options.remat or ("none" if cpu else "block")
    kind: DType = options.dtype or ("float32" if cpu else "bfloat16")
    precision = Precision(param=kind, compute=kind)
    large = size > 2 * 110 + 224
    cycle = CycleConfig(
        order=options.order,
        distance=options.distance,
        target=options.target,
        patch_size=options.patch_size or (224 if large else size // 2),
        patch_stride=options.patch_stride or (110 if large else size // 4),
        perceptual_compute=options.perceptual_dtype,
    )
    if options.distance == "lpips" and not 16 <= cycle.patch_size <= size:
        raise UserError(f"--patch-size {cycle.patch_size} must be from 16 to the size, {size}")
    config = TrainConfig(
        model=options.model,
        cycle=cycle,
        batch_size=(2 if cpu else 16) if options.batch is None else options.batch,
        accumulate=options.accumulate,
        lora=options.lora,
        precision=precision,
        vae_precision=precision,
        execution=Execution(remat=remat),
    )
    return Task(config, size, options.seed, options.threads)


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    harness.prepare(threads=options.threads)
    device = harness.leave_accelerator()
    arch, rank = facts_of(options.model)
    task = task_of(options, device["platform"], arch)
    config = task.config
    work = step_work(config, arch, task.size, rank)
    say(
        f"{config.model}, {task.size} px, {config.batch_size} images in {config.accumulate} parts, "
        f"{config.precision.compute}, {config.cycle.order}, {config.lora}, "
        f"{config.cycle.distance}; {device['kind']}, {task.threads or os.cpu_count()} CPU cores\n"
    )
    say("\n".join(work_table(work)))
    record = harness.new_record(options, device) | {"work": work}
    if options.measure:
        names = list(PROGRAMS)[: 1 + options.torch]
        sequential = device["platform"] != "cpu"
        facts = measure(task, names, options.repeats, sequential, options.parts)
        useful = sum(useful for useful, _ in work.values())
        say("\n".join(["", *steps_table(facts, config.batch_size, useful), ""]))
        if options.parts:
            say("\n".join([*parts_table(facts), ""]))
        if "torch" in facts:
            ratio = facts["ours"]["step"] / facts["torch"]["step"]
            say(
                f"ours takes {ratio:.2f} times torch's time; "
                f"losses of the first step differ by {facts['difference']:.1e} (relative)"
            )
        record["results"] = facts
    harness.write_record(record, options.output)


if __name__ == "__main__":
    run(main)
