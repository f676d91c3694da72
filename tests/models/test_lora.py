"""LoRA as trees: fresh ones change nothing, the two ways of applying one agree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.models.layers import Conv, Dense
from ie_jax.models.lora import delta, lora_scale, lora_shapes, merge, of_one_rank, round_to_fp16
from ie_jax.models.shapes import draw, param_shapes, unet_shapes
from ie_jax.weights.convert import flatten
from tests.tiny import RANDOM_MODEL

UNET = RANDOM_MODEL.unet
LAYERS = [
    (Dense(12), (3, 7, 8), 8),
    (Conv(12, kernel=1, padding=0), (2, 6, 6, 8), 8),
    (Conv(12), (2, 6, 6, 8), 8),
    (Conv(12, stride=2), (2, 6, 8, 8), 8),
    (Conv(12, stride=2, padding=((0, 1), (0, 1))), (2, 6, 8, 8), 8),
]


def random(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def layer_lora(layer: Any, fan_in: int, rank: int) -> dict[str, jax.Array]:
    if isinstance(layer, Dense):
        return {"down": random(1, fan_in, rank), "up": random(2, rank, layer.features)}
    k = layer.kernel
    return {"down": random(1, k, k, fan_in, rank), "up": random(2, 1, 1, rank, layer.features)}


@pytest.mark.parametrize(("layer", "shape", "fan_in"), LAYERS)
@pytest.mark.parametrize("rank", [1, 4])
def test_low_rank_path_equals_merged_weights(
    layer: Any, shape: tuple[int, ...], fan_in: int, rank: int
) -> None:
    x = random(0, *shape)
    base = draw(param_shapes(layer, jax.ShapeDtypeStruct(shape, jnp.float32)), 3)
    lora = layer_lora(layer, fan_in, rank)
    apply: Any = jax.jit(layer.apply)
    low_rank = apply({"params": base, "lora": lora}, x)
    merged = apply({"params": merge(base, lora)}, x)
    assert not np.allclose(merged, apply({"params": base}, x), atol=1e-2)
    np.testing.assert_allclose(low_rank, merged, rtol=1e-5, atol=2e-5)


def test_fresh_lora_equals_the_base() -> None:
    base = unet_shapes(UNET)
    weights = draw(base, 0)
    merged = merge(weights, draw(lora_shapes(base, 4), 1))
    assert all(map(np.array_equal, jax.tree.leaves(weights), jax.tree.leaves(merged)))


def test_targets_are_those_of_the_specification() -> None:
    shapes = flatten(lora_shapes(unet_shapes(UNET), 4))
    modules = {path.rpartition("/")[0] for path in shapes}
    endings = {module.rpartition("/")[2] for module in modules}
    assert endings == {
        *("to_q", "to_k", "to_v", "to_out_0", "proj_in", "proj_out", "net_2", "proj"),
        *("conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"),
    }
    assert not modules & {"conv_in", "conv_out", "time_embedding/linear_1"}
    assert "down_blocks_0/downsamplers_0/conv" in modules
    assert shapes["down_blocks_0/resnets_0/conv1/down"].shape == (3, 3, 32, 4)
    assert shapes["down_blocks_0/resnets_0/conv1/up"].shape == (1, 1, 4, 32)


def test_merging_leaves_other_weights_alone() -> None:
    base = draw(unet_shapes(UNET), 0)
    lora = jax.tree.map(np.ones_like, draw(lora_shapes(unet_shapes(UNET), 4), 1))
    changed = {
        path
        for path, leaf in flatten(merge(base, lora)).items()
        if not np.array_equal(leaf, flatten(base)[path])
    }
    assert changed == {f"{p.rpartition('/')[0]}/kernel" for p in flatten(lora)}


def test_scale_is_alpha_over_rank() -> None:
    assert lora_scale(64) == 0.125
    assert lora_scale(4) == 2.0
    down, up = random(0, 5, 4), random(1, 4, 3)
    np.testing.assert_allclose(delta(down, up), 2.0 * (down @ up), rtol=1e-5, atol=1e-5)


def test_loras_of_different_ranks_are_brought_to_one() -> None:
    loras = [
        {"a": layer_lora(Dense(12), 8, rank), "b": layer_lora(Conv(12), 8, other)}
        for rank, other in ((1, 4), (3, 2))
    ]
    widened = of_one_rank(loras)
    assert jax.tree.map(jnp.shape, widened[0]) == jax.tree.map(jnp.shape, widened[1])
    for lora, wide in zip(loras, widened, strict=True):
        for name in lora:
            change = delta(**wide[name])
            np.testing.assert_allclose(change, delta(**lora[name]), rtol=1e-5, atol=1e-5)


def test_rounding_is_that_of_float16() -> None:
    factors = {"down": jnp.float32([1.0, 1.0001, 70000.0])}
    assert round_to_fp16(factors)["down"].tolist() == [1.0, 1.0, float("inf")]


def test_merge_keeps_the_dtype_of_the_base() -> None:
    base = {"kernel": jnp.ones((5, 3), jnp.bfloat16)}
    lora = {"down": random(0, 5, 4), "up": random(1, 4, 3)}
    assert merge(base, lora)["kernel"].dtype == jnp.bfloat16
