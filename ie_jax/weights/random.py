"""A tiny model with random weights: every part is there and runs in seconds, nothing is trained."""

from typing import Any

from ie_jax.models.lora import lora_shapes
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.download import home
from ie_jax.weights.pipeline import Pipeline, Weights, architecture
from ie_jax.weights.vocabulary import write_byte_tokenizer

RANK = 4
CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "sample_size": 16,
        "time_cond_proj_dim": 64,
    },
    "vae": {
        "block_out_channels": [16, 32, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "sample_size": 64,
    },
    "text_encoder": {
        "vocab_size": 514,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "scheduler": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}


def random_pipeline(seed: int = 0) -> Pipeline:
    """The tiny model. Latents 16x16 of 64 px images; rank 4."""
    arch = architecture(CONFIGS, "the random model")
    base = unet_shapes(arch.unet)
    weights = Weights(
        unet=draw(base, seed),
        forward=draw(lora_shapes(base, RANK), seed + 1),
        backward=draw(lora_shapes(base, RANK), seed + 2),
        vae=draw(vae_shapes(arch.vae), seed + 3),
        text_encoder=draw(text_encoder_shapes(arch.text), seed + 4),
    )
    tokenizer = home() / "random" / "tokenizer"
    if not tokenizer.is_dir():
        write_byte_tokenizer(tokenizer)
    return Pipeline(arch, weights, tokenizer)
