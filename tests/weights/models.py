"""A tiny model in parts, for tests of model folders."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ie_jax.models.lora import lora_shapes
from ie_jax.models.shapes import draw
from ie_jax.weights.convert import write_network
from ie_jax.weights.folder import TABLES, architecture, shapes
from ie_jax.weights.layout import (
    CONFIGS,
    INDEX,
    PIPELINE,
    PIPELINE_SDXL,
    STEMS,
    TWO_TEXTS,
    Part,
)
from ie_jax.weights.lora_files import write_lora
from ie_jax.weights.published import TEACHER_SDXL
from ie_jax.weights.untrained import RANDOM_CONFIGS, write_byte_tokenizer

SDXL_REVERSE = "reverse_249_499_699_999"
METADATA = {"trained_on": "made-up pictures", "steps": "3"}


def write_plan(folder: Path) -> Path:
    """A model folder without weights: configs and tokenizer."""
    for name, file in CONFIGS.items():
        path = folder / PIPELINE / file
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(RANDOM_CONFIGS[name]), encoding="utf-8")
    write_byte_tokenizer(folder / PIPELINE / "tokenizer")
    return folder


SDXL: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "cross_attention_dim": 56,
        "norm_num_groups": 4,
        "sample_size": 16,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    },
    "text_encoder_2": {
        "architectures": ["CLIPTextModelWithProjection"],
        "vocab_size": 514,
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
        "projection_dim": 12,
    },
}
"""What SDXL's networks have otherwise."""


def write_sdxl(folder: Path, spacing: str = "trailing") -> dict[str, Any]:
    """A base model of SDXL's kind, as diffusers writes its float16 variant; returns its parts.

    Args:
        spacing: of the scheduler's steps; SDXL-Turbo's are trailing.
    """
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    scheduler = RANDOM_CONFIGS["scheduler"] | {"timestep_spacing": spacing}
    configs = RANDOM_CONFIGS | SDXL | {"scheduler": scheduler}
    arch = architecture(configs, "")
    rng = np.random.default_rng(0)
    parts: tuple[Part, ...] = ("unet", "vae", "text_encoder", "text_encoder_2")
    trees: dict[str, Any] = {}
    for name, file in TWO_TEXTS.configs.items():
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(json.dumps(configs[name]), encoding="utf-8")
    for part in parts:
        trees[part] = jax.tree.map(
            lambda x: (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float16),
            draw(shapes(part, arch), 0),
        )
        path = folder / part / f"{STEMS[part][0]}.fp16.safetensors"
        write_network(path, trees[part], TABLES[part], "float16")
    for name in TWO_TEXTS.tokenizers:
        write_byte_tokenizer(folder / name)
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return trees


def write_sdxl_pair(folder: Path) -> dict[Part, Any]:
    """A pair of SDXL's kind, in the published names; returns its UNet and LoRAs."""
    write_sdxl(folder / PIPELINE_SDXL)
    (folder / PIPELINE_SDXL / "unet" / f"{STEMS['unet'][0]}.fp16.safetensors").unlink()
    arch = architecture(RANDOM_CONFIGS | SDXL, "")
    unet = shapes("unet", replace(arch, unet=replace(arch.unet, time_cond_proj_dim=8)))
    rng = np.random.default_rng(1)

    def moved(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32), draw(tree, 1)
        )

    parts: dict[Part, Any] = {"unet": moved(unet)}
    write_network(folder / f"{TEACHER_SDXL}.safetensors", parts["unet"], TABLES["unet"])
    names: dict[Part, str] = {"forward": "forward_19_249_499_699", "backward": SDXL_REVERSE}
    for part, name in names.items():
        parts[part] = moved(lora_shapes(unet, 4))
        write_lora(folder / f"iCD-SDXL-{name}.safetensors", parts[part])
    return parts


@cache
def small_parts() -> dict[Part, Any]:
    """All parts of the random model, normal random values everywhere."""
    arch = architecture(RANDOM_CONFIGS, "")
    rng = np.random.default_rng(0)

    def filled(tree: Any) -> Any:
        return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), tree)

    networks: tuple[Part, ...] = ("vae", "text_encoder", "denoiser", "unet")
    loras: tuple[Part, ...] = ("forward", "backward", "fine_tuned")
    base = shapes("unet", arch)
    return {name: filled(shapes(name, arch)) for name in networks} | {
        name: filled(lora_shapes(base, 4)) for name in loras
    }
