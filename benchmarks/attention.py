"""Memory of one layer of self-attention, from the compiler: no accelerator needed.

    python -m benchmarks.attention --target tpu --kernels xla flash

prints a Markdown table: temporaries of the layer and of its gradient, of one image in bfloat16, for
SD1.5's numbers of tokens and widths of heads at 512 px.
"""

import argparse
from collections.abc import Sequence
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp

from benchmarks.harness import row, say, table
from benchmarks.memory import BACKENDS, device_of
from ie_jax.cli import run
from ie_jax.models.attention import attention
from ie_jax.models.execution import Execution

HEADS = 8
LAYERS = {4096: 40, 1024: 80, 256: 160}
"""Tokens, and the width of a head."""


def megabytes(kernel: Any, tokens: int, width: int, device: Any, gradient: bool) -> float:
    """Temporaries, MB of 1e6 bytes."""
    execution = Execution(attention=kernel)

    def layer(*qkv: jax.Array) -> jax.Array:
        return attention(qkv[0], qkv[1], qkv[2], execution)

    def loss(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(layer(*qkv).astype(jnp.float32))

    at = jax.sharding.SingleDeviceSharding(device)
    x = jax.ShapeDtypeStruct((1, tokens, HEADS, width), jnp.bfloat16, sharding=at)
    program: Any = jax.grad(loss, (0, 1, 2)) if gradient else layer
    memory: Any = jax.jit(program).lower(x, x, x).compile().memory_analysis()
    return float(memory.temp_size_in_bytes) / 1e6


def main(argv: Sequence[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention", description=__doc__)
    parser.add_argument("--target", choices=BACKENDS, default="tpu")
    kernels = get_type_hints(Execution)["attention"].__args__
    parser.add_argument("--kernels", nargs="+", choices=kernels, default=["xla", "flash"])
    options = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # nothing runs: an accelerator is left alone
    device = device_of(options.target)
    say("\n".join(table(("kernel", "tokens", "width of a head", "MB", "MB with its gradient"))))
    for kernel in options.kernels:
        for tokens, width in LAYERS.items():
            sizes = [megabytes(kernel, tokens, width, device, x) for x in (False, True)]
            say(row([kernel, tokens, width, *(f"{x:.1f}" for x in sizes)]))


if __name__ == "__main__":
    run(main)
