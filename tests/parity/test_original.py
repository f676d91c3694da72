"""Single-file checkpoints: their names become those that diffusers gives them."""

from typing import Any

import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.models.architecture import text_config, unet_config, vae_config
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.convert import convert
from ie_jax.weights.names import TEXT_ENCODER, UNET, VAE
from ie_jax.weights.original import part_of
from tests.parity.oracle import UNETS, diffusers
from tests.weights.models import SDXL

single_file = pytest.importorskip("diffusers.loaders.single_file_utils")

CONFIGS = [
    {key: x for key, x in UNETS[name].items() if key != "time_cond_proj_dim"}
    for name in ("sd15 in small", "sdxl in small")
]
VAE_CONFIG: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 2,
    "norm_num_groups": 4,
}


def original_unet(model: Any) -> dict[str, np.ndarray]:
    """diffusers' tensors under the names of the first code of latent diffusion, written down as
    that code builds its lists."""
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    places: dict[str, str] = {"conv_in": "input_blocks.0.0"}
    number = 1
    for i, block in enumerate(model.down_blocks):
        for j in range(len(block.resnets)):
            places[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            places[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            places[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, block in enumerate(model.up_blocks):
        attentions = len(getattr(block, "attentions", ()))
        for j in range(len(block.resnets)):
            places[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            places[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        slot = 2 if attentions else 1
        places[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{slot}.conv"
    places |= {
        **{f"mid_block.resnets.{j}": f"middle_block.{2 * j}" for j in range(2)},
        **{"mid_block.attentions.0": "middle_block.1", "conv_norm_out": "out.0"},
        **{"conv_out": "out.2", "time_embedding.linear_1": "time_embed.0"},
        **{f"add_embedding.linear_{1 + j}": f"label_emb.0.{2 * j}" for j in range(2)},
        "time_embedding.linear_2": "time_embed.2",
    }
    inner = {
        **{"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1"},
        **{"norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"},
    }

    def name(theirs: str) -> str:
        place = max((x for x in places if theirs.startswith(f"{x}.")), key=len)
        rest = theirs.removeprefix(f"{place}.")
        module, _, leaf = rest.rpartition(".")
        rest = f"{inner[module]}.{leaf}" if "resnets" in place and module in inner else rest
        return f"model.diffusion_model.{places[place]}.{rest}"

    return {name(theirs): x for theirs, x in state.items()}


@pytest.mark.parametrize("config", CONFIGS, ids=["sd15", "sdxl"])
def test_the_unet(config: dict[str, Any]) -> None:
    model = diffusers.UNet2DConditionModel.from_config(config).requires_grad_(False)
    checkpoint = original_unet(model)
    found = part_of(checkpoint, "unet", "file")
    theirs = single_file.convert_ldm_unet_checkpoint(dict(checkpoint), model.config)
    assert found.keys() == theirs.keys() == model.state_dict().keys()
    assert all(found[name] is theirs[name] for name in found)
    convert(found, UNET, unet_shapes(unet_config(config)), "file")


def test_the_autoencoder() -> None:
    model = diffusers.AutoencoderKL.from_config(VAE_CONFIG).requires_grad_(False)
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    parts = [
        *(("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2")),
        *(("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),),
        *((f"mid_block.attentions.0.to_{x}", f"mid.attn_1.{x}") for x in "qkv"),
        *(("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),),
        *(("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut")),
        *((f"down_blocks.{i}.resnets", f"down.{i}.block") for i in range(3)),
        *((f"down_blocks.{i}.downsamplers.0", f"down.{i}.downsample") for i in range(3)),
        *((f"up_blocks.{i}.resnets", f"up.{2 - i}.block") for i in range(3)),
        *((f"up_blocks.{i}.upsamplers.0", f"up.{2 - i}.upsample") for i in range(3)),
    ]
    checkpoint: dict[str, np.ndarray] = {}
    for name, x in state.items():
        attention = "mid_block.attentions" in name and x.ndim == 2
        for theirs, ours in parts:
            name = name.replace(theirs, ours)
        checkpoint[f"first_stage_model.{name}"] = x[..., None, None] if attention else x
    checkpoint["model.diffusion_model.out.2.bias"] = np.zeros(4, np.float32)
    found = part_of(checkpoint, "vae", "file")
    theirs = single_file.convert_ldm_vae_checkpoint(dict(checkpoint), model.config)
    assert found.keys() == theirs.keys() == state.keys()
    for name, x in found.items():
        np.testing.assert_array_equal(x.reshape(theirs[name].shape), theirs[name])
    convert(found, VAE, vae_shapes(vae_config(VAE_CONFIG)), "file")


def open_clip(state: dict[str, np.ndarray], layers: int) -> dict[str, np.ndarray]:
    """transformers' tensors as OpenCLIP names and lays them out."""
    found = {
        "positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        "token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "ln_final.weight": state["text_model.final_layer_norm.weight"],
        "ln_final.bias": state["text_model.final_layer_norm.bias"],
        "text_projection": np.ascontiguousarray(state["text_projection.weight"].T),
        "logit_scale": np.float32(1),
    }
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
    names |= {"mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
    for i in range(layers):
        theirs, ours = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for leaf in ("weight", "bias"):
            parts = [state[f"{theirs}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
            found[f"{ours}.attn.in_proj_{leaf}"] = np.concatenate(parts)
            found |= {f"{ours}.{b}.{leaf}": state[f"{theirs}.{a}.{leaf}"] for a, b in names.items()}
    return {f"conditioner.embedders.1.model.{name}": np.asarray(x) for name, x in found.items()}


def test_the_text_encoders_of_sdxl() -> None:
    torch, transformers = (pytest.importorskip(x) for x in ("torch", "transformers"))
    given = SDXL["text_encoder_2"]
    config = transformers.CLIPTextConfig(**{k: x for k, x in given.items() if k != "architectures"})
    model = transformers.CLIPTextModelWithProjection(config).requires_grad_(False)
    state = {
        name if name.startswith("text_") else f"text_model.{name}": x.numpy()
        for name, x in model.state_dict().items()
        if "position_ids" not in name
    }
    checkpoint = open_clip(state, given["num_hidden_layers"])
    # They take the projection's height for the width of the network, which they share as published.
    square = {k: x for k, x in checkpoint.items() if not k.endswith("text_projection")}
    tensors = {name: torch.tensor(x) for name, x in square.items()}
    prefix = "conditioner.embedders.1.model."
    theirs = single_file.convert_open_clip_checkpoint(model, tensors, prefix)
    whole = checkpoint | {"model.diffusion_model.out.2.bias": np.zeros(4, np.float32)}
    first = {"text_model.final_layer_norm.bias": np.ones(3, np.float32)}
    whole |= {f"conditioner.embedders.0.transformer.{name}": x for name, x in first.items()}
    found = part_of(whole, "text_encoder_2", "file")
    assert found.keys() == state.keys() == {*theirs, "text_projection.weight"}
    for name, x in theirs.items():
        np.testing.assert_array_equal(found[name], x.numpy())
    np.testing.assert_array_equal(found["text_projection.weight"], state["text_projection.weight"])
    convert(found, TEXT_ENCODER, text_encoder_shapes(text_config(given)), "file")
    assert part_of(whole, "text_encoder", "file").keys() == first.keys()


def test_what_is_not_in_it_is_told() -> None:
    names = ("model.diffusion_model.out.2.bias", "conditioner.embedders.0.x")
    sdxl = dict.fromkeys(names, np.zeros(4))
    with pytest.raises(UserError, match=r"file: a single-file .* it has conditioner\.embedders"):
        part_of(sdxl, "text_encoder", "file")
    assert part_of({"a": np.ones(1)}, "unet", "file").keys() == {"a"}
