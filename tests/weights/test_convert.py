"""Strict conversion: every tensor used, every leaf filled, and all mistakes told at once."""

from typing import Any

import jax
import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.weights.convert import SHOWN, convert, find, flatten, unflatten
from ie_jax.weights.names import LORA, TEXT_ENCODER, UNET, VAE, rule, transposed

TABLE = (
    rule(r"(\w+(?:\.\d+)?)\.weight", "{}/kernel", transposed),
    rule(r"(\w+(?:\.\d+)?)\.bias", "{}/bias"),
    rule(r"ids", None),
)


def shape(*sides: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sides, np.float32)


SHAPES = {
    "layers_0": {"kernel": shape(2, 3), "bias": shape(3)},
    "out": {"kernel": shape(3, 1)},
}


def tensors() -> dict[str, np.ndarray]:
    return {
        "layers.0.weight": np.arange(6.0).reshape(3, 2),
        "layers.0.bias": np.arange(3, dtype=np.float16),
        "out.weight": np.ones((1, 3), np.float32),
        "ids": np.arange(77),
    }


def refusal(tensors: dict[str, Any]) -> list[str]:
    """The problems with which tensors are refused."""
    with pytest.raises(UserError) as caught:
        convert(tensors, TABLE, SHAPES, "file.safetensors")
    start, _, problems = str(caught.value).partition(" problems): ")
    listed = problems.split("; ")
    assert start == f"file.safetensors: does not fit its network ({len(listed)}"
    return listed


def test_tensors_take_their_places_as_float32() -> None:
    tree = convert(tensors(), TABLE, SHAPES, "file")
    assert flatten(tree).keys() == flatten(SHAPES).keys()
    assert {x.dtype for x in jax.tree.leaves(tree)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(tree["layers_0"]["kernel"], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(tree["layers_0"]["bias"], [0, 1, 2])
    assert all(x.flags.c_contiguous for x in jax.tree.leaves(tree))


def test_each_mistake_is_told_with_its_name_and_shapes() -> None:
    missing = tensors()
    del missing["layers.0.bias"]
    assert refusal(missing) == ["layers_0/bias (3,) is missing"]
    extra = tensors() | {"more.weight": np.ones((5, 4))}
    assert refusal(extra) == ["more.weight (5, 4) has no place in this network"]
    unknown = tensors() | {"layers.0.gain": np.ones(7)}
    assert refusal(unknown) == ["layers.0.gain (7,) is not a tensor of this network"]
    misshapen = tensors() | {"out.weight": np.ones((2, 3))}
    assert refusal(misshapen) == ["out.weight has shape (2, 3), which gives (3, 2), not (3, 1)"]
    for bad in (np.nan, np.inf):
        broken = tensors() | {"out.weight": np.array([[0, bad, 0]])}
        assert refusal(broken) == ["out.weight holds NaN or infinite values"]


def test_all_mistakes_are_told_at_once() -> None:
    wrong = tensors() | {
        "out.weight": np.ones((2, 3)),
        "layers.0.weight": np.full((3, 2), np.nan),
        "more.weight": np.ones(1),
    }
    del wrong["layers.0.bias"]
    problems = refusal(wrong)
    assert len(problems) == 4
    for name in ("out.weight", "layers.0.weight", "more.weight", "layers_0/bias"):
        assert sum(problem.startswith(name) for problem in problems) == 1


def test_a_long_list_is_cut_and_counted() -> None:
    extra = tensors() | {f"more.{i}.weight": np.ones(1) for i in range(100)}
    with pytest.raises(UserError) as caught:
        convert(extra, TABLE, SHAPES, "file")
    message = str(caught.value)
    assert "(100 problems)" in message and message.endswith(f"and {100 - SHOWN} more")
    assert message.count("has no place") == SHOWN


def test_a_tensor_of_two_rules_is_refused() -> None:
    table = (*TABLE, rule(r"out\.(\w+)", "out/{}"))
    with pytest.raises(LookupError, match="2 rules"):
        find(table, "out.weight")
    with pytest.raises(UserError, match=r"out.weight \(1, 3\) is not a tensor"):
        convert(tensors(), table, SHAPES, "file")


def test_two_tensors_for_one_place_are_refused() -> None:
    table = (*TABLE, rule(r"(\w+)\.old", "{}/kernel", transposed))
    twice = tensors() | {"out.old": np.ones((1, 3))}
    with pytest.raises(UserError, match=r"out\.old fills out/kernel a second time"):
        convert(twice, table, SHAPES, "file")


@pytest.mark.parametrize("sides", [(), (3,), (1, 3, 1), (1, 3, 1, 1), (0,)])
@pytest.mark.parametrize(
    ("table", "name"),
    [
        (UNET, "conv_in.weight"),
        (UNET, "time_embedding.linear_1.weight"),
        (VAE, "encoder.mid_block.attentions.0.to_q.weight"),
        (VAE, "encoder.mid_block.attentions.0.query.weight"),
        (LORA, "unet.base_model.model.conv_in.lora_A.weight"),
    ],
)
def test_tensors_of_any_rank_are_refused_not_crashed_on(
    table: Any, name: str, sides: tuple[int, ...]
) -> None:
    _, path = find(table, name)
    assert path is not None
    shapes = unflatten({path: shape(3, 3, 4, 16)})
    with pytest.raises(UserError, match="has shape"):
        convert({name: np.ones(sides)}, table, shapes, "file")


def test_flattening_and_back() -> None:
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert flatten(tree) == {"a/b/c": 1, "a/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


@pytest.mark.parametrize(
    ("table", "name", "path"),
    [
        (UNET, "time_embedding.cond_proj.weight", "time_embedding/cond_proj/kernel"),
        (UNET, "mid_block.resnets.1.norm2.weight", "mid_block/resnets_1/norm2/scale"),
        (
            UNET,
            "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj.bias",
            "up_blocks_1/attentions_2/transformer_blocks_0/ff/net_0/proj/bias",
        ),
        (
            VAE,
            "encoder.mid_block.attentions.0.proj_attn.weight",
            "encoder/mid_block/attentions_0/to_out_0/kernel",
        ),
        (
            VAE,
            "encoder.mid_block.attentions.0.to_out.0.weight",
            "encoder/mid_block/attentions_0/to_out_0/kernel",
        ),
        (TEXT_ENCODER, "text_model.final_layer_norm.bias", "final_layer_norm/bias"),
        (TEXT_ENCODER, "final_layer_norm.bias", "final_layer_norm/bias"),
        (TEXT_ENCODER, "text_model.embeddings.position_ids", None),
        (
            LORA,
            "unet.base_model.model.mid_block.attentions.0.proj_in.lora_B.weight",
            "mid_block/attentions_0/proj_in/up",
        ),
    ],
)
def test_upstream_names(table: Any, name: str, path: str | None) -> None:
    assert find(table, name)[1] == path
