"""Floating-point operations of a step of cycle fine-tuning, for each image, by hand.

What one call of each network costs comes from XLA's count for its plain form (no rematerialisation,
whole attention maps); how often each is called, and what is computed again, from the method.
A multiplication with an addition is two operations.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ie_jax.models.execution import Execution, dtype
from ie_jax.models.lora import lora_shapes, merge
from ie_jax.models.lpips import features
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.models.unet import UNet
from ie_jax.models.vae import VAE
from ie_jax.training.losses import corners
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import CycleConfig

LoRA = Literal["merge", "low_rank"]
Remat = Literal["none", "block", "call"]
Gradient = Literal["none", "inputs", "lora"]
"""What a call's backward pass leads to: nothing, its inputs, or the LoRA (through the inputs)."""
PLAIN = Execution(attention="explicit", query_chunk=0)


class Cost(NamedTuple):
    """One call for one image."""

    forward: float
    inputs: float = 0.0
    """Of the backward pass to the inputs."""
    lora: float = 0.0
    """Of the backward pass to the LoRA too: to its factors (low_rank) or to whole kernels."""
    inputs_again: float = 0.0
    """What the backward pass to the inputs computes again of the inside of blocks (remat block)."""
    lora_again: float = 0.0
    """Likewise for the backward pass to the LoRA."""


class Calls(NamedTuple):
    """Calls that are alike."""

    part: str
    network: str
    times: int
    gradient: Gradient = "none"


@dataclass(frozen=True)
class Plan:
    """An order of work."""

    cycle: CycleConfig
    lora: LoRA = "low_rank"
    remat: Remat = "none"
    batch: int = 16
    """Images that share a merge."""
    cached: bool = False
    """Latents and text embeddings are read."""
    target_features: bool = False
    """LPIPS' features of the target are computed once, not again in the backward pass. Not yet
    what the program does."""


class Work(NamedTuple):
    """Operations for each image."""

    calls: Calls
    forward: float
    recomputed: float
    backward: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.forward + self.recomputed + self.backward


def plan_of(config: TrainConfig) -> Plan:
    """What a config's program does."""
    remat: Remat = "none"
    if config.execution.remat_call:
        remat = "call"
    elif config.execution.remat_block:
        remat = "block"
    return Plan(config.cycle, config.lora, remat, config.batch_size // config.accumulate)


# --- One call -------------------------------------------------------------------------------------


def operations(function: Any, *arguments: Any) -> float:
    """XLA's count for a function of arrays or shapes; nothing is compiled."""
    analysis = jax.jit(function).lower(*arguments).cost_analysis()
    assert analysis is not None
    return float(analysis["flops"])


def cost(make: Callable[[Execution], Any], lora: Any, inputs: Any, *rest: Any) -> Cost:
    """Of make(execution)(lora, inputs, *rest); `lora` may be None."""

    def with_backward(execution: Execution, argnums: tuple[int, ...]) -> float:
        def total(*arguments: Any) -> jax.Array:
            return jnp.sum(make(execution)(*arguments).astype(jnp.float32))

        return operations(jax.value_and_grad(total, argnums), lora, inputs, *rest)

    forward = operations(make(PLAIN), lora, inputs, *rest)
    blocks = replace(PLAIN, remat_block=True)
    argnums = [(1,)] if lora is None else [(1,), (0, 1)]
    plain = [with_backward(PLAIN, x) for x in argnums]
    again = [with_backward(blocks, x) - y for x, y in zip(argnums, plain, strict=True)]
    to_inputs, to_lora = plain[0], plain[-1]
    return Cost(forward, to_inputs - forward, to_lora - forward, again[0], again[-1])


def kernels_of(base: Mapping[str, Any], lora: Mapping[str, Any]) -> dict[str, Any]:
    """The kernels that a LoRA changes, as a tree of its modules."""
    return {
        name: base[name]["kernel"] if "down" in node else kernels_of(base[name], node)
        for name, node in lora.items()
    }


def with_kernels(base: Mapping[str, Any], kernels: Mapping[str, Any]) -> dict[str, Any]:
    """The base with other kernels."""
    changed = {
        name: with_kernels(base[name], new)
        if isinstance(new, Mapping)
        else {**base[name], "kernel": new}
        for name, new in kernels.items()
    }
    return {**base, **changed}


def network_costs(arch: Architecture, size: int, rank: int, path: LoRA) -> dict[str, Cost]:
    """Of the text encoder, the autoencoder and the UNet with a LoRA (the teacher's is 0).

    merge is what a LoRA's addition to the base costs, and its backward pass: once per call.
    """
    side, tokens = size // arch.vae.factor, arch.text.max_position_embeddings

    def shape(*sizes: int, of: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, of)

    z = shape(1, side, side, arch.vae.latent_channels)
    base, vae_params = unet_shapes(arch.unet), vae_shapes(arch.vae)
    lora = lora_shapes(base, rank)
    rest = (
        shape(1, of=jnp.int32),
        shape(1),
        shape(1, tokens, arch.unet.cross_attention_dim),
        base,
    )

    def call(execution: Execution, variables: Any, z: Any, t: Any, w: Any, context: Any) -> Any:
        return UNet(arch.unet, execution=execution).apply(variables, z, t, w, context)[0]

    def beside(execution: Execution) -> Any:
        return lambda lora, *inputs: call(
            execution, {"params": inputs[-1], "lora": lora}, *inputs[:-1]
        )

    def merged(execution: Execution) -> Any:
        return lambda kernels, *inputs: call(
            execution, {"params": with_kernels(inputs[-1], kernels)}, *inputs[:-1]
        )

    def decode(execution: Execution) -> Any:
        vae = VAE(arch.vae, execution=execution)
        return lambda _, z, params: vae.apply({"params": params}, z, method="decode")

    def encode(params: Any, x: Any) -> Any:
        return VAE(arch.vae, execution=PLAIN).apply({"params": params}, x, method="encode")

    def text(params: Any, ids: Any) -> Any:
        return TextEncoder(arch.text).apply({"params": params}, ids)

    def sum_of_merged(lora: Any, base: Any) -> jax.Array:
        leaves = jax.tree.leaves(kernels_of(merge(base, lora), lora))
        return sum((jnp.sum(x) for x in leaves), jnp.float32(0))

    merging = operations(lambda lora, base: kernels_of(merge(base, lora), lora), lora, base)
    ids = shape(1, tokens, of=jnp.int32)
    return {
        "text": Cost(operations(text, text_encoder_shapes(arch.text), ids)),
        "encode": Cost(operations(encode, vae_params, shape(1, size, size, 3))),
        "decode": cost(decode, None, z, vae_params),
        "unet": cost(beside, lora, z, *rest)
        if path == "low_rank"
        else cost(merged, kernels_of(base, lora), z, *rest),
        "merge": Cost(merging, lora=operations(jax.grad(sum_of_merged), lora, base) - merging),
    }


def lpips_cost(cycle: CycleConfig, perceptual: Any, size: int) -> Cost:
    """LPIPS' network on all patches of one image."""
    patches = len(corners(size, cycle.patch_size, cycle.patch_stride)) ** 2
    x = jax.ShapeDtypeStruct((patches, cycle.patch_size, cycle.patch_size, 3), jnp.float32)

    def total(_: None, x: Any, params: Any) -> jax.Array:
        maps = features(params, x, dtype("float32"))
        return sum((jnp.sum(y) for y in maps), jnp.float32(0))

    return cost(lambda _: total, None, x, perceptual)


# --- All calls ------------------------------------------------------------------------------------


def calls(plan: Plan) -> Iterator[Calls]:
    """The network calls for one image of one step (method 3)."""
    cycle, steps = plan.cycle, len(plan.cycle.boundaries)
    pixels = cycle.distance == "lpips" and cycle.cycle_weight > 0
    if not plan.cached:
        yield Calls("prepare", "text", 1)
        yield Calls("prepare", "encode", 1)
    if pixels and cycle.target == "decoded":
        yield Calls("prepare", "decode", 1)
    if cycle.distillation_weight:
        yield Calls("distillation", "unet", 2)
        yield Calls("distillation", "unet", 1, "lora")
    if cycle.cycle_weight:
        yield Calls("cycle", "unet", 2 * steps, "lora")
    if pixels:
        yield Calls("cycle", "decode", 1, "inputs")
        yield Calls("cycle", "lpips", 1, "inputs")
        yield Calls("cycle", "lpips", 1)
    if cycle.preservation_weight:
        yield Calls("preservation", "unet", 1)
        yield Calls("preservation", "unet", 1, "lora")


def with_merges(plan: Plan) -> Iterator[Calls]:
    """The calls, and for each of the UNet a merge of the LoRA that it is called with."""
    for each in calls(plan):
        yield each
        if plan.lora == "merge" and each.network == "unet":
            yield each._replace(network="merge")


def again(plan: Plan, each: Calls, unit: Cost) -> float:
    """What a backward pass computes again of a call. The loss on pixels is recomputed as a whole,
    target and all, and inside it the autoencoder's blocks."""
    if each.network == "merge":  # or a scan would keep the kernels of each of its steps
        return unit.forward * (each.gradient != "none")
    on_pixels = each.part == "cycle" and each.network in ("decode", "lpips")
    blocks = {"none": 0.0, "inputs": unit.inputs_again, "lora": unit.lora_again}[each.gradient]
    if each.network == "lpips" and each.gradient == "none" and plan.target_features:
        return 0.0
    if plan.remat == "block":
        return blocks + on_pixels * unit.forward
    differentiated = each.network == "unet" and each.gradient != "none"
    return unit.forward * (plan.remat == "call" and (on_pixels or differentiated))


def work(plan: Plan, costs: Mapping[str, Cost]) -> list[Work]:
    """What all calls of a step cost for each image."""
    result = []
    for each in with_merges(plan):
        unit = costs[each.network]
        times = each.times / plan.batch if each.network == "merge" else each.times
        backward = {"none": 0.0, "inputs": unit.inputs, "lora": unit.lora}[each.gradient]
        result.append(
            Work(each, times * unit.forward, times * again(plan, each, unit), times * backward)
        )
    return result


def total(plan: Plan, costs: Mapping[str, Cost]) -> float:
    """Operations for each image of a step."""
    return sum(x.total for x in work(plan, costs))


def variants(plan: Plan) -> dict[str, Plan]:
    """The published order of work, and cheaper and dearer ones."""
    paper = CycleConfig(patch_size=plan.cycle.patch_size, patch_stride=plan.cycle.patch_stride)
    published = replace(plan, cycle=paper, lora="low_rank", remat="block")
    change = partial(replace, published)
    cycle = partial(replace, paper)
    return {
        "published: in turn, low_rank, remat block": published,
        "remat call": change(remat="call"),
        "no remat": change(remat="none"),
        "merge": change(lora="merge"),
        "merge, no remat": change(lora="merge", remat="none"),
        "sum": change(cycle=cycle(order="sum")),
        "merge, sum": change(lora="merge", cycle=cycle(order="sum")),
        "cached latents and text": change(cached=True),
        "target the image, not its decoded latent": change(cycle=cycle(target="image")),
        "LPIPS' target features once (not yet done)": change(target_features=True),
        "distance l2 on latents": change(cycle=cycle(distance="l2")),
        "no remat, cached": change(remat="none", cached=True),
    }
