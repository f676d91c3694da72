"""Time and memory of one edit, ours beside the PyTorch counterpart, in the same run.

    python -m benchmarks.edit --model random-tiny
    python -m benchmarks.edit --model models --dtype bfloat16 --output results.json

prints a Markdown table; on a GPU bfloat16 is the default. Each program has a process of its own.
Ours starts twice: cold, with an empty compilation cache, and again with the cache that this left;
a start lasts from the process's first moment to its first result. Then warm edits of ours and of
PyTorch take turns, or, where the memory does not hold both, follow one another (--sequential).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import harness
from benchmarks.edits import EDITS, Figure, OurEdits, Task, TorchEdits
from benchmarks.harness import Worker, say, shown
from benchmarks.models import facts_of
from benchmarks.work import edit_work
from ie_jax.cli import run
from ie_jax.errors import UserError
from ie_jax.models.execution import DType

PROGRAMS = {"ours": OurEdits, "torch": TorchEdits}


def started(name: str, task: Task, figure: Figure) -> tuple[Worker, dict[str, Any]]:
    """A program that has made its first edit, and what is known of its start."""
    worker = Worker(PROGRAMS[name], task)
    try:
        facts = worker.tell("compile", [figure])[figure.name] if name == "ours" else {}
        if "error" in facts:
            raise UserError(f"{name}: {facts['error']}")
        facts |= worker.tell("prepare", figure) if name == "torch" else {}
        worker.tell("run", figure)
    except BaseException:
        worker.pool.shutdown()
        raise
    return worker, facts | {"start": time.perf_counter() - worker.began}


def measure(
    task: Task, figure: Figure, torch: bool, repeats: int, sequential: bool
) -> dict[str, Any]:
    """All figures of one kind of edit."""
    names = list(PROGRAMS)[: 1 + torch]
    facts: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    latents: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as cache:
        harness.prepare(cache)
        worker, cold = started("ours", task, figure)
        worker.pool.shutdown()
        for group in [[name] for name in names] if sequential else [names]:
            with ExitStack() as stack:
                workers = {}
                for name in group:
                    worker, facts[name] = started(name, task, figure)
                    workers[name] = stack.enter_context(worker)
                for _ in range(repeats):
                    for name, worker in workers.items():
                        elapsed, latents[name] = worker.tell("run", figure)
                        seconds[name].append(elapsed)
    for name in names:
        median = statistics.median(seconds[name])
        facts[name] |= {"latency": median, "all latencies": seconds[name]}
    facts["ours"]["cached compile"] = facts["ours"].pop("compile")
    facts["ours"] |= {"cold start": cold["start"], "cold compile": cold["compile"]}
    if torch:
        difference = np.linalg.norm(latents["ours"] - latents["torch"])
        facts["difference"] = float(difference / np.linalg.norm(latents["torch"]))
    return facts


COLUMNS = (
    *("edit", "program", "cold compile s", "cached compile s", "cold start s", "second start s"),
    *("warm edit s", "TFLOP/s", "% of the matrix peak", "temporaries GB"),
)


def table(results: Mapping[str, dict[str, Any]], peak: float) -> Iterator[str]:
    """The figures as Markdown.

    Args:
        peak: FLOP/s of a large product on this machine.
    """
    starts = ("cold compile", "cached compile", "cold start", "start", "latency")
    yield from harness.table(
        COLUMNS,
        (
            [
                *(kind, name, *(shown(own.get(key)) for key in starts)),
                shown(rate := facts["tflop"] / own["latency"]),
                shown(rate * 1e12 / peak, 100),
                shown(own.get("temporaries"), 1e-9),
            ]
            for kind, facts in results.items()
            for name in PROGRAMS
            if (own := facts.get(name))
        ),
    )
    yield ""
    for kind, facts in results.items():
        line = f"{kind}: {facts['tflop']:.3g} TFLOP"
        if "torch" in facts:
            ratio = facts["ours"]["latency"] / facts["torch"]["latency"]
            line += f"; ours takes {ratio:.2f} times torch's time"
            line += f"; latents differ by {facts['difference']:.1e} (relative L2)"
        yield line


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.edit",
        description="Time and memory of one edit, ours beside PyTorch's.",
    )
    parser.add_argument(
        "--model", default="random-tiny", help="a folder of upstream files, or random-SIZE"
    )
    parser.add_argument("--size", type=int, help="pixels of either side (default: the model's)")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of weights and products (default: bfloat16 on a GPU, else float32)",
    )
    parser.add_argument("--repeats", type=int, default=5, help="warm edits, of which the median")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--edits", choices=(*EDITS, "both"), default="both")
    parser.add_argument(
        "--sequential", action="store_true", help="never hold both programs at once"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    return harness.positive(parser.parse_args(argv), "repeats", "size")


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    device = harness.leave_accelerator()
    arch, _ = facts_of(options.model)  # converts where it must
    if arch.text_2 and options.torch:
        raise UserError(f"{options.model}: PyTorch's counterpart is of SD1.x: give --no-torch")
    size = options.size or arch.image_size
    dtype: DType = options.dtype or ("bfloat16" if device["platform"] == "gpu" else "float32")
    peak = harness.aside(harness.matrix_rate).result()
    task, work = Task(options.model, size, dtype), edit_work(arch, size)
    results = {
        kind: {"tflop": work[kind] / 1e12}
        | measure(task, Figure(kind), options.torch, options.repeats, options.sequential)
        for kind in (EDITS if options.edits == "both" else (options.edits,))
    }
    say(f"{options.model}, {size} px, {dtype}, {device['kind']}, {os.cpu_count()} CPU cores")
    say(f"matrix peak: {shown(peak, 1e-12)} TFLOP/s\n")
    say("\n".join(table(results, peak)))
    record = harness.new_record(options, device)
    harness.write_record(
        record | {"matrix rate": peak, "size": size, "dtype": dtype, "results": results},
        options.output,
    )


if __name__ == "__main__":
    run(main)
