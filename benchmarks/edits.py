"""Edits as programs, ours and PyTorch's, of one model and the same inputs."""

import gzip
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.harness import Failed, compiled, guarded, matrix_rate, repeated, timed, traced
from benchmarks.models import pipeline_of
from ie_jax.devices import make_mesh
from ie_jax.editing.config import EditConfig, GuiderConfig
from ie_jax.editing.editor import placed, schedule_of
from ie_jax.methods.guidance import Strength
from ie_jax.methods.guiders import make_guider
from ie_jax.methods.inverse_and_edit import Models, edit_images
from ie_jax.models.architecture import TextConfig
from ie_jax.models.execution import DType, Execution, Precision
from ie_jax.models.networks import Architecture, Tokens, vae_precision, whole_picture
from ie_jax.weights.facts import Facts

SCALES = ((0.0, 20000.0, 20000.0, 20000.0), (0.5,) * 4)
GUIDERS = (
    GuiderConfig("self_attn_map_l2", SCALES[0]),
    GuiderConfig("features_map_l2", SCALES[1]),
)
EDITS = ("plain", "guided")
Way = Literal["eager", "graph", "compiled"]
"""Of PyTorch: kernel by kernel; the edit as one CUDA graph; networks compiled, then one graph."""


class Figure(NamedTuple):
    """What is measured: an edit or a training step of a batch."""

    kind: str
    batch: int = 1

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.kind}-{self.batch}"


@dataclass(frozen=True)
class Task:
    """What all edits have in common."""

    model: str
    size: int | None
    dtype: DType
    attention: Any = "auto"
    profile: str | None = None
    """A folder for traces and compiled programs."""


def inputs_of(arch: Architecture, size: int, batch: int) -> tuple[Any, ...]:
    """Random pictures, source and target tokens, and start noise."""
    rng = np.random.default_rng(0)
    side = size // arch.vae.factor

    def ids(config: TextConfig) -> np.ndarray:
        words = (batch, config.max_position_embeddings)
        return rng.integers(0, config.vocab_size, words, np.int32)

    def tokens() -> Any:
        if arch.text_2 is None:
            return ids(arch.text)
        sizes = whole_picture(size, size, batch)
        return Tokens(ids(arch.text), ids(arch.text_2), sizes)  # type: ignore[arg-type]

    return (
        rng.integers(0, 256, (batch, size, size, 3), np.uint8),
        *(tokens() for _ in range(2)),
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
        pipeline = pipeline_of(task.model, param=task.dtype)
        self.arch = pipeline.architecture
        self.size = task.size or self.arch.image_size
        mesh = make_mesh(devices=jax.devices()[:1])
        self.weights = placed(pipeline.weights, self.config(task, "plain"), mesh)
        self.programs: dict[Figure, tuple[Any, Any]] = {}

    def config(self, task: Task, kind: str) -> EditConfig:
        """`config_of`, as the networks have it."""
        config = config_of(task, kind)
        return replace(config, vae_precision=vae_precision(self.arch, config.vae_precision))

    def lower(self, figure: Figure) -> tuple[Any, Any]:
        """The program of an edit, not compiled, and its arguments."""
        config = self.config(self.task, figure.kind)
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
        scales = np.reshape(config.scales(schedule.steps), (len(config.guiders), schedule.steps))
        bounds = map(jnp.float32, config.noise_rescaling_setup.bounds)
        strength = Strength(jnp.asarray(scales, jnp.float32), *bounds)
        target = jax.tree.map(lambda x: x[:, None], target)
        arguments = (pixels, source, target, noise, schedule, strength, jnp.float32(1))
        arguments = (self.weights, *jax.tree.map(jnp.asarray, arguments))
        return jax.jit(partial(edit_images, models)).lower(*arguments), arguments

    def compile(self, figures: Sequence[Figure]) -> dict[str, dict[str, Any]]:
        """Compile several at once; seconds and memory of each, or why it failed."""

        def build(figure: Figure) -> dict[str, Any]:
            begin = time.perf_counter()
            lowered, arguments = self.lower(figure)
            seconds = time.perf_counter() - begin
            program, facts = compiled(lowered)
            self.programs[figure] = program, arguments
            return {"trace": seconds} | facts

        def one(figure: Figure) -> dict[str, Any]:
            try:
                found: dict[str, Any] = guarded(build, figure)
                return found
            except Failed as error:
                return {"error": str(error)}

        with ThreadPoolExecutor(len(figures)) as threads:
            return dict(zip((x.name for x in figures), threads.map(one, figures), strict=True))

    def run(self, figure: Figure) -> tuple[float, np.ndarray]:
        """Seconds of an edit, and the latents (steps, b, h, w, c) after each step."""
        program, arguments = self.programs[figure]
        seconds, (_, edit) = timed(program, *arguments)
        return seconds, np.asarray(edit.latents[:, :, 0], np.float32)

    def measure(self, figure: Figure) -> dict[str, Any]:
        """Seconds of warm edits, and the latents."""
        program, arguments = self.programs[figure]
        return {"seconds": repeated(program, *arguments), "latents": self.run(figure)[1]}

    def profile(self, figure: Figure) -> None:
        """A trace of one edit and the compiled program, for the profile folder."""
        program, arguments = self.programs[figure]
        folder = Path(self.task.profile or ".") / figure.name
        jax.block_until_ready(program(*arguments))
        traced(folder, program, *arguments)
        with gzip.open(folder / "program.hlo.gz", "wt") as file:
            file.write(program.as_text() or "")

    def matrix_rate(self) -> float:
        """FLOP/s of a large product."""
        return matrix_rate()


class TorchEdits:
    """The PyTorch counterpart, with our weights and inputs."""

    def __init__(self, task: Task) -> None:
        jax.config.update("jax_platforms", "cpu")  # the GPU is PyTorch's here
        from benchmarks.torch_edit import TorchEditor, torch

        self.cuda = torch.cuda if torch.cuda.is_available() else None
        pipeline = pipeline_of(task.model)
        self.arch = pipeline.architecture
        self.size = task.size or self.arch.image_size
        self.editor = TorchEditor(pipeline, "cuda" if self.cuda else "cpu", task.dtype)
        self.compiled = False

    def prepare(self, figure: Figure, way: Way = "eager") -> dict[str, Any]:
        """Choose kernels, compile, make a first edit; the most memory beside weights, bytes."""
        if way == "compiled" and not self.compiled:
            self.editor.compile()
            self.compiled = True
        inputs = self.editor.place_inputs(*inputs_of(self.arch, self.size, figure.batch))
        settings = {"scales": SCALES if figure.kind == "guided" else None}
        self.edit: Any = partial(self.editor.edit, *inputs, **settings)
        if self.cuda is None:
            self.edit()
            return {"temporaries": None}
        self.cuda.empty_cache()
        self.cuda.reset_peak_memory_stats()
        held = self.cuda.memory_allocated()
        self.edit()
        if way != "eager":
            self.edit = self.editor.captured(inputs, **settings)
        self.waited()
        return {"temporaries": self.cuda.max_memory_allocated() - held}

    def waited(self) -> Any:
        """The latents of an edit, which is done."""
        latents = self.edit()[1]
        if self.cuda:
            self.cuda.synchronize()
        return latents

    def run(self, figure: Figure) -> tuple[float, np.ndarray]:
        """Seconds of an edit as prepared, and the latents (steps, b, h, w, c) after each step."""
        seconds, latents = timed(self.waited)
        return seconds, latents.permute(0, 1, 3, 4, 2).float().cpu().numpy()

    def measure(self, figure: Figure, way: Way) -> dict[str, Any]:
        """Seconds of warm edits, memory, and the latents."""
        facts = self.prepare(figure, way)
        facts |= {"seconds": repeated(self.waited), "latents": self.run(figure)[1]}
        del self.edit  # and with it a graph's memory
        if self.cuda:
            self.cuda.empty_cache()
        return facts
