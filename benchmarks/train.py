"""Time, work and memory of a step of cycle fine-tuning, ours beside the PyTorch counterpart.

    python -m benchmarks.train --model random --size 64
    python -m benchmarks.train --model random-sd15 --remat block --output results.json

prints Markdown tables. Each program has a process of its own; its steps, after a first one, take
turns with the other's, or, on an accelerator, whose memory would not hold both, come after them.
Both start from the same weights, images and draws, so that their losses can be compared.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import train_flops
from benchmarks.edit import device_facts, prepare_process, versions
from benchmarks.memory import RANK, architecture_of, count, row
from benchmarks.random_weights import SIZES
from ie_jax.cli import run
from ie_jax.devices import make_mesh
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.models.execution import DType, Execution, Precision, dtype
from ie_jax.models.lora import lora_shapes
from ie_jax.models.lpips import WIDTHS, lpips_shapes
from ie_jax.models.networks import Architecture, Networks
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.training.config import optimiser_of
from ie_jax.training.recipe import NARROW
from ie_jax.training.stage import Stage, initial_state
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import CycleConfig, Frozen, cycle_stage, frozen_of, prepare
from ie_jax.training.step import make_step, micro_batches
from ie_jax.weights.folder import Pipeline, Weights
from ie_jax.weights.judges import random_lpips
from ie_jax.weights.load import RANDOM, load_pipeline

MATRIX = 8192  # sides of the product that tells a GPU's peak
LORA_STRENGTH = 0.05


@dataclass(frozen=True)
class Task:
    """One kind of step."""

    config: TrainConfig
    size: int
    seed: int = 0
    threads: int | None = None
    """CPU cores for either program. None: all."""


# --- What both programs start from ----------------------------------------------------------------


def random_weights_of(arch: Architecture, rank: int, seed: int) -> Weights:
    """Random weights of any size, in no time and without files."""
    base = unet_shapes(arch.unet)
    lora = lora_shapes(base, rank)
    return Weights(
        draw(base, seed),
        draw(lora, seed + 1),
        draw(lora, seed + 2),
        draw(vae_shapes(arch.vae), seed + 3),
        draw(text_encoder_shapes(arch.text), seed + 4),
    )


def trained(lora: Any, seed: int) -> Any:
    """A LoRA whose B is not zero, as after training."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, x: np.ndarray) -> np.ndarray:
        if path[-1].key != "up":
            return x
        return LORA_STRENGTH * rng.standard_normal(x.shape, np.float32)

    return jax.tree.map_with_path(fill, lora)


def pipeline_of(model: str, seed: int = 0) -> Pipeline:
    """`random`, random-SIZE (drawn here), or a folder of upstream files.

    Raises:
        UserError: there is no such model.
    """
    size = model.removeprefix("random-")
    if size != model and size not in SIZES:
        raise UserError(f"--model {model}: the random ones are random-{', random-'.join(SIZES)}")
    if size != model:
        arch = architecture_of(size)
        pipeline = Pipeline(arch, random_weights_of(arch, RANK, seed), Path())
    else:
        pipeline = load_pipeline(model, offline=True)
        if model != RANDOM:
            return pipeline
    weights = pipeline.weights
    loras = {name: trained(getattr(weights, name), seed) for name in ("forward", "backward")}
    return replace(pipeline, weights=replace(weights, **loras))


def widths_of(model: str) -> Sequence[int]:
    """Of LPIPS: narrow beside a tiny model."""
    return NARROW if model in (RANDOM, "random-tiny") else WIDTHS


def perceptual_of(config: TrainConfig, seed: int = 0) -> Any:
    """Random LPIPS; None where the loss does without."""
    if config.cycle.distance != "lpips":
        return None
    return random_lpips(seed, widths_of(config.model))


def batch_of(task: Task, arch: Architecture) -> dict[str, np.ndarray]:
    """Random images and token ids."""
    rng, b = np.random.default_rng(task.seed), task.config.batch_size
    words = (b, arch.text.max_position_embeddings)
    return {
        "pixels": rng.integers(0, 256, (b, task.size, task.size, 3), np.uint8),
        "ids": rng.integers(0, arch.text.vocab_size, words, np.int32),
    }


def networks_of(config: TrainConfig, arch: Architecture) -> Networks:
    """As the training command makes them."""
    execution = config.execution.resolve(config.precision)
    return Networks(arch, config.precision, config.vae_precision, execution, config.lora)


def draws_of(task: Task, arch: Architecture, frozen: Frozen) -> dict[str, np.ndarray]:
    """The random numbers of a step with key `task.seed`: those of a cached batch whose posterior is
    standard normal."""
    config, b = task.config, task.config.batch_size
    side = task.size // arch.vae.factor
    mean = jnp.zeros((b, side, side, arch.vae.latent_channels))
    posterior = {
        "mean": mean,
        "std": jnp.full(mean.shape, 1 / arch.vae.scaling_factor),
        "context": jnp.zeros((b, 1, 1)),
    }
    cycle = replace(config.cycle, distance="l2")
    keys = jax.random.split(jax.random.key(task.seed), b)
    example = prepare(cycle, networks_of(config, arch), frozen, posterior, keys)
    drawn = {
        "posterior": example.latents,
        "noise": example.noise,
        "index": example.index,
        "segment": example.segment,
    }
    return {name: np.asarray(x) for name, x in drawn.items()}


# --- The programs, each in a process of its own ---------------------------------------------------


def peak_memory() -> int:
    """Bytes that were in use at once: of the device, or of this process on a CPU."""
    facts = jax.devices()[0].memory_stats() or {}
    return int(facts.get("peak_bytes_in_use", resident_peak()))


def resident_peak() -> int:
    """The most memory of this process, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin, result


def matrix_rate() -> float | None:
    """FLOP/s of a large product in bfloat16, the best of several; None on a CPU."""
    if jax.default_backend() == "cpu":
        return None
    # Random: some chips multiply zeros and ones faster.
    x = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    return 2 * MATRIX**3 / min(timed(product, x)[0] for _ in range(20))


class Ours:
    """The training step as one compiled program."""

    def __init__(self, task: Task) -> None:
        self.task, config = task, task.config
        pipeline = pipeline_of(config.model, task.seed)
        self.arch = pipeline.architecture
        self.networks = networks_of(config, self.arch)
        self.stage = cycle_stage(config.cycle, self.networks, optimiser_of(config.optimiser))
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.frozen = jax.device_put(
            frozen_of(config, config.cycle, pipeline, perceptual_of(config, task.seed))
        )
        self.batch = jax.device_put(batch_of(task, self.arch))
        self.key = jax.random.key(task.seed)
        self.params = pipeline.weights.forward
        self.state = initial_state(self.stage, self.params)

    def first(self) -> dict[str, Any]:
        """Compile, and make a first step."""
        begin = time.perf_counter()
        step = make_step(self.stage, self.mesh, self.task.config.accumulate)
        lowered = jax.jit(step, donate_argnums=0).lower(
            self.state, self.frozen, self.batch, self.key
        )
        self.program = lowered.compile()
        compiled = time.perf_counter() - begin
        memory = self.program.memory_analysis()
        first, metrics = self.step()
        return {
            "compile": compiled,
            "first": first,
            "metrics": metrics,
            "temporaries": memory.temp_size_in_bytes if memory else None,
        }

    def step(self) -> tuple[float, dict[str, float]]:
        """Seconds of one step, and its metrics."""
        seconds, (self.state, metrics) = timed(
            self.program, self.state, self.frozen, self.batch, self.key
        )
        return seconds, {name: float(x) for name, x in metrics.items()}

    def peak(self) -> int:
        """Bytes, the most so far."""
        return peak_memory()

    def lower_parts(self) -> dict[str, Any]:
        """What a step consists of, each as a program of its own, not compiled."""
        config = self.task.config
        keys = jax.random.split(self.key, config.batch_size)

        def prepared(frozen: Frozen, batch: Mapping[str, Any], keys: Any) -> Any:
            return micro_batches(
                lambda part: self.stage.prepare(frozen, *part), (batch, keys), config.accumulate
            )

        parts = {"prepare": jax.jit(prepared).lower(self.frozen, self.batch, keys)}
        example = parts["prepare"].out_info
        if config.accumulate > 1:
            example = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((x.shape[0] * x.shape[1], *x.shape[2:]), x.dtype),
                example,
            )
        for name, loss in self.stage.losses.items():
            stage = Stage(lambda frozen, example, keys: example, {name: loss}, self.stage.optimiser)
            step = jax.jit(make_step(stage, self.mesh, config.accumulate), donate_argnums=0)
            state = jax.eval_shape(partial(initial_state, stage), self.params)
            parts[name] = step.lower(state, self.frozen, example, self.key)
        return parts

    def run_parts(self, parts: Mapping[str, Any], repeats: int) -> dict[str, list[float]]:
        """Seconds of each part's runs, after a first one."""
        config = self.task.config
        keys = jax.random.split(self.key, config.batch_size)
        seconds: dict[str, list[float]] = {"prepare": []}
        for _ in range(repeats + 1):
            elapsed, example = timed(parts["prepare"], self.frozen, self.batch, keys)
            seconds["prepare"].append(elapsed)
        if config.accumulate > 1:
            example = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), example)
        for name, loss in self.stage.losses.items():
            stage = Stage(self.stage.prepare, {name: loss}, self.stage.optimiser)
            state = initial_state(stage, self.params)
            seconds[name] = []
            for _ in range(repeats + 1):
                elapsed, (state, _) = timed(parts[name], state, self.frozen, example, self.key)
                seconds[name].append(elapsed)
        return {name: each[1:] for name, each in seconds.items()}

    def parts(self, repeats: int) -> dict[str, dict[str, float]]:
        """Median seconds, and seconds to compile, of what a step consists of: each part is a
        program of its own."""
        compiled, programs = {}, {}
        for name, lowered in self.lower_parts().items():
            begin = time.perf_counter()
            programs[name] = lowered.compile()
            compiled[name] = time.perf_counter() - begin
        return {
            name: {"seconds": statistics.median(seconds), "compile": compiled[name]}
            for name, seconds in self.run_parts(programs, repeats).items()
        }

    def matrix_rate(self) -> float | None:
        """FLOP/s of a large product in bfloat16."""
        return matrix_rate()

    def draws(self) -> dict[str, np.ndarray]:
        """What a step draws."""
        return draws_of(self.task, self.arch, self.frozen)


class Theirs:
    """The PyTorch counterpart, with our weights and draws."""

    def __init__(self, task: Task) -> None:
        jax.config.update("jax_platforms", "cpu")  # the accelerator is PyTorch's here
        from benchmarks.torch_train import TorchTrainer, torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None
        config = task.config
        pipeline = pipeline_of(config.model, task.seed)
        perceptual = perceptual_of(config, task.seed)
        device = "cuda" if self.cuda else "cpu"
        self.trainer = TorchTrainer(config, pipeline, perceptual, device)
        arch = pipeline.architecture
        self.batch = self.trainer.place(batch_of(task, arch))
        frozen = frozen_of(config, config.cycle, pipeline, perceptual)
        self.draws = self.trainer.place(draws_of(task, arch, frozen))
        del pipeline, frozen
        self.seconds: list[dict[str, float]] = []

    def first(self) -> dict[str, Any]:
        """Make a first step."""
        first, metrics = self.step()
        self.seconds.clear()
        return {"first": first, "metrics": metrics}

    def step(self) -> tuple[float, dict[str, float]]:
        """Seconds of one step, and its metrics."""
        begin = time.perf_counter()
        metrics, seconds = self.trainer(self.batch, self.draws)
        self.seconds.append(seconds)
        return time.perf_counter() - begin, metrics

    def peak(self) -> int:
        """Bytes, the most so far."""
        return int(self.cuda.max_memory_allocated()) if self.cuda else resident_peak()

    def parts(self, repeats: int) -> dict[str, dict[str, float]]:
        """Median seconds of what the steps so far consisted of."""
        names = self.seconds[0]
        return {
            name: {"seconds": statistics.median(x[name] for x in self.seconds)} for name in names
        }


PROGRAMS = {"ours": Ours, "torch": Theirs}
here: Any = None
"""The program of this process."""


def confine(threads: int | None) -> None:
    """Keep this process to some of the cores."""
    if threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def begin(name: str, task: Task) -> dict[str, Any]:
    """Load, compile, make a first step."""
    global here
    here = PROGRAMS[name](task)
    facts: dict[str, Any] = here.first()
    return facts


def call(method: str, *arguments: Any) -> Any:
    """A method of the program."""
    return getattr(here, method)(*arguments)


class Process:
    """A program in a fresh process."""

    def __init__(self, name: str, task: Task) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=confine, initargs=(task.threads,))
        try:
            self.facts: dict[str, Any] = self.pool.submit(begin, name, task).result()
        except BaseException:
            self.pool.shutdown()
            raise

    def __call__(self, method: str, *arguments: Any) -> Any:
        return self.pool.submit(call, method, *arguments).result()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


# --- The measurement ------------------------------------------------------------------------------


def measure(
    task: Task, names: Sequence[str], repeats: int, sequential: bool, parts: bool
) -> dict[str, Any]:
    """All figures of the programs named."""
    facts: dict[str, Any] = {}
    for group in [[name] for name in names] if sequential else [names]:
        with ExitStack() as stack:
            processes = {name: stack.enter_context(Process(name, task)) for name in group}
            seconds: dict[str, list[float]] = {name: [] for name in group}
            for _ in range(repeats):
                for name, process in processes.items():
                    seconds[name].append(process("step")[0])
            for name, process in processes.items():
                facts[name] = process.facts | {
                    "step": statistics.median(seconds[name]),
                    "all steps": seconds[name],
                    "peak": process("peak"),
                }
                if parts:
                    facts[name]["parts"] = process("parts", repeats)
            if "ours" in processes:
                facts["ours"]["matrix rate"] = processes["ours"]("matrix_rate")
    if len(names) > 1:
        facts["difference"] = difference(*(facts[name]["metrics"] for name in names))
    return facts


def difference(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The largest relative difference of a loss of the first step."""
    losses = [name for name in theirs if name.endswith("/loss")]
    return max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in losses)


def rank_of(lora: Any) -> int:
    """Of all its modules."""
    leaves = jax.tree.leaves_with_path(lora)
    return next(int(x.shape[-1]) for path, x in leaves if path[-1].key == "down")


def work_of(
    task: Task, arch: Architecture, rank: int
) -> tuple[list[train_flops.Work], dict[str, float]]:
    """The operations of a step's parts, and of other orders of work in all, for each image."""
    config = task.config
    lpips = train_flops.lpips_cost(config.cycle, lpips_shapes(widths_of(config.model)), task.size)
    costs = {
        lora: train_flops.network_costs(arch, task.size, rank, lora) | {"lpips": lpips}
        for lora in ("low_rank", "merge")
    }
    plan = train_flops.plan_of(config)
    others = {
        name: train_flops.total(other, costs[other.lora])
        for name, other in train_flops.variants(plan).items()
    }
    return train_flops.work(plan, costs[plan.lora]), others


# --- The tables -----------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Markdown."""
    yield row(header)
    yield row(["---"] * len(header))
    yield from map(row, rows)


def shown(value: float | None, scale: float = 1.0) -> str:
    """Three digits; - where it is not known."""
    return "-" if value is None else f"{value * scale:.3g}"


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
    ours, theirs = (facts.get(name, {}).get("parts", {}) for name in PROGRAMS)
    rows = [
        [
            part,
            shown(own["seconds"]),
            shown(own["compile"]),
            shown(theirs.get(part, {}).get("seconds")),
        ]
        for part, own in ours.items()
    ]
    yield from table(("part", "ours s", "ours compile s", "torch s"), rows)


def work_table(work: Sequence[train_flops.Work]) -> Iterator[str]:
    """A row for each kind of call, TFLOP per image."""
    rows = [
        [
            x.calls.part,
            x.calls.network,
            x.calls.times,
            x.calls.gradient,
            *(shown(y, 1e-12) for y in (x.forward, x.recomputed, x.backward, x.total)),
        ]
        for x in work
    ]
    sums = [sum(column) for column in zip(*((*x[1:], x.total) for x in work), strict=True)]
    rows.append(["all", "", "", "", *(shown(x, 1e-12) for x in sums)])
    header = ("part", "network", "calls", "gradient to", "forward", "again", "backward", "TFLOP")
    yield from table(header, rows)


def orders_table(
    orders: Mapping[str, float], plans: Mapping[str, train_flops.Plan], kernels: int
) -> Iterator[str]:
    """A row for each order of work; `kernels`: bytes of the kernels that have LoRA."""
    first = next(iter(orders.values()))
    rows = [
        [
            name,
            shown(x, 1e-12),
            f"{100 * (x / first - 1):+.1f}",
            f"+{2 * kernels / 1e9:.3g} (one merged copy, one gradient)"
            if plans[name].lora == "merge"
            else "-",
        ]
        for name, x in orders.items()
    ]
    yield from table(("order of work", "TFLOP per image", "% more", "memory GB, known part"), rows)


# --- The command ----------------------------------------------------------------------------------


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train",
        description="Time, work and memory of a step of cycle fine-tuning, ours beside PyTorch's.",
    )
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
        choices=("none", "block", "call"),
        help="what backward passes compute again (default: none on a CPU, else block)",
    )
    parser.add_argument("--distance", choices=("lpips", "l2"), default="lpips")
    parser.add_argument("--patch-size", type=int, help="of LPIPS (default: 224, or half the size)")
    parser.add_argument("--patch-stride", type=int, help="(default: 110, or a quarter)")
    parser.add_argument("--repeats", type=int, default=5, help="steps, of which the median")
    parser.add_argument("--torch", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--parts",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time the parts of a step too, each compiled by itself",
    )
    parser.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="--no-measure: only count the work",
    )
    parser.add_argument(
        "--threads",
        type=int,
        help="CPU cores for either program (default: all; where others compute too, PyTorch's "
        "threads wait for each other most of the time)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} must be positive")
    cores = os.cpu_count() or 1
    if options.threads is not None and not 1 <= options.threads <= cores:
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
    remat = options.remat or ("none" if cpu else "block")
    kind: DType = options.dtype or ("float32" if cpu else "bfloat16")
    precision = Precision(param=kind, compute=kind)
    cycle = CycleConfig(
        order=options.order,
        distance=options.distance,
        patch_size=options.patch_size or (224 if size > 2 * 110 + 224 else size // 2),
        patch_stride=options.patch_stride or (110 if size > 2 * 110 + 224 else size // 4),
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
        execution=Execution(remat_block=remat == "block", remat_call=remat == "call"),
    )
    return Task(config, size, options.seed, options.threads)


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    prepare_process()  # the programs inherit it: libraries read it as they load
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    device = device_facts()
    jax.config.update("jax_platforms", "cpu")  # this process leaves the accelerator to the others
    arch, lora = architecture_and_lora(options.model)
    task = task_of(options, device["platform"], arch)
    config = task.config
    plan = train_flops.plan_of(config)
    work, orders = work_of(task, arch, rank_of(lora))
    print(
        f"{config.model}, {task.size} px, {config.batch_size} images in {config.accumulate} parts, "
        f"{config.precision.compute}, {config.cycle.order}, {config.lora}, remat {plan.remat}, "
        f"{config.cycle.distance}; {device['kind']}, {task.threads or os.cpu_count()} CPU cores\n"
    )
    base = unet_shapes(arch.unet)
    kernels = count(train_flops.kernels_of(base, lora)) * dtype(config.precision.param).itemsize
    plans = train_flops.variants(plan)
    print("\n".join([*work_table(work), "", *orders_table(orders, plans, kernels)]), flush=True)
    record: dict[str, Any] = {
        "options": {key: str(value) for key, value in vars(options).items()},
        "device": device,
        "versions": versions(),
        "work": [{**x.calls._asdict(), **x._asdict(), "calls": x.calls.times} for x in work],
        "orders": orders,
    }
    if options.measure:
        names = list(PROGRAMS)[: 1 + options.torch]
        sequential = device["platform"] != "cpu"
        facts = measure(task, names, options.repeats, sequential, options.parts)
        useful = sum(x.forward + x.backward for x in work)
        print("\n".join(["", *steps_table(facts, config.batch_size, useful), ""]))
        if options.parts:
            print("\n".join([*parts_table(facts), ""]))
        if "torch" in facts:
            ratio = facts["ours"]["step"] / facts["torch"]["step"]
            print(f"ours takes {ratio:.2f} times torch's time; ", end="")
            print(f"losses of the first step differ by {facts['difference']:.1e} (relative)")
        record["results"] = facts
    if options.output:
        with appearing_whole(options.output) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())


def architecture_and_lora(model: str) -> tuple[Architecture, Any]:
    """The networks of a model, and the shapes of its forward LoRA."""
    if model.removeprefix("random-") in SIZES and model != RANDOM:
        arch = architecture_of(model.removeprefix("random-"))
        return arch, lora_shapes(unet_shapes(arch.unet), RANK)
    pipeline = pipeline_of(model)
    return pipeline.architecture, pipeline.weights.forward


if __name__ == "__main__":
    run(main)
