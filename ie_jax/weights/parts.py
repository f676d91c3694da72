"""The parts of a model folder, which training fills one after the other.

A folder has the layout of the published files (see `local_files`), so that once its last part is
written it is loaded as they are.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ie_jax.errors import UserError
from ie_jax.files import folder_appearing_whole
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.convert import convert
from ie_jax.weights.export import write_lora, write_network
from ie_jax.weights.formats import read_json, read_tensors
from ie_jax.weights.lora_files import read_lora
from ie_jax.weights.names import TEXT_ENCODER, UNET, VAE
from ie_jax.weights.pipeline import (
    CONFIGS,
    TOKENIZER_FILES,
    Tree,
    architecture,
    lacks_tokenizer,
    read_configs,
)
from ie_jax.weights.sources import FINE_TUNED, HUB_SD15

PIPELINE = HUB_SD15.rpartition("/")[2]

Part = Literal["vae", "text_encoder", "denoiser", "unet", "forward", "backward", "fine_tuned"]
PARTS: dict[Part, str] = {
    "vae": f"{PIPELINE}/vae/diffusion_pytorch_model.safetensors",
    "text_encoder": f"{PIPELINE}/text_encoder/model.safetensors",
    "denoiser": f"{PIPELINE}/unet/diffusion_pytorch_model.safetensors",
    "unet": "sd15_cfg_distill.safetensors",
    "forward": "iCD-world-forward_19_259_519_779.safetensors",
    "backward": "iCD-world-reverse_259_519_779_999.safetensors",
    "fine_tuned": FINE_TUNED,
}
"""Where each part lies in a model folder. `denoiser` is the UNet before guidance distillation,
`unet` the one after it; `fine_tuned` is the forward model after cycle fine-tuning."""
TABLES = {"vae": VAE, "text_encoder": TEXT_ENCODER, "denoiser": UNET, "unet": UNET}
WRITTEN_BY: dict[Part, str] = {
    "vae": "training of the autoencoder",
    "text_encoder": "training of the denoiser",
    "denoiser": "training of the denoiser",
    "unet": "guidance distillation",
    "forward": "consistency distillation",
    "backward": "consistency distillation",
    "fine_tuned": "cycle fine-tuning",
}


@dataclass(frozen=True)
class Blueprint:
    """What a model folder says of its networks, whether or not it holds their weights."""

    architecture: Architecture
    """With the guidance-distilled UNet; `unguided` gives the UNet before that."""
    tokenizer: Path


def unguided(architecture: Architecture) -> Architecture:
    """With the UNet that takes no guidance scale: the `denoiser`."""
    return replace(architecture, unet=replace(architecture.unet, time_cond_proj_dim=None))


def read_blueprint(folder: Path) -> Blueprint:
    """The networks that a model folder describes, and its tokenizer.

    Raises:
        UserError: a config or tokenizer file is missing, damaged or not supported, or
            unet/config.json does not say `time_cond_proj_dim`.
    """
    pipeline = folder / PIPELINE
    arch = architecture(read_configs(pipeline), str(pipeline))
    if not arch.unet.time_cond_proj_dim:
        raise UserError(
            f"{pipeline / CONFIGS['unet']}: time_cond_proj_dim is missing: give the number of "
            "features of the guidance embedding, such as 512"
        )
    tokenizer = pipeline / "tokenizer"
    if missing := lacks_tokenizer(tokenizer):
        raise UserError(f"{tokenizer} lacks {', '.join(missing)}")
    return Blueprint(arch, tokenizer)


def shapes(part: Part, arch: Architecture) -> dict[str, Any]:
    """The weight tree of a part as shapes; for a LoRA that of its base."""
    if part == "vae":
        return vae_shapes(arch.vae)
    if part == "text_encoder":
        return text_encoder_shapes(arch.text)
    return unet_shapes((unguided(arch) if part == "denoiser" else arch).unet)


def read_parts(folder: Path, names: Iterable[Part]) -> dict[Part, Tree]:
    """Weights of a model folder, numpy float32.

    Raises:
        UserError: a file is missing, damaged or does not fit; the message names it.
    """
    arch = read_blueprint(folder).architecture
    return {name: read_part(folder, name, arch) for name in names}


def read_part(folder: Path, name: Part, arch: Architecture) -> Tree:
    """One part, see `read_parts`."""
    path = folder / PARTS[name]
    if not path.is_file():
        raise UserError(f"{path} is missing: {WRITTEN_BY[name]} writes it")
    if name not in TABLES:
        return read_lora(path, shapes(name, arch))
    return convert(read_tensors(path), TABLES[name], shapes(name, arch), str(path))


def model_files(folder: Path) -> list[str]:
    """Which files of a folder belong to a model, as paths in it: configs, tokenizer, parts, and
    whatever weights lie beside them."""
    named = [*CONFIGS.values(), *(f"tokenizer/{name}" for name in TOKENIZER_FILES)]
    beside = (path.name for path in folder.glob("*.safetensors") if path.name[0] != ".")
    names = {*(f"{PIPELINE}/{name}" for name in named), *PARTS.values(), *beside}
    return sorted(name for name in names if (folder / name).is_file())


def copy_model_files(source: Path, target: Path) -> None:
    """Copy the `model_files` into another folder."""
    for name in model_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def check_replaceable(folder: Path) -> None:
    """Raise UserError if a folder that is to become a model holds anything that is none."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if others := sorted(files - set(model_files(folder))):
        raise UserError(
            f"{folder} holds other files than a model's, such as {others[0]}: name another folder"
        )


def write_parts(
    folder: Path,
    source_folder: Path,
    parts: Mapping[Part, Tree],
    metadata: Mapping[str, str],
    vae_scaling: float | None = None,
) -> None:
    """Write a copy of a model folder with some parts new. It appears whole or not at all, in place
    of an older model; it may be the source folder itself.

    Args:
        parts: the new parts, nested dicts of numpy or JAX arrays. Networks are written as float32,
            LoRAs in their number type.
        metadata: texts for the headers of the new files.
        vae_scaling: the autoencoder's `scaling_factor` from here on.

    Raises:
        UserError: `folder` holds anything else than a model, which would be lost.
    """
    check_replaceable(folder)
    with folder_appearing_whole(folder) as new:
        copy_model_files(source_folder, new)
        for name, tree in parts.items():
            path = new / PARTS[name]
            path.parent.mkdir(parents=True, exist_ok=True)
            if name in TABLES:
                write_network(path, tree, TABLES[name], metadata=metadata)
            else:
                write_lora(path, tree, metadata=metadata)
        if vae_scaling is not None:
            path = new / PIPELINE / CONFIGS["vae"]
            config = read_json(path) | {"scaling_factor": float(vae_scaling)}
            path.write_text(json.dumps(config, indent=2), encoding="utf-8")
