"""Everything an edit needs from a folder of upstream files: networks, weights, tokenizer, noise
schedule."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import struct

from ie_jax.errors import UserError
from ie_jax.models.architecture import UNetConfig, text_config, unet_config, vae_config
from ie_jax.models.lora import ALPHA, lora_shapes
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.convert import convert, flatten, unflatten
from ie_jax.weights.formats import read_json, read_metadata, read_tensors
from ie_jax.weights.names import KOHYA, LORA, TEXT_ENCODER, UNET, VAE, kohya, peft
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
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
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


def lora_rank(tensors: Mapping[str, Any], where: str) -> int:
    """The rank that all factors of a LoRA file agree on.

    Raises:
        UserError: there is no such rank.
    """
    ranks = {x.shape[0] for name, x in tensors.items() if ".lora_A." in name and x.ndim}
    if len(ranks) != 1 or 0 in ranks:
        raise UserError(
            f"{where}: no LoRA in PEFT or kohya naming of one rank (ranks found: {ranks or 0})"
        )
    return int(ranks.pop())


def read_lora(path: Path, base: Tree) -> Tree:
    """A LoRA for the base weights of these shapes, from a file in PEFT or kohya naming.

    Here alpha is 8 whatever the rank (method 1). Where a file has another, its `up` is multiplied
    by that alpha / 8, so that the weights change as the file wants. kohya's files have an alpha per
    module (where there is none it is the rank), diffusers' may have one in their metadata; a file
    in PEFT naming without one, as those published, has alpha 8.

    Raises:
        UserError: the file is missing, damaged, or not a LoRA of all target modules.
    """
    tensors, where = read_tensors(path), str(path)
    if any(name.startswith(KOHYA) for name in tensors):
        tensors = from_kohya(tensors, base, where)
    elif (alpha := diffusers_alpha(read_metadata(path), where)) is not None:
        tensors = {n: with_alpha(x, alpha) if ".lora_B." in n else x for n, x in tensors.items()}
    return convert(tensors, LORA, lora_shapes(base, lora_rank(tensors, where)), where)


def with_alpha(up: np.ndarray, alpha: float | np.ndarray) -> np.ndarray:
    """The `up` that changes the weights with `ALPHA` as this one does with its own alpha."""
    return np.asarray(up.astype(np.float32) * np.float32(alpha / ALPHA))


def from_kohya(tensors: Mapping[str, np.ndarray], base: Tree, where: str) -> dict[str, np.ndarray]:
    """Tensors in kohya naming as PEFT would have them; names without a place stay as they are.

    Raises:
        UserError: an alpha is not one number.
    """
    renamed = dict(tensors)
    for path in flatten(lora_shapes(base, 1)):
        module, _, factor = path.rpartition("/")
        down, name = tensors.get(kohya(module, "down")), kohya(module, factor)
        if down is None or not down.ndim or name not in tensors:
            continue
        tensor = renamed.pop(name)
        if factor == "up":
            alpha = renamed.pop(kohya(module, "alpha"), np.asarray(down.shape[0]))
            if alpha.size != 1:
                raise UserError(f"{where}: {kohya(module, 'alpha')} is not one number")
            tensor = with_alpha(tensor, alpha.astype(np.float32).reshape(()))
        renamed[peft(module, factor)] = tensor
    return renamed


def diffusers_alpha(metadata: Mapping[str, str], where: str) -> float | None:
    """The alpha that diffusers wrote beside a LoRA for a UNet.

    Raises:
        UserError: the metadata is damaged, or the LoRA has another scale than one alpha / rank.
    """
    try:
        config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        config = {name.removeprefix("unet."): value for name, value in config.items()}
        alpha = config.get("lora_alpha")
        number = None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: its lora_adapter_metadata is not valid: {error}") from error
    for key in ("use_rslora", "use_dora", "alpha_pattern"):
        if config.get(key):
            raise UserError(f"{where}: a LoRA with {key} is not supported")
    return number


def convert_files(files: Files) -> tuple[Architecture, Weights]:
    """Read and convert upstream files.

    Raises:
        UserError: a file is missing, damaged or does not fit; the message names it.
    """
    arch = architecture(read_configs(files.pipeline), str(files.pipeline))
    teacher = read_tensors(files.teacher)
    arch = replace(arch, unet=with_guidance(arch.unet, teacher))
    if not arch.unet.time_cond_proj_dim:
        raise UserError(
            f"{files.teacher}: not the guidance-distilled UNet: there is no matrix "
            "time_embedding.cond_proj.weight"
        )
    base_shapes = unet_shapes(arch.unet)
    unet = convert(teacher, UNET, base_shapes, str(files.teacher))
    del teacher

    vae = files.pipeline / "vae/diffusion_pytorch_model.safetensors"
    text = files.pipeline / "text_encoder/model.safetensors"
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
