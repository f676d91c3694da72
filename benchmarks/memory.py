"""Memory of one edit at SD1.5's full size, from the compiler: no weights and no accelerator needed.

    python -m benchmarks.memory --target cuda --size 256 512 768 --energy chunked plain

prints a Markdown table with one row per combination of the settings, each of which takes several
values, and the bytes of the weights. cuda compiles ahead of time for the GPU of `--gpu`, tpu for
one chip of a v5e; either needs only its compiler (the extras cuda12 or tpu).
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from benchmarks.harness import row, say, table
from benchmarks.models import architecture_of, weight_shapes
from benchmarks.sizes import SIZES
from ie_jax.cli import run
from ie_jax.diffusion.schedule import make_schedule
from ie_jax.editing.by_method import FEW, edit_by
from ie_jax.errors import UserError
from ie_jax.methods.guidance import Strength
from ie_jax.methods.guiders import QUERY_CHUNK, Guider, make_guider
from ie_jax.methods.inverse_and_edit import Models, edit_images
from ie_jax.methods.prompt_to_prompt import Edits
from ie_jax.methods.settings import MethodConfig, numbers_of, size_of
from ie_jax.methods.table import METHODS, settled
from ie_jax.models.execution import DType, Execution, Precision, Remat, dtype
from ie_jax.models.networks import Architecture

H100 = Path(__file__).parent / "targets/h100.textproto"
BACKENDS = {"cpu": "cpu", "cuda": "gpu", "tpu": "tpu"}
COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    # The kernels' machine code is never run, and cuBLAS's products need none: minutes less.
    "cuda": {"xla_backend_optimization_level": "0", "xla_gpu_enable_triton_gemm": False}
}
GUIDERS = {
    "both": ("self_attn_map_l2", "features_map_l2"),
    "attention": ("self_attn_map_l2",),
    "features": ("features_map_l2",),
    "none": (),
}


OURS = "ours"


@dataclass(frozen=True)
class Setting:
    """One edit to compile. The fields are the command's options."""

    size: int = 512
    batch: int = 1
    dtype: DType = "float32"
    guiders: str = "both"
    energy: str = "chunked"
    attention: str = "chunked"
    lora: Any = "merge"
    remat: Remat = "none"
    method: Any = OURS


CHOICES: dict[str, Sequence[str]] = {
    "dtype": ("float32", "bfloat16"),
    "guiders": tuple(GUIDERS),
    "energy": ("chunked", "plain"),
    "attention": ("chunked", "plain", "xla", "flash"),
    "lora": ("merge", "low_rank"),
    "remat": ("none", "block", "call"),
    "method": (OURS, *METHODS),
}
HELP = {
    "size": "pixels of either side",
    "batch": "images, each edited once",
    "dtype": "of all weights but LoRA, and of all products",
    "guiders": "both, one or none of the published ones",
    "energy": "chunked: some queries at a time; plain: whole maps",
    "attention": "the same for attention itself, or a kernel: XLA's, or that for TPUs",
    "lora": "merge a copy of the weights, or add the low-rank path in each layer",
    "remat": "what backward passes compute again: the inside of blocks, or network calls",
    "method": "ours, or another with its published settings (guiders, energy are ours)",
}


def guiders_of(setting: Setting) -> tuple[Guider, ...]:
    """The guiders, their maps chunked or whole."""
    chunk = {"query_chunk": QUERY_CHUNK if setting.energy == "chunked" else 0}
    return tuple(
        make_guider(name, **(chunk if name == "self_attn_map_l2" else {}))
        for name in GUIDERS[setting.guiders]
    )


def models_of(setting: Setting, arch: Architecture, backend: str) -> Models:
    """What `edit_images` is compiled for."""
    precision = Precision(param=setting.dtype, compute=setting.dtype)
    kernel: Any = setting.attention if setting.attention in ("xla", "flash") else "explicit"
    execution = Execution(
        attention=kernel,  # cuDNN's are not to be had without a GPU
        query_chunk=Execution.query_chunk if setting.attention == "chunked" else 0,
        remat=setting.remat,
    ).resolve(precision, backend)
    return Models(arch, precision, precision, execution, setting.lora, guiders_of(setting))


def argument_shapes(setting: Setting, models: Models) -> tuple[Any, ...]:
    """The arguments of `edit_images` after `models`, as shapes.

    Raises:
        UserError: the networks cannot take the size.
    """
    arch, b = models.architecture, setting.batch
    if setting.size < 1 or setting.size % arch.latent_factor:
        raise UserError(f"--size {setting.size} does not divide by {arch.latent_factor}")
    side, channels = setting.size // arch.vae.factor, arch.vae.latent_channels
    tokens = arch.text.max_position_embeddings
    schedule = jax.eval_shape(make_schedule)
    shape: Any = jax.ShapeDtypeStruct
    strength = Strength(
        shape((len(models.guiders), schedule.steps), jnp.float32),
        shape((), jnp.float32),
        shape((), jnp.float32),
    )
    return (
        weight_shapes(arch, setting.dtype),
        shape((b, setting.size, setting.size, 3), jnp.uint8),
        shape((b, tokens), jnp.int32),
        shape((b, 1, tokens), jnp.int32),
        shape((b, side, side, channels), jnp.float32),
        schedule,
        strength,
        shape((), jnp.float32),
    )


def method_shapes(setting: Setting, models: Models) -> tuple[Any, ...]:
    """The arguments of `edit_by` after the networks, as shapes."""
    weights, pixels, source, target, _, schedule, _, match = argument_shapes(setting, models)
    chosen, (b, length) = settled(setting.method, MethodConfig()), source.shape
    shape: Any = jax.ShapeDtypeStruct
    floats = partial(shape, dtype=jnp.float32)
    steps = FEW if setting.method == "icd" else chosen.steps
    edits = Edits(
        matrix=floats((b, 1, length, length)),
        own=floats((b, 1, length)),
        equalizer=floats((b, 1, length)),
        cross=floats((b, 1, steps + 1, length)),
        self_steps=shape((b, 1, 2), jnp.int32),
    )
    numbers = jax.tree.map(lambda x: shape(x.shape, x.dtype), numbers_of(chosen))
    return (
        *(weights, pixels, source, target, shape((1, length), jnp.int32)),
        *(shape((b, 2), jnp.uint32), schedule, (edits, None), numbers, match),
    )


def program_of(setting: Setting, models: Models) -> tuple[Any, tuple[Any, ...]]:
    """The edit as a function, and the shapes of its arguments."""
    if setting.method == OURS:
        return partial(edit_images, models), argument_shapes(setting, models)
    size = size_of(settled(setting.method, MethodConfig()))
    edit = partial(edit_by, models, method=METHODS[setting.method].edit, size=size)
    return edit, method_shapes(setting, models)


def device_of(target: str, gpu: Path = H100) -> Any:
    """A device to compile for, which need not be there.

    Raises:
        UserError: the compiler for it is not installed.
    """
    if target == "cpu":
        return jax.devices("cpu")[0]
    return devices_of("h100" if target == "cuda" else "v5e:2x2", gpu)[1][0]


def devices_of(name: str, gpu: Path = H100) -> tuple[str, Sequence[Any]]:
    """Platform and devices of a topology such as h100:4 or v5e:2x4, which need not be there.

    Raises:
        UserError: unknown, or the compiler for it is not installed.
    """
    kind, _, shape = name.partition(":")
    try:
        if kind == "h100":
            options = {"topology": f"1x1x{int(shape or 1)}", "target_config": gpu.read_text()}
            return "cuda", topologies.get_topology_desc("gpu", platform="cuda", **options).devices
        return "tpu", topologies.get_topology_desc(topology_name=name, platform="tpu").devices
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        extra, reason = "cuda12" if kind == "h100" else "tpu", " ".join(str(error).split())
        raise UserError(
            f"cannot compile for {name} ({reason}): pip install 'ie_jax[{extra}]'"
        ) from error


def compile_edit(setting: Setting, arch: Architecture, target: str, device: Any) -> Any:
    """The compiled edit."""
    models = models_of(setting, arch, BACKENDS[target])
    place = partial(
        jax.tree.map,
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(device)
        ),
    )
    edit, shapes = program_of(setting, models)
    lowered = jax.jit(edit).lower(*place(shapes))
    return lowered.compile(compiler_options=COMPILER_OPTIONS.get(target))


def settings(options: Mapping[str, Sequence[Any]]) -> Iterator[Setting]:
    """Every combination."""
    names = Setting.__dataclass_fields__
    return (Setting(*values) for values in product(*(options[name] for name in names)))


def count(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def weights_report(arch: Architecture, param: DType) -> str:
    """What the forward, the backward and the base model take as one base with two LoRAs, and as
    three networks."""
    weights = weight_shapes(arch, param)
    base, lora = count(weights.unet), count(weights.forward)
    width = dtype(param).itemsize
    shared, separate = base * width + 2 * lora * 4, 3 * base * width
    return (
        f"UNet weights in {param}: {base / 1e6:.1f} M of the base, {lora / 1e6:.1f} M of each LoRA "
        f"(float32). One base with two LoRAs: {shared / 1e9:.2f} GB; three networks: "
        f"{separate / 1e9:.2f} GB; saved: {(separate - shared) / 1e9:.2f} GB."
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line: every field of `Setting` takes several values."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description="Memory of one edit, from the compiler. Each setting takes several values.",
    )
    parser.add_argument("--target", choices=BACKENDS, default="cuda")
    parser.add_argument("--gpu", type=Path, default=H100, help="description of the GPU for cuda")
    one_text = [name for name, size in SIZES.items() if not size.text_2]
    parser.add_argument("--model", choices=one_text, default="sd15", help="sizes of the networks")
    for name, field in Setting.__dataclass_fields__.items():
        parser.add_argument(
            f"--{name}",
            nargs="+",
            type=int if name in ("size", "batch") else str,
            choices=CHOICES.get(name),
            default=[field.default],
            help=f"{HELP[name]} (default: {field.default})",
        )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing runs: an accelerator is left alone
    device = device_of(options.target, options.gpu)
    arch = architecture_of(options.model)
    print(f"{options.model} on {device.device_kind}; GB of 1e9 bytes\n")
    for param in options.dtype:
        print(weights_report(arch, param))
    print()
    names = tuple(Setting.__dataclass_fields__)
    header = (*names, "temporaries GB", "arguments GB", "outputs GB", "compile s")
    say("\n".join(table(header)))
    for setting in settings(vars(options)):
        start = time.perf_counter()
        memory = compile_edit(setting, arch, options.target, device).memory_analysis()
        seconds = time.perf_counter() - start
        sizes = (
            memory.temp_size_in_bytes,
            memory.argument_size_in_bytes,
            memory.output_size_in_bytes,
        )
        fields = [getattr(setting, name) for name in names]
        say(row([*fields, *(f"{x / 1e9:.3f}" for x in sizes), f"{seconds:.0f}"]))
        jax.clear_caches()


if __name__ == "__main__":
    run(main)
