"""An edit on a GPU under several sets of XLA's flags.

    python -m benchmarks.flags --minutes 5 --figure plain-1 \
        --flags "" "xla_gpu_triton_gemm_any=true xla_gpu_enable_cublaslt=true"

Each set has a process of its own. All compile side by side and are measured in turn, twice."""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence

from benchmarks import harness
from benchmarks.edits import EDITS, OurEdits, Task
from benchmarks.gpu import FIGURES
from benchmarks.harness import Worker, say, shown
from ie_jax.cli import run

CHOICES = {x.name: x for x in FIGURES if x.kind in EDITS}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flags", description=__doc__)
    parser.add_argument("--minutes", type=float, required=True, help="wait for no longer")
    parser.add_argument(
        "--flags", nargs="+", required=True, help="sets; the first is the yardstick"
    )
    parser.add_argument("--figure", choices=CHOICES, default="plain-1")
    parser.add_argument("--model", default="random-sd15", help="random-sd15 or random-tiny")
    parser.add_argument("--cache", help="a folder that keeps compiled programs")
    return harness.positive(parser.parse_args(argv), "minutes")


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    deadline = time.monotonic() + 60 * options.minutes
    harness.prepare(options.cache, bind=False)
    given = os.environ.get("XLA_FLAGS", "")
    figure = CHOICES[options.figure]
    workers, compiling = {}, {}
    for flags in options.flags:
        os.environ["XLA_FLAGS"] = " ".join([given, *(f"--{flag}" for flag in flags.split())])
        workers[flags] = Worker(OurEdits, Task(options.model, None, "bfloat16"))
        compiling[flags] = workers[flags].ask("compile", [figure])
    try:
        ready = []
        for flags, answer in compiling.items():
            try:
                facts = answer.result(timeout=max(deadline - time.monotonic(), 0))[figure.name]
            except Exception as error:  # a flag that XLA does not know ends the process
                facts = {"error": f"{type(error).__name__}: {error}"}
            if "error" in facts:
                say(f"{flags!r}: {facts['error']}")
            else:
                say(f"{flags!r}: compiled in {facts['compile']:.0f} s")
                ready.append(flags)
        found = [(flags, workers[flags].tell("measure", figure)) for flags in ready * 2]
        say("\n".join(harness.table(("flags", "ms", "as many times as the first"))))
        first = statistics.median(found[0][1]["seconds"])
        for flags, facts in found:
            median = statistics.median(facts["seconds"])
            say(harness.row([flags or "none", shown(median, 1000), shown(median / first)]))
    finally:
        for process in multiprocessing.active_children():
            process.kill()


if __name__ == "__main__":
    run(main)
