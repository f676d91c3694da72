"""Speed on a GPU beside PyTorch, in so many minutes, the figures that are most wanted first.

    python -m benchmarks.gpu --minutes 7 --cache compiled --output gpu.json

prints a row for each kind of edit and of training step as soon as it is measured, and writes all
figures so far to the output. Where the minutes end, so does it; what `--cache` holds by then spares
the next run the compilation. Weights are random, of the published sizes. benchmarks/README.md says
what a machine without a network needs.

Ours and PyTorch's each have processes of their own. A training step compiles beside the edits,
which it may disturb; they are measured again when it is done.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steps, train
from benchmarks.edits import EDITS, Figure, OurEdits, Task, TorchEdits, Way
from benchmarks.harness import Worker, aside, guarded, repeated, row, say, shown
from benchmarks.models import facts_of
from benchmarks.work import edit_work, step_work
from ie_jax.cli import run
from ie_jax.models.attention import fused_attention
from ie_jax.models.execution import DType, dtype

FIGURES = [Figure(*x) for x in (("plain", 1), ("guided", 1), ("train", 16))]
FIGURES += [Figure(*x) for x in (("plain", 8), ("guided", 8), ("train", 4))]


def train_task(task: Task, figure: Figure, remat: str) -> steps.Task:
    """The published fine-tuning of one batch."""
    argv = ["--model", task.model, "--batch", str(figure.batch), "--dtype", task.dtype]
    argv += ["--remat", remat, "--perceptual-dtype", task.dtype]
    argv += ["--size", str(task.size)] if task.size else []
    found = train.task_of(train.parse(argv), "gpu", facts_of(task.model)[0])
    execution = replace(found.config.execution, attention=task.attention)
    return replace(found, config=replace(found.config, execution=execution))


# --- Attention alone ------------------------------------------------------------------------------

TOKENS = {
    "self 64x64": (4096, 4096, 40),
    "text 64x64": (4096, 77, 40),
    "even text 64x64": (4096, 78, 40),
    "self 32x32": (1024, 1024, 80),
}
"""Queries, keys and the width of a head at SD1.5's 512 px, 8 heads."""


def attention_kernels(kind: DType) -> dict[str, Any]:
    """Milliseconds of attention alone and with its gradient, batch 4, by implementation; or why it
    failed."""
    found: dict[str, Any] = {}
    implementations: tuple[Literal["cudnn", "xla"], ...] = ("cudnn", "xla")
    for (name, (n, m, d)), how in product(TOKENS.items(), implementations):
        keys = jax.random.split(jax.random.key(0), 3)
        qkv = [
            jax.random.normal(key, (4, length, 8, d), dtype(kind))
            for key, length in zip(keys, (n, m, m), strict=True)
        ]
        attend = partial(fused_attention, implementation=how)

        def total(*qkv: Any, attend: Any = attend) -> Any:
            return attend(*qkv).astype(jnp.float32).sum()

        def fastest(function: Callable[..., Any], qkv: Any = qkv) -> float:
            return 1000 * min(repeated(function, *qkv))

        try:
            both = (jax.jit(attend), jax.jit(jax.grad(total, (0, 1, 2))))
            found[f"{name} {how}"] = [guarded(fastest, each) for each in both]
        except harness.Failed as error:
            found[f"{name} {how}"] = str(error)
    return found


class OutOfTime(Exception):
    """The minutes are over."""


# --- The measurement ------------------------------------------------------------------------------


@dataclass
class Report:
    """All figures so far, on paper after each."""

    deadline: float
    output: Path | None
    record: dict[str, Any]
    work: Callable[[], Mapping[str, float]] = dict
    """Useful operations of one image, by kind, as far as they are counted."""
    latents: dict[str, np.ndarray] = field(default_factory=dict)

    def wait(self, future: "Future[Any]", what: str) -> Any:
        """The answer, or the error as a figure.

        Raises:
            OutOfTime: the minutes are over before.
        """
        begin = time.monotonic()
        try:
            answer = future.result(timeout=max(self.deadline - begin, 0.0))
        except TimeoutError as error:
            raise OutOfTime(what) from error
        except Exception as error:
            answer = {"error": str(error)}
        left = self.deadline - time.monotonic()
        say(f"  {what}: {time.monotonic() - begin:.1f} s; {left:.0f} s left")
        return answer

    def add(self, figure: Figure, program: str, facts: Mapping[str, Any]) -> None:
        """Keep what one program gave, print its row, write everything down."""
        facts = dict(facts)
        latents = facts.pop("latents", None)
        if latents is not None:
            first = self.latents.setdefault(figure.name, latents)
            if first is not latents:
                difference = np.linalg.norm(latents - first) / np.linalg.norm(first)
                facts["difference"] = float(difference)
        if "seconds" in facts:
            facts["median"] = statistics.median(facts["seconds"])
        results = self.record["results"].setdefault(figure.name, {})
        results[program] = results.get(program, {}) | facts
        say(row(self.cells(figure, program)))
        self.write()

    def cells(self, figure: Figure, program: str) -> list[str]:
        """One row of the table."""
        results = self.record["results"][figure.name]
        own, ours = results[program], results.get("ours", {})
        if "error" in own:
            return [figure.name, program, own["error"]]
        median = own.get("median")
        useful = self.work().get(figure.kind)
        rate = useful and median and useful * figure.batch / median
        peak = self.record.get("matrix rate")
        memory = own.get("peak", own.get("temporaries"))
        return [
            figure.name,
            program,
            shown(own.get("compile")),
            shown(median, 1000),
            shown(median and ours.get("median") and median / ours["median"]),
            shown(rate, 1e-12),
            shown(rate and peak and rate / peak, 100),
            shown(memory or None, 1e-9),
            f"{own['difference']:.1e}" if "difference" in own else "-",
        ]

    def table(self) -> Iterator[str]:
        """All rows."""
        yield from harness.table(COLUMNS)
        for name, programs in self.record["results"].items():
            kind, _, batch = name.rpartition("-")
            yield from (row(self.cells(Figure(kind, int(batch)), each)) for each in programs)

    def write(self) -> None:
        """The output as it stands."""
        harness.write_record(self.record, self.output)


COLUMNS = (
    *("figure", "program", "compile s", "ms", "times ours", "TFLOP/s", "% of the matrix peak"),
    *("memory GB", "difference"),
)


def measure_attention(kind: DType, report: Report) -> None:
    """Attention alone, on paper."""
    found = report.wait(aside(attention_kernels, kind), "attention alone")
    report.record["attention ms, alone and with gradient"] = found
    for name, facts in found.items():
        say(f"  {name}: {facts if isinstance(facts, str) else [round(x, 3) for x in facts]} ms")


def measure(
    task: Task, remat: str, figures: Sequence[Figure], ways: Sequence[Way], report: Report
) -> None:
    """All figures, in their order, but for the steps of training: they compile the longest, beside
    all else, and are measured as soon as they are ready; edits then a second time, undisturbed.

    Raises:
        OutOfTime: the minutes ended first.
    """
    edits = [x for x in figures if x.kind in EDITS]
    train_steps = [x for x in figures if x.kind not in EDITS]
    work = aside(work_of, task, remat, figures)
    report.work = lambda: work.result() if work.done() and not work.exception() else {}

    first = begun(train_task(task, train_steps[0], remat)) if train_steps else None
    ours = Worker(OurEdits, task) if edits else None
    theirs = Worker(TorchEdits, task) if edits and ways else None
    if ours:
        report.wait(ours.loaded, "load our edits")
        rate = report.wait(ours.ask("matrix_rate"), "matrix product")
        report.record["matrix rate"] = None if isinstance(rate, dict) else rate
        say(f"matrix peak: {shown(report.record['matrix rate'], 1e-12)} TFLOP/s")
    say(row(COLUMNS))
    ready: list[Figure] = []

    def measure_edits(wave: Sequence[Figure], ways: Sequence[Way]) -> None:
        for figure in wave:
            if ours and figure in ready:
                found = report.wait(ours.ask("measure", figure), f"ours {figure.name}")
                report.add(figure, "ours", found)
        for figure, way in product(wave, ways):
            if theirs and (way != "compiled" or figure.kind == "plain"):
                answer = theirs.ask("measure", figure, way)
                found = report.wait(answer, f"PyTorch {way} {figure.name}")
                report.add(figure, f"torch {way}", found)

    for _, group in groupby(edits, key=lambda x: x.batch):
        assert ours
        wave = list(group)
        names = ", ".join(x.name for x in wave)
        compiled = report.wait(ours.ask("compile", wave), f"compile {names}")
        for figure in wave:
            report.add(figure, "ours", compiled.get(figure.name, compiled))
        ready += [x for x in wave if "compile" in compiled.get(x.name, {})]
        measure_edits(wave, [x for x in ways if x != "compiled"])
        for figure in wave if task.profile else ():
            if figure in ready:
                report.wait(ours.ask("profile", figure), f"profile {figure.name}")
    for step in train_steps:
        training = train_task(task, step, remat)
        measure_step(step, training, first or begun(training), bool(ways), task.profile, report)
        first = None
    if train_steps:
        measure_edits(edits, [x for x in ways if x == "graph"])
    measure_edits(edits, [x for x in ways if x == "compiled"])
    report.wait(work, "count the work")


Begun = tuple[Worker, "Future[Any]"]
"""Our step in a process of its own, and the answer when it is compiled there."""


def begun(task: steps.Task) -> Begun:
    """Our step, being compiled."""
    worker = Worker(steps.OurSteps, task)
    return worker, worker.ask("compile_parts", True)


def measure_step(
    step: Figure, task: steps.Task, ours: Begun, theirs: bool, profile: str | None, report: Report
) -> None:
    """A training step, ours and, if asked for, PyTorch's.

    Raises:
        OutOfTime: the minutes ended first.
    """
    worker, compiling = ours
    with worker:
        facts = report.wait(compiling, f"compile {step.name}")
        if "error" not in facts:
            facts |= report.wait(worker.ask("measure"), f"ours {step.name}")
        report.add(step, "ours", facts)
        if profile and "seconds" in facts:
            report.wait(worker.ask("profile", f"{profile}/{step.name}"), f"profile {step.name}")
    if theirs:
        with Worker(steps.TorchSteps, task) as other:
            found = report.wait(other.ask("measure"), f"PyTorch {step.name}")
            report.add(step, "torch eager", found)


def work_of(task: Task, remat: str, figures: Sequence[Figure]) -> dict[str, float]:
    """Useful operations of one image, by kind, counted from the networks."""
    jax.config.update("jax_platforms", "cpu")
    arch, rank = facts_of(task.model)
    kinds = {x.kind: x for x in figures}
    work = edit_work(arch, task.size or arch.image_size) if kinds.keys() & set(EDITS) else {}
    if step := kinds.get("train"):
        found = train_task(task, step, remat)
        parts = step_work(found.config, arch, found.size, rank)
        work["train"] = sum(useful for useful, _ in parts.values())
    return work


# --- The command ----------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    names = ["attention", *(x.name for x in FIGURES)]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Speed of edits and training steps on a GPU, ours beside PyTorch's.",
    )
    parser.add_argument("--minutes", type=float, required=True, help="end after so many")
    parser.add_argument("--figures", nargs="+", choices=names, default=names, help="in their order")
    parser.add_argument("--model", default="random-sd15", help="random-sd15 or random-tiny")
    parser.add_argument("--size", type=int, help="pixels of either side (default: the model's)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument(
        "--attention", choices=("auto", "cudnn", "xla", "explicit"), default="auto", help="of ours"
    )
    parser.add_argument(
        "--remat",
        choices=("none", "block", "call"),
        default="block",
        help="what a training step computes again, in both programs",
    )
    parser.add_argument(
        "--torch",
        nargs="*",
        choices=("eager", "graph", "compiled"),
        default=("eager", "graph", "compiled"),
        help="ways to run PyTorch's edits: as they stand, as one CUDA graph, compiled and one "
        "graph (plain edits, last); none: ours alone",
    )
    parser.add_argument("--cache", type=Path, help="a folder that keeps compiled programs")
    parser.add_argument("--profile", type=Path, help="a folder for traces and compiled programs")
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    return harness.positive(parser.parse_args(argv), "minutes", "size")


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    deadline = time.monotonic() + 60 * options.minutes
    with (
        tempfile.TemporaryDirectory()
        if options.cache is None
        else nullcontext(options.cache) as cache
    ):
        harness.prepare(cache, bind=False)
        device = harness.leave_accelerator()
        profile = options.profile and str(options.profile.absolute())
        task = Task(options.model, options.size, options.dtype, options.attention, profile)
        record = harness.new_record(options, device) | {"results": {}}
        say(f"{device['kind']}, {os.cpu_count()} CPU cores; {record['versions']}")
        report = Report(deadline, options.output, record)
        figures = [x for x in FIGURES if x.name in options.figures]
        try:
            if "attention" in options.figures:
                measure_attention(task.dtype, report)
            measure(task, options.remat, figures, options.torch, report)
        except OutOfTime as error:
            say(f"the {options.minutes:g} minutes are over: {error} was not finished")
        for process in multiprocessing.active_children():
            process.kill()
    report.write()
    say("\n".join(["", *report.table()]))


if __name__ == "__main__":
    run(main)
