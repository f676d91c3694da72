"""Useful floating-point operations, counted from the networks' products and convolutions as they
are traced (`ie_jax.training.flops`): what a backward pass computes again is told apart."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax

from benchmarks.models import weight_shapes
from benchmarks.steps import argument_shapes, networks_of, parts_of, stage_of
from ie_jax.devices import make_mesh
from ie_jax.models.execution import Execution
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import (
    array,
    context_shape,
    integers,
    text_encoder_shapes,
    unet_shapes,
    vae_shapes,
)
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.models.unet import UNet
from ie_jax.models.vae import VAE
from ie_jax.training.flops import flops
from ie_jax.training.stages import TrainConfig

STEPS = 4
PLAIN = Execution(attention="explicit", convolution="xla", query_chunk=0)
"""Nothing is computed twice, and no form has work of its own."""


def operations(function: Callable[..., Any], *arguments: Any) -> int:
    """Of a function of arrays or shapes; nothing is compiled."""
    return flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def edit_work(arch: Architecture, size: int) -> dict[str, float]:
    """Operations of an edit of one image.

    Plain: encode, 4 inversion and 4 generation calls, decode. Guided: each generation step has
    three calls and the backward passes of two of them, each counted as another call (method 4).
    """
    side, tokens = size // arch.vae.factor, arch.text.max_position_embeddings

    def cost(module: Any, params: Any, *inputs: Any, **options: Any) -> int:
        return operations(
            lambda params, *x: module.apply({"params": params}, *x, **options), params, *inputs
        )

    z = array(1, side, side, arch.vae.latent_channels)
    vae, vae_params = VAE(arch.vae, execution=PLAIN), vae_shapes(arch.vae)
    unet = cost(
        *(UNet(arch.unet, execution=PLAIN), unet_shapes(arch.unet)),
        *(z, integers(1), array(1), context_shape(arch.unet, tokens)),
    )
    ends = sum(
        2 * cost(TextEncoder(text), text_encoder_shapes(text), integers(1, tokens))
        for text in (arch.text, arch.text_2)
        if text
    )
    ends += cost(vae, vae_params, array(1, size, size, 3), method="encode")
    ends += cost(vae, vae_params, z, method="decode")
    return {"plain": ends + 2 * STEPS * unet, "guided": ends + 6 * STEPS * unet}


def step_work(
    config: TrainConfig, arch: Architecture, size: int, rank: int
) -> dict[str, tuple[float, float]]:
    """Operations of each part of a training step, for each image: useful ones, and those that
    backward passes compute again."""

    def parts(execution: Execution) -> dict[str, float]:
        run = replace(config, execution=execution)
        stage = stage_of(run, networks_of(run, arch), weight_shapes(arch, rank=rank).forward)
        state, frozen, batch, key = argument_shapes(stage, run, arch, size, rank)
        found, given = {}, batch
        for name, part in parts_of(stage, make_mesh(devices=jax.devices()[:1]), 1).items():
            found[name] = operations(part, state, frozen, given, key) / config.batch_size
            if name == "prepare":
                given = jax.eval_shape(part, state, frozen, batch, key)
        return found

    chosen, useful = config.execution, parts(PLAIN)
    remat = replace(PLAIN, remat=chosen.remat)
    whole = useful if remat == PLAIN else parts(remat)
    return {name: (x, whole[name] - x) for name, x in useful.items()}
