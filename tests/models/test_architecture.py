"""Upstream configs are read strictly."""

from typing import Any

import pytest

from benchmarks.sizes import SIZES
from ie_jax.errors import UserError
from ie_jax.models.architecture import text_config, unet_config, vae_config
from ie_jax.weights.untrained import RANDOM_CONFIGS

SD15, SDXL = (SIZES[name].unet for name in ("sd15", "sdxl"))
"""The published files of `unet/config.json`."""
SDXL_ADDED = {name: SDXL[name] for name in SDXL if name.startswith(("addition_", "projection_"))}


def test_sdxl() -> None:
    config = unet_config(SDXL)
    assert (config.heads, config.transformer_layers) == ((5, 10, 20), (1, 2, 10))
    assert (config.size_features, config.pooled_features) == (256, 1280)


def test_a_second_text_encoder_is_known_by_its_class() -> None:
    config = RANDOM_CONFIGS["text_encoder"] | {"projection_dim": 20}
    assert text_config(config).projection_dim is None
    second = config | {"architectures": ["CLIPTextModelWithProjection"]}
    assert text_config(second).projection_dim == 20


def test_sd15() -> None:
    config = unet_config(SD15)
    assert config.heads == (8, 8, 8, 8)  # a number of heads, despite the key's name
    assert config.down_attention == (True, True, True, False)
    assert config.time_cond_proj_dim is None
    assert config.time_embedding_dim == 1280


def test_heads_by_level() -> None:
    config = unet_config(SD15 | {"attention_head_dim": [5, 10, 20, 20]})
    assert config.heads == (5, 10, 20, 20)
    assert unet_config(SD15 | {"num_attention_heads": 4}).heads == (4,) * 4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"act_fn": "gelu"}, "act_fn"),
        ({"use_linear_projection": 1}, "use_linear_projection"),
        ({"transformer_layers_per_block": [1, 2]}, "transformer_layers_per_block"),
        ({"transformer_layers_per_block": [[1, 2], 1, 1, 1]}, "transformer_layers_per_block"),
        ({"addition_embed_type": "text_image"}, "addition_embed_type"),
        ({"addition_embed_type": "text_time"}, "projection_class_embeddings_input_dim"),
        ({"addition_time_embed_dim": 256}, "addition_time_embed_dim"),
        (
            SDXL_ADDED | {"projection_class_embeddings_input_dim": 1536},
            "projection_class_embeddings_input_dim",
        ),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"brand_new_key": 1}, "brand_new_key"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, "AttnDownBlock2D"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "differ in their length"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "mirror"),
        ({"block_out_channels": [320, "640"]}, "block_out_channels"),
        ({"attention_head_dim": 7}, "heads"),
        ({"attention_head_dim": None}, "heads"),
        ({"num_attention_heads": 4.0}, "heads"),
        ({"down_block_types": [["DownBlock2D"]] * 4}, "down_block_types"),
        ({"up_block_types": [{}] * 4}, "up_block_types"),
        ({"norm_num_groups": 7}, "norm_num_groups"),
        ({"layers_per_block": 0}, "layers_per_block"),
        ({"cross_attention_dim": None}, "cross_attention_dim"),
        ({"norm_eps": "small"}, "norm_eps"),
        ({"time_cond_proj_dim": "512"}, "time_cond_proj_dim"),
    ],
)
def test_unsupported_unets_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        unet_config(SD15 | change)


def test_all_problems_at_once() -> None:
    with pytest.raises(UserError) as error:
        unet_config(SD15 | {"act_fn": "relu", "dropout": 0.1, "new": None})
    assert all(name in str(error.value) for name in ("act_fn", "dropout", "new"))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"down_block_types": ["DownEncoderBlock2D"]}, "down_block_types"),
        ({"scaling_factor": "big"}, "scaling_factor"),
    ],
)
def test_unsupported_autoencoders_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        vae_config(RANDOM_CONFIGS["vae"] | change)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"rope_theta": 1.0}, "rope_theta"),
    ],
)
def test_unsupported_text_encoders_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        text_config(RANDOM_CONFIGS["text_encoder"] | change)


def test_published_autoencoder_has_no_scaling_factor() -> None:
    assert vae_config(RANDOM_CONFIGS["vae"]).scaling_factor == 0.18215
