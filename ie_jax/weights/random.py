"""A tiny model with random weights: every part is there and runs in seconds, nothing is trained."""

import json
from pathlib import Path
from typing import Any

from ie_jax.files import folder_appearing_whole
from ie_jax.models.lora import lora_shapes
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.download import home
from ie_jax.weights.pipeline import Pipeline, Weights, architecture

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


def byte_vocabulary() -> dict[str, int]:
    """A CLIP vocabulary without merges: each byte inside a word, each at its end, start and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in printable]
    # CLIP's tokenizer stands for unprintable bytes by the characters from 256 up.
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(hidden))]
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def write_byte_tokenizer(folder: Path) -> None:
    """An upstream `tokenizer/` folder over `byte_vocabulary`."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    config = special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    with folder_appearing_whole(folder) as new:
        (new / "vocab.json").write_text(json.dumps(byte_vocabulary()), encoding="utf-8")
        (new / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        (new / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        (new / "special_tokens_map.json").write_text(json.dumps(special), encoding="utf-8")


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
