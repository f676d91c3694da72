"""How a network is run: number types, attention kernel, rematerialisation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from ie_jax.errors import UserError

DType = Literal["float32", "bfloat16", "float16"]
Convolution = Literal["auto", "xla", "cpu"]
Remat = Literal["none", "block", "call", "both"]


@dataclass(frozen=True)
class Precision:
    """The one precision policy.

    Norms, softmax, schedule and losses are float32 whatever stands here.
    """

    param: DType = "float32"
    """Weights in memory."""
    compute: DType = "float32"
    """Inputs of matrix products and convolutions, and the activations between them."""
    output: DType = "float32"
    """What a network returns."""


def exact(dtype: jnp.dtype) -> lax.Precision:
    """The precision of products: float32 means float32 (left to themselves a TPU would multiply in
    bfloat16, a GPU in TF32)."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


@dataclass(frozen=True)
class Execution:
    """Settings that change speed and memory but not the result."""

    attention: Literal["auto", "cudnn", "xla", "flash", "explicit", "by_head"] = "auto"
    """cudnn, xla: `jax.nn.dot_product_attention` with that implementation (cudnn falls back to
    xla where the head size is too large for it). explicit: matrix product, softmax, matrix
    product. by_head: the same for one head after the other. flash: JAX's kernel for TPUs; through
    it an edit with guiders has no gradient, and mesh.fsdp must be 1. auto: by_head on CPU, cudnn on
    GPU, flash on TPU (xla with mesh.fsdp), explicit there where compute is float32."""
    convolution: Convolution = "auto"
    """xla: as XLA has it. cpu: in the forms that are the fastest on a CPU. auto: cpu on CPU, xla
    elsewhere."""
    query_chunk: int = 1024
    """Explicit attention and attention energies take this many queries at a time, so that their
    memory grows with the tokens, not with their square. 0: all at once. Of large maps, by_head
    takes at most 512."""
    remat: Remat = "none"
    """What backward passes compute again to save memory. block: the inside of each ResNet and
    transformer, also of the autoencoder. call: each network call from its inputs. both."""
    unroll: int = 1
    """Steps of a scan written out as one: more make a program longer to compile."""
    optimise: bool = True
    """False: on a CPU, programs are compiled sooner and run slower, for short runs."""
    sparing: bool = False
    """True: on a CPU, programs are compiled for little memory, which takes longer. In bfloat16
    JAX 0.10's otherwise hold all weights in float32 too, as which a CPU multiplies them."""

    @property
    def remat_block(self) -> bool:
        """The inside of blocks is computed again."""
        return self.remat in ("block", "both")

    @property
    def remat_call(self) -> bool:
        """Network calls are computed again."""
        return self.remat in ("call", "both")

    @property
    def compiler_options(self) -> dict[str, bool | str]:
        """XLA's options for the backend that JAX runs on."""
        if jax.default_backend() != "cpu":
            return {}
        return ({} if self.optimise else QUICK) | (SPARING if self.sparing else {})

    def resolve(
        self, precision: Precision, backend: str | None = None, cut: bool = False
    ) -> "Execution":
        """Replace each auto by the choice for `backend` (default: the one JAX runs on).

        Args:
            cut: the compiler spreads weights over devices, which it cannot do around flash.

        Raises:
            UserError: flash is asked for then.
        """
        backend = backend or jax.default_backend()
        attention, convolution = self.attention, self.convolution
        if attention == "flash" and cut:
            raise UserError("execution.attention: flash needs mesh.fsdp 1: take xla")
        if attention == "auto":
            fused = precision.compute != "float32" and backend in FUSED
            attention = "by_head" if backend == "cpu" else FUSED[backend] if fused else "explicit"
            attention = "xla" if attention == "flash" and cut else attention
        if convolution == "auto":
            convolution = "cpu" if backend == "cpu" else "xla"
        return replace(self, attention=attention, convolution=convolution)


WEIGHTS, BLOCK = "weights of a call", "output of a block"
"""Names by which rematerialisation knows what a call derives from base and LoRAs, and what each
ResNet and transformer of the UNet puts out."""


def saved_in_a_call(execution: Execution) -> Callable[..., Any]:
    """What a call keeps for its backward pass, as a policy of `jax.checkpoint`: its weights never,
    or a scan would keep some for each of its steps.

    A policy holds inside the blocks too, whatever they say, so it must name what stands between
    them.
    """
    policies = jax.checkpoint_policies
    if execution.remat_call:
        return policies.nothing_saveable
    if execution.remat_block:
        return policies.save_only_these_names(BLOCK)
    return policies.save_anything_except_these_names(WEIGHTS)


SPARING: dict[str, bool | str] = {
    # Weights in float32 would be made once, before the steps, and kept; and within a step all of
    # them at its start.
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
}
QUICK: dict[str, bool | str] = {
    "xla_backend_optimization_level": "0",
    "xla_llvm_disable_expensive_passes": True,
}
if jax.__version_info__ < (0, 11):
    # Later versions refuse these. Else each fused operation has a run of a compiler of its own.
    QUICK |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": "1"}
FUSED: dict[str, Literal["cudnn", "flash"]] = {"gpu": "cudnn", "tpu": "flash"}


def dtype(name: DType) -> jnp.dtype:
    """The JAX dtype of a policy entry."""
    return jnp.dtype(name)
