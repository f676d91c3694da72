"""Time and memory of one edit, ours beside the PyTorch counterpart, in the same run.

    python -m benchmarks.edit --model random-tiny
    python -m benchmarks.edit --model models --dtype bfloat16 --output results.json

prints a Markdown table; on a GPU bfloat16 is the default. Each program has a process of its own.
Ours starts twice: cold, with an empty compilation cache, and again with the cache that this left;
a start lasts from the process's first moment to its first result. Then warm edits of ours and of
PyTorch take turns, or, where the memory does not hold both, follow one another (--sequential).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.random_weights import SIZES, random_weights
from ie_jax.cli import run
from ie_jax.data.images import preprocess
from ie_jax.data.world import draw_scene, render
from ie_jax.editing.config import EditConfig, GuiderConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.methods.inverse_and_edit import edit_images
from ie_jax.models.execution import DType, Execution, Precision
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.models.unet import UNet
from ie_jax.models.vae import VAE
from ie_jax.weights.load import load_pipeline

SOURCE, TARGET = "a red ball on a green field", "a blue ball on a green field"
SCALES = ((0.0, 20000.0, 20000.0, 20000.0), (0.5,) * 4)
GUIDERS = (
    GuiderConfig("self_attn_map_l2", SCALES[0]),
    GuiderConfig("features_map_l2", SCALES[1]),
)
STEPS = 4
Mode = Literal["plain", "guided"]
MODES: tuple[Mode, ...] = ("plain", "guided")


@dataclass(frozen=True)
class Task:
    """One kind of edit."""

    model: str
    size: int | None
    dtype: DType
    mode: Mode
    cache: str
    """The compilation cache."""


@dataclass(frozen=True)
class Start:
    """What a program tells of its start."""

    compile_seconds: float = 0.0
    first_seconds: float = 0.0
    """Of its first edit."""
    temporaries: int | None = None
    """Bytes beside weights, inputs and results; None: not known."""


# --- The programs, each in a process of its own ---------------------------------------------------


class Ours:
    """The editor's whole edit as one compiled program."""

    def __init__(self, task: Task) -> None:
        jax.config.update("jax_compilation_cache_dir", task.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        self.editor = make_editor(task)
        self.arguments = edit_arguments(self.editor)
        start = time.perf_counter()
        function = jax.jit(partial(edit_images, self.editor.models))
        self.program = function.lower(*self.arguments).compile()
        compiled = time.perf_counter()
        self.edit()
        memory = self.program.memory_analysis()
        self.start = Start(
            compiled - start,
            time.perf_counter() - compiled,
            memory.temp_size_in_bytes if memory else None,
        )

    def edit(self) -> np.ndarray:
        """The latents (steps, h, w, c) after each step."""
        _, edit = jax.block_until_ready(self.program(*self.arguments))
        return np.asarray(edit.latents[:, 0, 0])


class Theirs:
    """The PyTorch counterpart."""

    def __init__(self, task: Task) -> None:
        from benchmarks.torch_edit import TorchEditor, torch

        # Prompts and noise are ours; so is the work of finding them, which is not timed.
        editor = make_editor(replace(task, mode="plain"))
        _, pixels, source, target, noise, *_ = edit_arguments(editor)
        self.inputs = [np.asarray(x) for x in (pixels, source, target[:, 0], noise)]
        del editor
        self.scales = SCALES if task.mode == "guided" else None
        gpu = torch.cuda.is_available()
        pipeline = load_pipeline(task.model, offline=True)
        self.editor = TorchEditor(pipeline, "cuda" if gpu else "cpu", task.dtype)
        del pipeline
        held = torch.cuda.memory_allocated() if gpu else 0
        start = time.perf_counter()
        self.edit()
        temporaries = torch.cuda.max_memory_allocated() - held if gpu else None
        self.start = Start(0.0, time.perf_counter() - start, temporaries)

    def edit(self) -> np.ndarray:
        """The latents (steps, h, w, c) after each step; on the host, so they are computed."""
        return self.editor(*self.inputs, scales=self.scales).latents[:, 0]


PROGRAMS = {"ours": Ours, "torch": Theirs}
here: Any = None
"""The program of this process."""


def prepare_process() -> None:
    """Settings that are read when libraries load."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves memory to the other program
    os.environ["OMP_PROC_BIND"] = "true"  # or torch's threads share one core


def start(name: str, task: Task) -> Start:
    """Load, compile and edit once."""
    global here
    here = PROGRAMS[name](task)
    result: Start = here.start
    return result


def edit_once() -> tuple[float, np.ndarray]:
    """Seconds of one warm edit, and its latents."""
    begin = time.perf_counter()
    latents = here.edit()
    return time.perf_counter() - begin, latents


class Process:
    """A program in a fresh process."""

    def __init__(self, name: str, task: Task) -> None:
        begin = time.perf_counter()
        self.pool = ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=prepare_process
        )
        try:
            self.start = self.pool.submit(start, name, task).result()
        except BaseException:
            self.pool.shutdown()
            raise
        self.start_seconds = time.perf_counter() - begin

    def edit(self) -> tuple[float, np.ndarray]:
        """Seconds of one warm edit, and its latents."""
        return self.pool.submit(edit_once).result()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()


def make_editor(task: Task) -> Editor:
    """Our editor for a task."""
    precision = Precision(param=task.dtype, compute=task.dtype)
    config = EditConfig(
        task.model,
        guiders=GUIDERS if task.mode == "guided" else (),
        size=task.size,
        precision=precision,
        vae_precision=precision,
    )
    return Editor.from_pretrained(config=config, offline=True, progress=False)


def edit_arguments(editor: Editor) -> list[Any]:
    """What `edit_images` takes after `models`, for one edit of one picture."""
    pixels = editor.batch(preprocess(render(draw_scene(2026, 0)), editor.size))
    target, *rest = editor.edit_arguments(1, TARGET)
    arguments = (pixels, editor.ids([SOURCE]), target, editor.noise(pixels, None), *rest)
    return [editor.weights, *jax.tree.map(jnp.asarray, arguments)]


# --- Work -----------------------------------------------------------------------------------------


def flops(arch: Architecture, size: int) -> dict[Mode, float]:
    """Floating-point operations of an edit, from the networks' products and convolutions.

    Plain: encode, 4 inversion and 4 generation calls, decode. Guided: each generation step has
    three calls and the backward passes of two of them, each counted as another call (method 4).
    """
    execution = Execution(attention="explicit", query_chunk=0)
    side = size // arch.vae.factor
    tokens = arch.text.max_position_embeddings

    def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def cost(module: Any, params: Any, *inputs: Any, **options: Any) -> float:
        def apply(params: Any, *inputs: Any) -> Any:
            return module.apply({"params": params}, *inputs, **options)

        analysis = jax.jit(apply).lower(params, *inputs).cost_analysis()
        assert analysis is not None
        return float(analysis["flops"])

    z = shape(1, side, side, arch.vae.latent_channels)
    vae = VAE(arch.vae, execution=execution)
    vae_params = vae_shapes(arch.vae)
    unet = cost(
        UNet(arch.unet, execution=execution),
        unet_shapes(arch.unet),
        z,
        shape(1, dtype=jnp.int32),
        shape(1),
        shape(1, tokens, arch.unet.cross_attention_dim),
    )
    text = cost(
        TextEncoder(arch.text), text_encoder_shapes(arch.text), shape(1, tokens, dtype=jnp.int32)
    )
    ends = (
        cost(vae, vae_params, shape(1, size, size, 3), method="encode")
        + cost(vae, vae_params, z, method="decode")
        + 2 * text
    )
    return {"plain": ends + 2 * STEPS * unet, "guided": ends + (STEPS + 5 * STEPS) * unet}


# --- The measurement ------------------------------------------------------------------------------


def measure(task: Task, torch: bool, repeats: int, sequential: bool) -> dict[str, Any]:
    """All figures of one kind of edit."""
    with tempfile.TemporaryDirectory() as cache:
        task = replace(task, cache=cache)
        with Process("ours", task) as cold:
            pass
        names = ["ours", "torch"] if torch else ["ours"]
        seconds: dict[str, list[float]] = {name: [] for name in names}
        latents: dict[str, np.ndarray] = {}
        processes: dict[str, Process] = {}
        for group in [[name] for name in names] if sequential else [names]:
            with ExitStack() as stack:
                for name in group:
                    processes[name] = stack.enter_context(Process(name, task))
                for _ in range(repeats):
                    for name in group:
                        elapsed, latents[name] = processes[name].edit()
                        seconds[name].append(elapsed)
    facts: dict[str, Any] = {
        name: {
            "latency": statistics.median(seconds[name]),
            "all latencies": seconds[name],
            "start": processes[name].start_seconds,
            "temporaries": processes[name].start.temporaries,
        }
        for name in names
    }
    facts["ours"] |= {
        "cold start": cold.start_seconds,
        "cold compile": cold.start.compile_seconds,
        "cached compile": processes["ours"].start.compile_seconds,
    }
    if torch:
        difference = np.linalg.norm(latents["ours"] - latents["torch"])
        facts["difference"] = float(difference / np.linalg.norm(latents["torch"]))
    return facts


def cells(facts: dict[str, Any], tflop: float, name: str) -> list[str]:
    """One program's figures, in words."""
    own = facts[name]

    def shown(key: str, scale: float = 1.0, digits: int = 2) -> str:
        value = own.get(key)
        return "-" if value is None else f"{value * scale:.{digits}f}"

    return [
        shown("cold compile"),
        shown("cached compile"),
        shown("cold start"),
        shown("start"),
        shown("latency", digits=3),
        f"{tflop / own['latency']:.3g}",
        shown("temporaries", 1e-9, 3),
    ]


COLUMNS = (
    *("edit", "program", "cold compile s", "cached compile s", "cold start s", "second start s"),
    *("warm edit s", "TFLOP/s", "temporaries GB"),
)


def table(results: dict[Mode, dict[str, Any]]) -> Iterator[str]:
    """The figures as Markdown."""
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|" + " --- |" * len(COLUMNS)
    for mode, facts in results.items():
        for name in PROGRAMS:
            if name in facts:
                yield "| " + " | ".join([mode, name, *cells(facts, facts["tflop"], name)]) + " |"
    yield ""
    for mode, facts in results.items():
        line = f"{mode}: {facts['tflop']:.3g} TFLOP"
        if "torch" in facts:
            ratio = facts["ours"]["latency"] / facts["torch"]["latency"]
            line += f"; ours takes {ratio:.2f} times torch's time"
            line += f"; latents differ by {facts['difference']:.1e} (relative L2)"
        yield line


def versions() -> dict[str, str]:
    """Of what was measured, as far as installed."""
    found = {}
    for name in ("ie_jax", "jax", "jaxlib", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@contextmanager
def model_folder(model: str) -> Iterator[str]:
    """A folder of upstream files; random-SIZE is drawn, and forgotten afterwards."""
    size = model.removeprefix("random-")
    if size == model:
        yield model
        return
    if size not in SIZES:
        raise UserError(f"--model {model}: the random ones are random-{', random-'.join(SIZES)}")
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["IE_JAX_HOME"] = f"{temporary}/home"
        folder = Path(temporary) / "model"
        random_weights(folder, size)
        yield str(folder)


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
    parser.add_argument("--edits", choices=(*MODES, "both"), default="both")
    parser.add_argument(
        "--sequential", action="store_true", help="never hold both programs at once"
    )
    parser.add_argument("--output", type=Path, help="a JSON file for all figures")
    options = parser.parse_args(argv)
    if options.repeats < 1:
        raise UserError(f"--repeats {options.repeats} must be positive")
    return options


def device_facts() -> dict[str, str]:
    """The device that JAX runs on, asked in a process that ends: this one must hold none."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(device_here).result()


def device_here() -> dict[str, str]:
    """The device of this process."""
    device = jax.devices()[0]
    return {"platform": device.platform, "kind": device.device_kind}


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    device = device_facts()
    jax.config.update("jax_platforms", "cpu")  # this process leaves the accelerator to the others
    dtype: DType = options.dtype or ("bfloat16" if device["platform"] == "gpu" else "float32")
    modes = MODES if options.edits == "both" else (options.edits,)
    with model_folder(options.model) as model:
        arch = load_pipeline(model, offline=True).architecture  # converts where it must
        size = options.size or arch.image_size
        work = flops(arch, size)
        results: dict[Mode, dict[str, Any]] = {}
        for mode in modes:
            task = Task(model, size, dtype, mode, cache="")
            results[mode] = {"tflop": work[mode] / 1e12}
            results[mode] |= measure(task, options.torch, options.repeats, options.sequential)
    print(f"{options.model}, {size} px, {dtype}, {device['kind']}, {os.cpu_count()} CPU cores\n")
    print("\n".join(table(results)))
    if options.output:
        record = {
            "options": {key: str(value) for key, value in vars(options).items()},
            "size": size,
            "dtype": dtype,
            "device": device,
            "versions": versions(),
            "results": results,
        }
        with appearing_whole(options.output) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())


if __name__ == "__main__":
    run(main)
