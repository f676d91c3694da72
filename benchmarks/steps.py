"""Steps of cycle fine-tuning as programs, ours and PyTorch's, from the same weights and draws."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from benchmarks.harness import compiled, matrix_rate, peak_memory, resident_peak, say, timed, traced
from benchmarks.models import RANK, pipeline_of, weight_shapes, widths_of
from ie_jax.devices import make_mesh
from ie_jax.models.lpips import lpips_shapes
from ie_jax.models.networks import Architecture, Networks, vae_precision
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.stage import Stage, initial_state
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import Frozen, cycle_schedule, cycle_stage, frozen_of, prepare
from ie_jax.training.step import make_step, micro_batches
from ie_jax.weights.judges import random_lpips


@dataclass(frozen=True)
class Task:
    """One kind of step."""

    config: TrainConfig
    size: int
    seed: int = 0
    threads: int | None = None
    """CPU cores for either program. None: all."""


def perceptual_of(config: TrainConfig, seed: int = 0) -> Any:
    """Random LPIPS; None where the loss does without."""
    if config.cycle.distance != "lpips":
        return None
    return random_lpips(seed, widths_of(config.model))


def batch_of(task: Task, arch: Architecture) -> dict[str, np.ndarray]:
    """Random images and token ids."""
    rng, b = np.random.default_rng(task.seed), task.config.batch_size
    return {
        "pixels": rng.integers(0, 256, (b, task.size, task.size, 3), np.uint8),
        "ids": rng.integers(0, arch.text.vocab_size, (b, *words_of(arch)), np.int32),
    }


def words_of(arch: Architecture) -> tuple[int, ...]:
    """Axes of a caption's token ids."""
    length = arch.text.max_position_embeddings
    return (2, length) if arch.text_2 else (length,)


def networks_of(config: TrainConfig, arch: Architecture, backend: str | None = None) -> Networks:
    """As the training command makes them."""
    execution = config.execution.resolve(config.precision, backend, config.mesh.fsdp > 1)
    autoencoder = vae_precision(arch, config.vae_precision)
    return Networks(arch, config.precision, autoencoder, execution, config.lora)


def stage_of(config: TrainConfig, networks: Networks, params: Any) -> Stage:
    """The published fine-tuning of a LoRA."""
    return cycle_stage(config.cycle, networks, optimiser_of(config.optimiser, params))


def argument_shapes(
    stage: Stage, config: TrainConfig, arch: Architecture, size: int, rank: int = RANK
) -> tuple[Any, Any, dict[str, Any], Any]:
    """State, frozen weights, batch and key of a step."""
    shape, param = jax.ShapeDtypeStruct, config.precision.param
    weights, distance = weight_shapes(arch, param, rank), config.cycle.distance
    frozen = Frozen(
        *(weights.unet, weights.backward, weights.vae, weights.texts),
        lpips_shapes(widths_of(config.model)) if distance == "lpips" else None,
        jax.eval_shape(partial(cycle_schedule, config.cycle, arch.betas)),
    )
    batch = {
        "pixels": shape((config.batch_size, size, size, 3), jnp.uint8),
        "ids": shape((config.batch_size, *words_of(arch)), jnp.int32),
    }
    state = jax.eval_shape(partial(initial_state, stage), weights.forward)
    return state, frozen, batch, jax.eval_shape(lambda: jax.random.key(0))


def parts_of(stage: Stage, mesh: Mesh, accumulate: int) -> dict[str, Callable[..., Any]]:
    """What a step consists of, each a function of a step's arguments: the preparation, and for each
    loss an update that takes what was prepared for its batch."""

    def prepared(_: Any, frozen: Any, batch: Mapping[str, Any], key: Any) -> Any:
        keys = jax.random.split(key, len(batch["ids"]))
        parts = micro_batches(lambda part: stage.prepare(frozen, *part), (batch, keys), accumulate)
        if accumulate == 1:
            return parts
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)

    updates = {name: make_step(part_of(stage, name), mesh, accumulate) for name in stage.losses}
    return {"prepare": prepared, **updates}


def part_of(stage: Stage, name: str) -> Stage:
    """A stage of one loss, whose batches are prepared."""
    return Stage(lambda frozen, x, keys: x, {name: stage.losses[name]}, stage.optimiser)


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
    drawn = {"posterior": example.latents, "noise": example.noise}
    drawn |= {"index": example.index, "segment": example.segment}
    return {name: np.asarray(x) for name, x in drawn.items()}


class OurSteps:
    """The training step as one compiled program, and its parts as programs of their own."""

    def __init__(self, task: Task) -> None:
        self.task, config = task, task.config
        pipeline = pipeline_of(config.model, task.seed)
        arch = pipeline.architecture
        self.params = pipeline.weights.forward
        self.stage = stage_of(config, networks_of(config, arch), self.params)
        self.mesh = make_mesh(devices=jax.devices()[:1])
        self.frozen = jax.device_put(
            frozen_of(config, config.cycle, pipeline, perceptual_of(config, task.seed))
        )
        self.batch = jax.device_put(batch_of(task, arch))
        self.key = jax.random.key(task.seed)
        self.programs: dict[str, Any] = {}
        self.newest = ""

    def compile(self) -> dict[str, Any]:
        """Compile the step; seconds, and bytes beside arguments and results."""
        step = make_step(self.stage, self.mesh, self.task.config.accumulate)
        state = jax.eval_shape(partial(initial_state, self.stage), self.params)
        lowered = jax.jit(step, donate_argnums=0).lower(state, self.frozen, self.batch, self.key)
        self.programs["step"], facts = compiled(lowered)
        return facts

    def compile_parts(self, at_once: bool) -> dict[str, Any]:
        """Compile what a step consists of, side by side or one after the other."""
        begin = time.perf_counter()
        parts = parts_of(self.stage, self.mesh, self.task.config.accumulate)
        example = jax.eval_shape(parts["prepare"], None, self.frozen, self.batch, self.key)
        lowered = {}
        for name, part in parts.items():
            state = None
            if name != "prepare":
                state = jax.eval_shape(
                    partial(initial_state, part_of(self.stage, name)), self.params
                )
            given = self.batch if name == "prepare" else example
            jitted = jax.jit(part, donate_argnums=0)
            lowered[name] = jitted.lower(state, self.frozen, given, self.key)
        traced = time.perf_counter() - begin

        def build(name: str) -> tuple[Any, dict[str, Any]]:
            program, facts = compiled(lowered[name])
            say(f"  compiled {name} in {facts['compile']:.0f} s")
            return program, facts

        with ThreadPoolExecutor(len(parts) if at_once else 1) as threads:
            done = dict(zip(parts, threads.map(build, parts), strict=True))
        self.programs |= {name: program for name, (program, _) in done.items()}
        return {
            "trace": traced,
            "compile": time.perf_counter() - begin,
            "compile parts": {name: facts["compile"] for name, (_, facts) in done.items()},
            "temporaries": max(facts["temporaries"] or 0 for _, facts in done.values()),
        }

    def run(self, name: str = "step") -> tuple[float, dict[str, float]]:
        """Seconds of one step, or of a part after the preparation, and its metrics."""
        program = self.programs[name]
        if name == "prepare":
            seconds, self.example = timed(program, None, self.frozen, self.batch, self.key)
            return seconds, {}
        if name != self.newest:
            stage = self.stage if name == "step" else part_of(self.stage, name)
            self.newest, self.state = name, initial_state(stage, self.params)
        given = self.batch if name == "step" else self.example
        seconds, (self.state, metrics) = timed(program, self.state, self.frozen, given, self.key)
        return seconds, {name: float(x) for name, x in metrics.items()}

    def parts(self, repeats: int) -> dict[str, list[float]]:
        """Seconds of each part's runs, after a first one."""
        names = [name for name in self.programs if name != "step"]
        return {name: [self.run(name)[0] for _ in range(repeats + 1)][1:] for name in names}

    def measure(self) -> dict[str, Any]:
        """Seconds of warm steps: the sums of their parts."""
        parts = self.parts(3)
        sums = [sum(each) for each in zip(*parts.values(), strict=True)]
        medians = {name: median(seconds) for name, seconds in parts.items()}
        return {"seconds": sums, "parts": medians, "peak": peak_memory()}

    def profile(self, folder: str) -> None:
        """A trace of each part, once it is warm, in a folder of its name."""
        for name in self.programs:
            traced(Path(folder) / name, self.run, name)

    def peak(self) -> int:
        """Bytes, the most so far."""
        return peak_memory()

    def matrix_rate(self) -> float:
        """FLOP/s of a large product."""
        return matrix_rate()


class TorchSteps:
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
        frozen = frozen_of(config, config.cycle, pipeline, perceptual)
        self.batch = self.trainer.place(batch_of(task, arch))
        self.draws = self.trainer.place(draws_of(task, arch, frozen))
        self.seconds: list[dict[str, float]] = []

    def run(self) -> tuple[float, dict[str, float]]:
        """Seconds of one step, and its metrics."""
        seconds, (metrics, parts) = timed(self.trainer, self.batch, self.draws)
        self.seconds.append(parts)
        return seconds, metrics

    def parts(self, repeats: int) -> dict[str, list[float]]:
        """Seconds of what the steps so far consisted of, after a first one."""
        return {name: [x[name] for x in self.seconds[1:]] for name in self.seconds[0]}

    def measure(self) -> dict[str, Any]:
        """Seconds of warm steps and of their parts, and the first step's metrics."""
        first, metrics = self.run()
        seconds = [self.run()[0] for _ in range(3)]
        medians = {name: median(each) for name, each in self.parts(3).items()}
        facts = {"first": first, "metrics": metrics, "seconds": seconds}
        return facts | {"parts": medians, "peak": self.peak()}

    def peak(self) -> int:
        """Bytes, the most so far."""
        return int(self.cuda.max_memory_allocated()) if self.cuda else resident_peak()
