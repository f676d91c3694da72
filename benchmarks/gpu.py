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
import gzip
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import train
from benchmarks.edit import GUIDERS, MODES, SCALES, device_here, flops, versions
from benchmarks.memory import row
from ie_jax.cli import run
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import place, schedule_of
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.methods.guidance import Strength
from ie_jax.methods.guiders import make_guider
from ie_jax.methods.inverse_and_edit import Models, edit_images
from ie_jax.models.attention import fused_attention
from ie_jax.models.execution import DType, Execution, Precision, dtype
from ie_jax.weights.facts import Facts

ENOUGH_SECONDS = 2.0
"""Of warm runs for a median; at least three runs."""
MOST_RUNS = 20
Way = Literal["eager", "graph", "compiled"]


class Figure(NamedTuple):
    """What is measured: an edit or a training step of a batch."""

    kind: str
    batch: int

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.kind}-{self.batch}"

    @property
    def is_edit(self) -> bool:
        """Plain or guided."""
        return self.kind in MODES


FIGURES = [Figure(*x) for x in (("plain", 1), ("guided", 1), ("train", 16))]
FIGURES += [Figure(*x) for x in (("plain", 8), ("guided", 8), ("train", 4))]


@dataclass(frozen=True)
class Task:
    """What all figures have in common."""

    model: str
    size: int | None
    dtype: DType
    attention: Any
    remat: str
    profile: str | None
    """A folder for traces and compiled programs."""


# --- Edits, each program in a process of its own --------------------------------------------------


def repeated(call: Callable[[], Any]) -> list[float]:
    """Seconds of each of some warm runs."""
    call()
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_RUNS):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return seconds


def inputs_of(arch: Any, size: int, batch: int) -> tuple[np.ndarray, ...]:
    """Random pictures, source and target tokens, and start noise."""
    rng = np.random.default_rng(0)
    words = (batch, arch.text.max_position_embeddings)
    side = size // arch.vae.factor
    return (
        rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        *(rng.integers(0, arch.text.vocab_size, words, np.int32) for _ in range(2)),
        rng.standard_normal((batch, side, side, arch.vae.latent_channels), np.float32),
    )


def config_of(task: Task, kind: str) -> EditConfig:
    """The edit that the editor would make."""
    precision = Precision(param=task.dtype, compute=task.dtype)
    return EditConfig(
        task.model,
        guiders=GUIDERS if kind == "guided" else (),
        precision=precision,
        vae_precision=precision,
        execution=Execution(attention=task.attention),
    )


class OurEdits:
    """Whole edits as compiled programs, over weights that are loaded once."""

    def __init__(self, task: Task) -> None:
        self.task = task
        pipeline = train.pipeline_of(task.model)
        self.arch = pipeline.architecture
        self.size = task.size or self.arch.image_size
        self.weights = place(pipeline.weights, config_of(task, "plain"))
        self.programs: dict[Figure, tuple[Any, Any]] = {}

    def lower(self, figure: Figure) -> tuple[Any, Any]:
        """The program of an edit, not compiled, and its arguments."""
        config = config_of(self.task, figure.kind)
        models = Models(
            self.arch,
            config.precision,
            config.vae_precision,
            config.execution.resolve(config.precision),
            config.lora,
            tuple(make_guider(x.name) for x in config.guiders),
        )
        pixels, source, target, noise = inputs_of(self.arch, self.size, figure.batch)
        schedule = schedule_of(config, Facts(), self.arch.betas)
        steps = schedule.steps
        scales = np.reshape(config.scales(steps), (len(config.guiders), steps))
        bounds = map(jnp.float32, config.noise_rescaling_setup.bounds)
        strength = Strength(jnp.asarray(scales, jnp.float32), *bounds)
        arguments = (pixels, source, target[:, None], noise, schedule, strength, jnp.float32(1))
        arguments = (self.weights, *jax.tree.map(jnp.asarray, arguments))

        def edit(*arguments: Any) -> Any:
            return edit_images(models, *arguments)

        return jax.jit(edit).lower(*arguments), arguments

    def compile(self, figures: Sequence[Figure]) -> dict[str, dict[str, Any]]:
        """Compile several at once; seconds and memory of each, or why it failed."""

        def one(figure: Figure) -> dict[str, Any]:
            try:
                begin = time.perf_counter()
                lowered, arguments = self.lower(figure)
                traced = time.perf_counter()
                program = lowered.compile()
                self.programs[figure] = program, arguments
                memory: Any = program.memory_analysis()
                return {
                    "trace": traced - begin,
                    "compile": time.perf_counter() - traced,
                    "temporaries": memory.temp_size_in_bytes if memory else None,
                }
            except Exception as error:
                return failure(error)

        with ThreadPoolExecutor(len(figures)) as threads:
            return dict(zip((x.name for x in figures), threads.map(one, figures), strict=True))

    def measure(self, figure: Figure) -> dict[str, Any]:
        """Seconds of warm edits, and the latents after each step."""
        program, arguments = self.programs[figure]
        seconds = repeated(lambda: jax.block_until_ready(program(*arguments)))
        _, edit = program(*arguments)
        return {"seconds": seconds, "latents": np.asarray(edit.latents[:, :, 0], np.float32)}

    def profile(self, figure: Figure) -> None:
        """A trace and the compiled program, for the profile folder."""
        program, arguments = self.programs[figure]
        write_profile(self.task, figure, program, lambda: program(*arguments))

    def matrix_rate(self) -> float | None:
        """FLOP/s of a large product in bfloat16."""
        return train.matrix_rate()


class TorchEdits:
    """The PyTorch counterpart, with our weights and inputs."""

    def __init__(self, task: Task) -> None:
        jax.config.update("jax_platforms", "cpu")  # the GPU is PyTorch's here
        from benchmarks.torch_edit import TorchEditor, torch

        self.torch, gpu = torch, torch.cuda.is_available()
        pipeline = train.pipeline_of(task.model)
        self.arch = pipeline.architecture
        self.size = task.size or self.arch.image_size
        self.editor = TorchEditor(pipeline, "cuda" if gpu else "cpu", task.dtype)
        self.compiled = False

    def measure(self, figure: Figure, way: Way) -> dict[str, Any]:
        """Seconds of warm edits, the most memory beside weights, and the latents."""
        cuda = self.torch.cuda
        if way == "compiled" and not self.compiled:
            self.editor.compile()
            self.compiled = True
        inputs = self.editor.place_inputs(*inputs_of(self.arch, self.size, figure.batch))
        settings = {"scales": SCALES if figure.kind == "guided" else None}
        gpu = cuda.is_available()
        if gpu:
            cuda.empty_cache()
            cuda.reset_peak_memory_stats()
        held = cuda.memory_allocated() if gpu else 0

        def eager() -> Any:
            return self.editor.edit(*inputs, **settings)

        eager()  # chooses kernels, or compiles
        one = self.editor.captured(inputs, **settings) if gpu and way != "eager" else eager
        latents: Any = None

        def waited() -> None:
            nonlocal latents
            latents = one()[1]
            if gpu:
                cuda.synchronize()

        seconds = repeated(waited)
        peak = cuda.max_memory_allocated() - held if gpu else None
        found = latents.permute(0, 1, 3, 4, 2).float().cpu().numpy()
        del latents  # memory of the graph
        if gpu:
            cuda.empty_cache()
        return {"seconds": seconds, "temporaries": peak, "latents": found}


# --- Training -------------------------------------------------------------------------------------


def train_task(task: Task, figure: Figure) -> train.Task:
    """The published fine-tuning of one batch."""
    argv = ["--model", task.model, "--batch", str(figure.batch), "--dtype", task.dtype]
    argv += ["--remat", task.remat, "--perceptual-dtype", task.dtype]
    argv += ["--size", str(task.size)] if task.size else []
    arch, _ = train.architecture_and_lora(task.model)
    found = train.task_of(train.parse(argv), "gpu", arch)
    execution = replace(found.config.execution, attention=task.attention)
    return replace(found, config=replace(found.config, execution=execution))


class OurTraining:
    """The step in its parts, compiled side by side: a whole step would take one core the longer."""

    def __init__(self, task: Task, figure: Figure) -> None:
        self.task, self.figure = task, figure
        self.ours = train.Ours(train_task(task, figure))
        self.programs: dict[str, Any] = {}

    def compile(self) -> dict[str, Any]:
        """Compile all parts."""
        begin = time.perf_counter()

        def one(lowered: Any) -> tuple[Any, float]:
            return lowered.compile(), time.perf_counter() - begin

        parts = self.ours.lower_parts()
        traced = time.perf_counter() - begin
        with ThreadPoolExecutor(len(parts)) as threads:
            done = dict(zip(parts, threads.map(one, parts.values()), strict=True))
        self.programs = {name: program for name, (program, _) in done.items()}
        sizes = (x.memory_analysis().temp_size_in_bytes for x in self.programs.values())
        return {
            "trace": traced,
            "compile": time.perf_counter() - begin,
            "compile parts": {name: seconds for name, (_, seconds) in done.items()},
            "temporaries": max(sizes),
        }

    def measure(self) -> dict[str, Any]:
        """Seconds of warm steps: the sums of their parts."""
        parts = self.ours.run_parts(self.programs, 3)
        sums = [sum(each) for each in zip(*parts.values(), strict=True)]
        medians = {name: statistics.median(seconds) for name, seconds in parts.items()}
        return {"seconds": sums, "parts": medians, "peak": self.ours.peak()}


class TorchTraining:
    """The PyTorch counterpart."""

    def __init__(self, task: Task, figure: Figure) -> None:
        self.theirs = train.Theirs(train_task(task, figure))

    def measure(self) -> dict[str, Any]:
        """The first step's losses, then seconds of warm steps."""
        facts = self.theirs.first()
        seconds = [self.theirs.step()[0] for _ in range(4)][1:]
        parts = {name: x["seconds"] for name, x in self.theirs.parts(1).items()}
        return facts | {"seconds": seconds, "parts": parts, "peak": self.theirs.peak()}


def write_profile(task: Task, figure: Figure, program: Any, call: Callable[[], Any]) -> None:
    """A trace of one run and the compiled program."""
    if task.profile is None:
        return
    folder = Path(task.profile) / figure.name
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / "program.hlo.gz", "wt") as file:
        file.write(program.as_text() or "")
    jax.block_until_ready(call())
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready(call())


# --- Attention alone ------------------------------------------------------------------------------

TOKENS = {
    "self 64x64": (4096, 4096, 40),
    "text 64x64": (4096, 77, 40),
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
            return 1000 * min(repeated(lambda: jax.block_until_ready(function(*qkv))))

        try:
            both = (jax.jit(attend), jax.jit(jax.grad(total, (0, 1, 2))))
            found[f"{name} {how}"] = [fastest(each) for each in both]
        except Exception as error:
            found[f"{name} {how}"] = failure(error)["error"]
    return found


# --- Processes ------------------------------------------------------------------------------------

here: Any = None
"""The program of this process."""


def failure(error: BaseException) -> dict[str, Any]:
    """An error as a figure."""
    return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:600]}


def start(make: Callable[..., Any], arguments: Sequence[Any]) -> dict[str, Any]:
    """Load."""
    global here
    begin = time.perf_counter()
    try:
        here = make(*arguments)
        work = here if isinstance(here, dict) else {}
        return {"load": time.perf_counter() - begin, "work": work}
    except Exception as error:
        here = failure(error)
        return here


def call(method: str, *arguments: Any) -> Any:
    """A method of the program; an error becomes a figure."""
    if isinstance(here, dict):
        return here
    try:
        return getattr(here, method)(*arguments)
    except Exception as error:
        return failure(error)


class Worker:
    """A program in a process of its own. It loads at once; answers are awaited."""

    def __init__(self, make: Callable[..., Any], *arguments: Any) -> None:
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.loaded: Future[dict[str, Any]] = self.pool.submit(start, make, arguments)

    def ask(self, method: str, *arguments: Any) -> "Future[Any]":
        """Call a method after all that was asked before."""
        return self.pool.submit(call, method, *arguments)

    def close(self) -> None:
        """End the process, which gives its memory back."""
        self.pool.shutdown(wait=True, cancel_futures=True)


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
        """The answer, unless the minutes are over before."""
        begin = time.monotonic()
        try:
            answer = future.result(timeout=max(self.deadline - begin, 0.0))
        except TimeoutError as error:
            raise OutOfTime(what) from error
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
            shown(memory, 1e-9),
            f"{own['difference']:.1e}" if "difference" in own else "-",
        ]

    def table(self) -> Iterator[str]:
        """All rows."""
        yield row(COLUMNS)
        yield row(["---"] * len(COLUMNS))
        for name, programs in self.record["results"].items():
            kind, _, batch = name.rpartition("-")
            yield from (row(self.cells(Figure(kind, int(batch)), each)) for each in programs)

    def write(self) -> None:
        """The output as it stands."""
        if self.output:
            with appearing_whole(self.output) as file:
                file.write((json.dumps(self.record, indent=1) + "\n").encode())


COLUMNS = (
    *("figure", "program", "compile s", "ms", "times ours", "TFLOP/s", "% of the matrix peak"),
    *("memory GB", "difference"),
)


def shown(value: Any, scale: float = 1.0) -> str:
    """Three digits; - where it is not known."""
    return f"{value * scale:.3g}" if value else "-"


def say(line: str) -> None:
    """A line at once, for the minutes may end any time."""
    print(line, flush=True)


def measure_attention(kind: DType, report: Report) -> None:
    """Attention alone, on paper."""
    worker = Worker(attention_kernels, kind)
    found = report.wait(worker.loaded, "attention alone")["work"]
    report.record["attention ms, alone and with gradient"] = found
    for name, facts in found.items():
        say(f"  {name}: {facts if isinstance(facts, str) else [round(x, 3) for x in facts]} ms")
    worker.close()


def measure(task: Task, figures: Sequence[Figure], ways: Sequence[Way], report: Report) -> None:
    """All figures, in their order, but for the steps of training: they compile the longest, beside
    all else, and are measured as soon as they are ready; edits then a second time, undisturbed.

    Raises:
        OutOfTime: the minutes ended first.
    """
    edits = [x for x in figures if x.is_edit]
    steps = [x for x in figures if not x.is_edit]
    work = Worker(work_of, task, figures)
    report.work = lambda: work.loaded.result()["work"] if work.loaded.done() else {}
    training = Worker(OurTraining, task, steps[0]) if steps else None
    compiling = training.ask("compile") if training else None
    ours = Worker(OurEdits, task) if edits else None
    theirs = Worker(TorchEdits, task) if edits and ways else None
    if ours:
        report.wait(ours.loaded, "load our edits")
        report.record["matrix rate"] = report.wait(ours.ask("matrix_rate"), "matrix product")
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
            report.add(figure, "ours", compiled[figure.name])
        ready += [x for x in wave if "error" not in compiled[x.name]]
        measure_edits(wave, [x for x in ways if x != "compiled"])
        for figure in wave if task.profile else ():
            if figure in ready:
                report.wait(ours.ask("profile", figure), f"profile {figure.name}")
    for step in steps:
        if not training or not compiling:
            training = Worker(OurTraining, task, step)
            compiling = training.ask("compile")
        facts = report.wait(training.loaded, f"load {step.name}")
        facts |= report.wait(compiling, f"compile {step.name}")
        if "error" not in facts:
            facts |= report.wait(training.ask("measure"), f"ours {step.name}")
        report.add(step, "ours", facts)
        training.close()
        training = None
        if ways:
            other = Worker(TorchTraining, task, step)
            found = report.wait(other.ask("measure"), f"PyTorch {step.name}")
            report.add(step, "torch eager", found)
            other.close()
    if steps:
        measure_edits(edits, [x for x in ways if x == "graph"])
    measure_edits(edits, [x for x in ways if x == "compiled"])
    report.wait(work.loaded, "count the work")


def work_of(task: Task, figures: Sequence[Figure]) -> dict[str, float]:
    """Useful operations of one image, by kind, counted from the networks."""
    jax.config.update("jax_platforms", "cpu")
    arch, lora = train.architecture_and_lora(task.model)
    size = task.size or arch.image_size
    work: dict[str, float] = {}
    if any(x.is_edit for x in figures):
        work |= {str(kind): count for kind, count in flops(arch, size).items()}
    steps = [x for x in figures if not x.is_edit]
    if steps:
        parts, _ = train.work_of(train_task(task, steps[0]), arch, train.rank_of(lora))
        work["train"] = sum(x.forward + x.backward for x in parts)
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
    options = parser.parse_args(argv)
    if not options.minutes > 0:
        raise UserError(f"--minutes {options.minutes} must be positive")
    return options


def prepare(cache: Path) -> None:
    """Settings that the programs' processes read as their libraries load."""
    cache = cache.absolute()
    os.environ |= {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # leaves memory to the other programs
        "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
    }


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    deadline = time.monotonic() + 60 * options.minutes
    with (
        tempfile.TemporaryDirectory()
        if options.cache is None
        else nullcontext(options.cache) as cache
    ):
        prepare(Path(cache))
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            device = pool.submit(device_here).result()
        jax.config.update("jax_platforms", "cpu")  # this process leaves the GPU to the others
        profile = options.profile and str(options.profile.absolute())
        task = Task(
            *(options.model, options.size, options.dtype, options.attention),
            *(options.remat, profile),
        )
        record: dict[str, Any] = {
            "options": {key: str(value) for key, value in vars(options).items()},
            "device": device,
            "versions": versions(),
            "xla flags": os.environ.get("XLA_FLAGS", ""),
            "results": {},
        }
        say(f"{device['kind']}, {os.cpu_count()} CPU cores; {record['versions']}")
        report = Report(deadline, options.output, record)
        figures = [x for x in FIGURES if x.name in options.figures]
        try:
            if "attention" in options.figures:
                measure_attention(task.dtype, report)
            measure(task, figures, options.torch, report)
        except OutOfTime as error:
            say(f"the {options.minutes:g} minutes are over: {error} was not finished")
        for process in multiprocessing.active_children():
            process.kill()
    report.write()
    say("\n".join(["", *report.table()]))


if __name__ == "__main__":
    run(main)
