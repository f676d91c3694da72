from typing import NamedTuple

import jax
import numpy as np
import pytest

from benchmarks.random_weights import add_lora, draw_lora, lora_state
from ie_jax.models.architecture import unet_config
from ie_jax.models.layers import Conv, Padding
from ie_jax.models.lora import lora_shapes, merge
from ie_jax.models.shapes import unet_shapes
from ie_jax.weights.convert import convert
from ie_jax.weights.names import LORA, UNET
from tests.parity.oracle import (
    SHALLOW,
    arrays,
    diffusers,
    normal,
    randomised,
    relative,
    shallow,
    upstream_shallow,
)

RANK = 3


class Run(NamedTuple):
    """The same call without LoRA, and with it in three ways."""

    base: jax.Array
    expected: np.ndarray
    low_rank: jax.Array
    merged: jax.Array


@pytest.fixture(scope="module")
def run() -> Run:
    """PEFT's layers on diffusers' UNet; every kind of target module is there."""
    upstream = randomised(diffusers.UNet2DConditionModel.from_config(SHALLOW))
    shapes = unet_shapes(unet_config(SHALLOW))
    base = convert(arrays(upstream.state_dict()), UNET, shapes, "upstream")
    model = add_lora(upstream, RANK)
    draw_lora(model, RANK)
    lora = convert(arrays(lora_state(model)), LORA, lora_shapes(shapes, RANK), "LoRA")
    return Run(
        base=shallow({"params": base}),
        expected=upstream_shallow(model),
        low_rank=shallow({"params": base, "lora": lora}),
        merged=shallow({"params": jax.jit(merge)(base, lora)}),
    )


@pytest.mark.long("the first one compiles the networks, with optimisation")
def test_the_lora_changes_the_output(run: Run) -> None:
    assert relative(run.base, run.expected) > 0.03


def test_low_rank_path(run: Run) -> None:
    assert relative(run.low_rank, run.expected) <= 1e-5


def test_merged(run: Run) -> None:
    assert relative(run.merged, run.expected) <= 1e-5


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [(3, 1, 1), (3, 2, 1), (3, 2, ((0, 1), (0, 1))), (1, 1, 0)],
    ids=["plain", "downsampler", "asymmetric", "pointwise"],
)
def test_a_convolution_merged_is_its_low_rank_path(
    kernel: int, stride: int, padding: int | Padding
) -> None:
    layer = Conv(6, kernel=kernel, stride=stride, padding=padding)
    base = {"kernel": normal(1, kernel, kernel, 4, 6), "bias": normal(2, 6)}
    lora = {"down": normal(3, kernel, kernel, 4, RANK), "up": normal(4, 1, 1, RANK, 6)}
    x = normal(5, 2, 8, 10, 4)
    low_rank = layer.apply({"params": base, "lora": lora}, x)
    assert relative(layer.apply({"params": merge(base, lora)}, x), low_rank) <= 1e-6
    assert relative(layer.apply({"params": base}, x), low_rank) > 0.1
