"""Everything an edit needs from a folder of upstream files: networks, weights, tokenizer, noise
schedule."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax import struct

from ie_jax.errors import UserError
from ie_jax.models.architecture import UNetConfig, text_config, unet_config, vae_config
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.convert import convert, unflatten
from ie_jax.weights.formats import VARIANTS, read_json, read_tensors, unprefixed, weight_file
from ie_jax.weights.lora_files import read_lora
from ie_jax.weights.names import TEXT_ENCODER, UNET, VAE
from ie_jax.weights.sources import Files

Tree = Any


@struct.dataclass
class Weights:
    """All weights. The forward and the backward model are one base and a LoRA each."""

    unet: Tree
    """The guidance-distilled UNet, the base of both models."""
    forward: Tree
    """LoRA of the forward model: image to noise."""
    backward: Tree
    """LoRA of the backward model: noise to image."""
    vae: Tree
    text_encoder: Tree


@dataclass(frozen=True)
class Pipeline:
    """Networks, weights (numpy, float32) and the folder of the tokenizer."""

    architecture: Architecture
    weights: Weights
    tokenizer: Path


CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
NETWORKS = {"vae": ("diffusion_pytorch_model",), "text_encoder": ("model", "pytorch_model")}
"""How the weights of the parts are called, without their ends."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def lacks_tokenizer(folder: Path) -> list[str]:
    """What a tokenizer's folder lacks: transformers 5 writes one file, versions before it two."""
    here = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    pair = {"vocab.json", "merges.txt"}
    return [] if "tokenizer.json" in here else sorted(pair - here)


SCHEDULER_FIXED = {
    "beta_schedule": ("scaled_linear",),
    "prediction_type": ("epsilon",),
    "trained_betas": (None,),
    "rescale_betas_zero_snr": (False,),
}


def scheduler_betas(config: Mapping[str, Any], where: str) -> tuple[float, float, int]:
    """First and last beta and the number of timesteps of an upstream scheduler config.

    Keys that say how some sampler walks the schedule do not matter here.

    Raises:
        UserError: another schedule or prediction type than SD1.x's.
    """
    for key, allowed in SCHEDULER_FIXED.items():
        if config.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"{where}: {key} = {config[key]!r} is not supported (only {allowed[0]!r})"
            )
    first, last = config.get("beta_start", 0.00085), config.get("beta_end", 0.012)
    steps = config.get("num_train_timesteps", 1000)
    numbers = isinstance(first, float) and isinstance(last, float) and type(steps) is int
    if not (numbers and 0 < first <= last < 1 and steps > 0):
        raise UserError(
            f"{where}: not a noise schedule: beta_start {first!r}, beta_end {last!r}, "
            f"num_train_timesteps {steps!r}"
        )
    return first, last, steps


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The upstream configs of a diffusers folder."""
    return {name: read_json(folder / file) for name, file in CONFIGS.items()}


def architecture(configs: Mapping[str, Mapping[str, Any]], where: str) -> Architecture:
    """The architecture of upstream configs, see `read_configs`."""
    unet = unet_config(configs["unet"], f"{where}/{CONFIGS['unet']}")
    vae = vae_config(configs["vae"], f"{where}/{CONFIGS['vae']}")
    text = text_config(configs["text_encoder"], f"{where}/{CONFIGS['text_encoder']}")
    if vae.latent_channels != unet.in_channels or text.hidden_size != unet.cross_attention_dim:
        raise UserError(
            f"{where}: the parts do not fit each other: the UNet takes {unet.in_channels} latent "
            f"channels and text of width {unet.cross_attention_dim}, the autoencoder and the text "
            f"encoder give {vae.latent_channels} and {text.hidden_size}"
        )
    betas = scheduler_betas(configs["scheduler"], f"{where}/{CONFIGS['scheduler']}")
    return Architecture(unet, vae, text, betas)


def with_guidance(unet: UNetConfig, teacher: Mapping[str, Any]) -> UNetConfig:
    """The published config is SD1.5's own; the width of the guidance embedding, which distillation
    added, is known from the distilled weights alone."""
    projection = teacher.get("time_embedding.cond_proj.weight")
    if unet.time_cond_proj_dim or projection is None or projection.ndim != 2:
        return unet
    return replace(unet, time_cond_proj_dim=projection.shape[1])


def network_file(pipeline: Path, part: str) -> Path:
    """The weights of a part of `NETWORKS` in a diffusers folder.

    Raises:
        UserError: there are none; the message says what lies there.
    """
    folder, stems = pipeline / part, NETWORKS[part]
    if (path := weight_file(folder, *stems)) is not None:
        return path
    here = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
    raise UserError(
        f"{folder}/{stems[0]}.safetensors is missing (or {', '.join(VARIANTS[1:])}); there is "
        f"{', '.join(here) or 'nothing'}"
    )


def convert_files(files: Files) -> tuple[Architecture, Weights]:
    """Read and convert upstream files.

    Raises:
        UserError: a file is missing, damaged or does not fit; the message names it.
    """
    arch = architecture(read_configs(files.pipeline), str(files.pipeline))
    teacher = unprefixed(read_tensors(files.teacher))
    arch = replace(arch, unet=with_guidance(arch.unet, teacher))
    if not arch.unet.time_cond_proj_dim:
        raise UserError(
            f"{files.teacher}: not the guidance-distilled UNet: there is no matrix "
            "time_embedding.cond_proj.weight"
        )
    base_shapes = unet_shapes(arch.unet)
    unet = convert(teacher, UNET, base_shapes, str(files.teacher))
    del teacher

    vae, text = (network_file(files.pipeline, part) for part in NETWORKS)
    weights = Weights(
        unet=unet,
        forward=read_lora(files.forward, base_shapes),
        backward=read_lora(files.backward, base_shapes),
        vae=convert(read_tensors(vae), VAE, vae_shapes(arch.vae), str(vae)),
        text_encoder=convert(
            read_tensors(text), TEXT_ENCODER, text_encoder_shapes(arch.text), str(text)
        ),
    )
    return arch, weights


def unflatten_weights(flat: Mapping[str, Any]) -> Weights:
    """All weights from {"unet/conv_in/kernel": array}."""
    return Weights(**unflatten(flat))
