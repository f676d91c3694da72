"""The full-size training step, compiled for machines that are not there.

    python -m benchmarks.aot h100:4 v5e:2x4 v5p:2x2x1

prints one row per topology: per device, memory for weights and for temporaries, and the bytes that
collectives move in a step; and the size of the LoRA gradient to compare with. A topology is
NAME:SHAPE; `h100:N` needs the extra cuda12, `v5e:AxB` and `v5p:AxBxC` the extra tpu. Nothing runs.

A TPU's compiler takes hours and tens of GB for the three updates of a step. `--only cycle` compiles
one of them: the step's peak is about the largest of theirs, its collectives are their sum.
"""

import argparse
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax

from benchmarks.harness import row, say, table
from benchmarks.memory import COMPILER_OPTIONS, count, devices_of
from benchmarks.models import NAMES as MODELS
from benchmarks.models import architecture_of, weight_shapes
from benchmarks.steps import argument_shapes, networks_of, stage_of
from ie_jax.cli import run
from ie_jax.devices import batch_sharding, make_mesh, replicated, weight_shardings
from ie_jax.models.execution import Execution, Precision, Remat
from ie_jax.training.config import MeshConfig
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import NAMES, CycleConfig
from ie_jax.training.step import make_step

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
KINDS = "|".join(COLLECTIVES)
WIDTHS = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "u8": 1, "s8": 1, "f64": 8}


def placed(shapes: Any, shardings: Any) -> Any:
    """Shapes with their place on a mesh."""
    if isinstance(shardings, jax.sharding.Sharding):
        shardings = jax.tree.map(lambda _: shardings, shapes)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def config_of(options: argparse.Namespace, devices: int, backend: str) -> TrainConfig:
    """The published fine-tuning at the size asked for, or some of its updates."""
    precision = Precision(param=options.dtype, compute=options.dtype)
    left_out: dict[str, Any] = {f"{name}_weight": 0.0 for name in NAMES if name not in options.only}
    return TrainConfig(
        model=f"random-{options.model}",
        cycle=CycleConfig(
            order=options.order,
            distance=options.distance,
            patch_stride=options.patch_stride,
            perceptual_compute=options.dtype,
            **left_out,
        ),
        batch_size=options.batch * devices,
        accumulate=options.accumulate,
        mesh=MeshConfig(options.fsdp),
        lora=options.lora,
        precision=precision,
        vae_precision=precision,
        execution=Execution(
            attention="explicit" if backend == "gpu" else "auto",  # cuDNN needs a GPU to compile
            remat=options.remat,
        ),
    )


def array_bytes(shape: str) -> int:
    """Bytes of an HLO shape: f32[2,3]{1,0}, or a tuple of such."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", shape)
    sizes = (
        WIDTHS.get(kind, 0) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in found
    )
    return sum(sizes)


def collective_bytes(text: str) -> dict[str, int]:
    """Bytes that each kind of collective yields on a device, loops counted as often as they run.

    Args:
        text: a compiled module (HLO text).
    """
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)

    def of(name: str, fused: bool = False) -> dict[str, tuple[str, int]]:
        found: dict[str, tuple[str, int]] = {}
        for number, line in enumerate(computations.get(name, [])):
            if match := re.search(rf"= (.+?) ({KINDS})(-start)?\(", line):
                yields = array_bytes(match[1])
                # An asynchronous start yields its operand beside its result.
                size = yields // 2 if match[3] and match[1][0] == "(" else yields
                # TPUs spread one over several fusions, all of which name its channel.
                channel = re.search(r"channel_id=\d+", line) if fused else None
                found[channel[0] if channel else f"{name}:{number}"] = match[2], size
            runs = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', line)
            looped = " while(" in line
            times = int(runs[1]) if runs and looped else 1
            for called in re.findall(
                r"(?:body|to_apply|calls|branch_computations)=\{?%?([\w.\-]+)", line
            ):
                for key, (kind, size) in of(called, " fusion(" in line).items():
                    found[f"{name}:{number}:{key}" if looped else key] = kind, size * times
        return found

    total: dict[str, int] = dict.fromkeys(COLLECTIVES, 0)
    for kind, size in of(entry).values():
        total[kind] += size
    return {kind: size for kind, size in total.items() if size}


def report(name: str, options: argparse.Namespace) -> list[Any]:
    """The row of a topology."""
    platform, devices = devices_of(name)
    backend = {"cuda": "gpu", "tpu": "tpu"}[platform]
    mesh = make_mesh(options.fsdp or 1, devices)
    config, arch = config_of(options, mesh.size, backend), architecture_of(options.model)
    forward = weight_shapes(arch).forward
    stage = stage_of(config, networks_of(config, arch, backend), forward)
    state, frozen, batch, key = argument_shapes(stage, config, arch, options.size)
    arguments = (
        placed(state, replicated(mesh)),
        placed(frozen, weight_shardings(mesh, frozen)),
        placed(batch, batch_sharding(mesh)),
        placed(key, replicated(mesh)),
    )
    start = time.perf_counter()
    step = jax.jit(make_step(stage, mesh, options.accumulate), donate_argnums=0)
    compiled = step.lower(*arguments).compile(compiler_options=COMPILER_OPTIONS.get(platform))
    memory: Any = compiled.memory_analysis()
    costs: Mapping[str, float] = compiled.cost_analysis() or {}
    moved = collective_bytes(compiled.as_text() or "")
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    unaliased = memory.output_size_in_bytes - memory.alias_size_in_bytes
    flops = costs.get("flops", 0.0)
    return [
        name,
        f"{mesh.shape['data']} x {mesh.shape['fsdp']}",
        options.batch,
        *(f"{x / 1e9:.2f}" for x in (memory.argument_size_in_bytes, memory.temp_size_in_bytes)),
        f"{(held + unaliased) / 1e9:.2f}",
        f"{sum(moved.values()) / 1e9:.3f}",
        ", ".join(f"{kind} {size / 1e9:.3f}" for kind, size in moved.items()) or "none",
        f"{flops / 1e12:.1f}" if flops > 0 else "-",
        f"{time.perf_counter() - start:.0f}",
    ]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__)
    parser.add_argument("topologies", nargs="+", metavar="TOPOLOGY", help="h100:4, v5e:2x4, ...")
    parser.add_argument("--model", choices=MODELS, default="sd15", help="sizes of the networks")
    parser.add_argument("--size", type=int, default=512, help="pixels of either side")
    parser.add_argument("--batch", type=int, default=4, help="images per device")
    parser.add_argument("--accumulate", type=int, default=1, help="micro-batches")
    parser.add_argument("--fsdp", type=int, default=1, help="devices that share a copy of weights")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--order", choices=("in_turn", "sum"), default="in_turn")
    parser.add_argument("--distance", choices=("lpips", "huber", "l2"), default="lpips")
    parser.add_argument("--patch-stride", type=int, default=110, help="between LPIPS' patches")
    parser.add_argument("--lora", choices=("low_rank", "merge"), default="low_rank")
    parser.add_argument("--remat", choices=get_args(Remat), default="both")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=list(NAMES), help="some updates"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """The command."""
    options = parse(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing runs: an accelerator is left alone
    gradient = 4 * count(weight_shapes(architecture_of(options.model)).forward)
    print(f"{options.model}, {options.size} px, {options.dtype}, remat {options.remat}, ", end="")
    print(f"{options.lora}, {options.order}: {', '.join(options.only)}; ", end="")
    print(f"LoRA gradient {gradient / 1e9:.3f} GB (1e9 bytes)\n")
    header = (
        "topology",
        "data x fsdp",
        "images per device",
        "arguments GB",
        "temporaries GB",
        "peak GB",
        "collectives GB per step",
        "of which",
        "TFLOP",
        "compile s",
    )
    say("\n".join(table(header)))
    for name in options.topologies:
        say(row(report(name, options)))
        jax.clear_caches()


if __name__ == "__main__":
    run(main)
