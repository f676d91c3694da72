"""The networks as functions of their weights: what a scan over their calls keeps."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from ie_jax.diffusion.schedule import make_schedule
from ie_jax.diffusion.trajectory import there_and_back, walk_all
from ie_jax.models.execution import Execution, Remat
from ie_jax.models.lora import lora_shapes
from ie_jax.models.networks import Networks, any_denoiser
from ie_jax.models.shapes import unet_shapes
from tests.tiny import RANDOM_MODEL

SIDE, STEPS = 16, 8


def kept_by_a_step(lora: Any, remat: Remat = "none") -> float:
    """Bytes that the cycle's scan keeps of each call for its backward pass, without compiling."""
    execution = Execution(attention="explicit", convolution="xla", remat=remat)
    networks = Networks(RANDOM_MODEL, execution=execution, lora=lora)
    base = unet_shapes(RANDOM_MODEL.unet)
    factors = lora_shapes(base, 4)
    schedule = make_schedule()

    def backward(forward: Any, base: Any, other: Any, z: Any, context: Any) -> Any:
        def returned(forward: Any) -> Any:
            eps = any_denoiser(networks, base, (forward, other, None), context)
            way = there_and_back(z, schedule, 0, 1, jnp.zeros((1, schedule.steps)))
            return walk_all(eps, schedule.abar, {"cycle": way})["cycle"][-1]

        return jax.vjp(returned, forward)[1]

    channels, width = RANDOM_MODEL.unet.in_channels, RANDOM_MODEL.unet.cross_attention_dim
    inputs = (
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, SIDE, SIDE, channels), (1, 77, width))
    )
    arrays = jax.tree.leaves(jax.eval_shape(backward, factors, base, factors, *inputs))
    each = (math.prod(x.shape) * x.dtype.itemsize for x in arrays if x.ndim and x.shape[0] == STEPS)
    return sum(each) / STEPS


@pytest.mark.parametrize("lora", ["low_rank", "merge"])
def test_a_step_keeps_what_its_setting_says(lora: Any) -> None:
    """block: what ResNets and transformers put out, a small part of what is inside them; call: the
    latent. Never a LoRA or merged weights."""
    latent = 4 * SIDE * SIDE * RANDOM_MODEL.unet.in_channels
    everything = kept_by_a_step(lora)
    blocks = kept_by_a_step(lora, remat="block")
    calls = kept_by_a_step(lora, remat="call")
    assert calls < 4 * latent
    assert calls < blocks < everything / 10
