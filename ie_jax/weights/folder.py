"""A model folder read into networks and weights, and written from them. `layout` says what is in
one; training fills it one part after the other."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import struct

from ie_jax.errors import UserError
from ie_jax.files import folder_appearing_whole
from ie_jax.models.architecture import UNetConfig, text_config, unet_config, vae_config
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.convert import convert, write_network
from ie_jax.weights.facts import Facts
from ie_jax.weights.formats import read_json, read_tensors, unprefixed
from ie_jax.weights.layout import (
    CONFIGS,
    INDEX,
    PARTS,
    PIPELINE,
    SECOND,
    Part,
    check_replaceable,
    contents,
    copy_model_files,
    lacks_tokenizer,
    network_file,
)
from ie_jax.weights.lora_files import read_lora, write_lora
from ie_jax.weights.names import TEXT_ENCODER, UNET, VAE
from ie_jax.weights.original import PREFIXES, part_of
from ie_jax.weights.published import FORWARDS, Files

Tree = Any
TABLES = {
    "vae": VAE,
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": TEXT_ENCODER,
    "denoiser": UNET,
    "unet": UNET,
}
WRITTEN_BY: dict[Part, str] = {
    "vae": "training of the autoencoder",
    "text_encoder": "training of the denoiser",
    "text_encoder_2": "nothing here",
    "denoiser": "training of the denoiser",
    "unet": "guidance distillation",
    "forward": "consistency distillation",
    "backward": "consistency distillation",
    "fine_tuned": "cycle fine-tuning",
}


@struct.dataclass
class Weights:
    """All weights. The forward and the backward model are one base and a LoRA each."""

    unet: Tree
    """The guidance-distilled UNet, the base of both models; or that of a base model."""
    forward: Tree
    """LoRA of the forward model: image to noise. None: a base model has none."""
    backward: Tree
    """LoRA of the backward model: noise to image. None: as it is, a base model makes images."""
    vae: Tree
    text_encoder: Tree
    text_encoder_2: Tree = None
    """SDXL's second one."""

    @property
    def texts(self) -> Tree:
        """What `encode_text` takes; with two encoders the pair that `encode_two` does."""
        return self.text_encoder if self.text_encoder_2 is None else self.two_texts

    @property
    def two_texts(self) -> tuple[Tree, Tree]:
        """SDXL's text encoders."""
        return self.text_encoder, self.text_encoder_2


@dataclass(frozen=True)
class Pipeline:
    """Everything an edit needs of a model."""

    architecture: Architecture
    weights: Weights
    """numpy, float32; of a base model as its files have them, as is a UNet of 16-bit numbers."""
    tokenizer: Path
    """Its folder."""
    facts: Facts = field(default_factory=Facts)
    tokenizer_2: Path | None = None
    """SDXL's second one."""

    @property
    def tokenizers(self) -> tuple[Path, ...]:
        """One for each text encoder."""
        return (self.tokenizer, *([self.tokenizer_2] if self.tokenizer_2 else []))


# --- Configs --------------------------------------------------------------------------------------

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
    return {name: read_json(folder / file) for name, file in contents(folder).configs.items()}


def architecture(configs: Mapping[str, Mapping[str, Any]], where: str) -> Architecture:
    """The architecture of upstream configs, see `read_configs`."""
    unet = unet_config(configs["unet"], f"{where}/{CONFIGS['unet']}")
    vae = vae_config(configs["vae"], f"{where}/{CONFIGS['vae']}")
    text = text_config(configs["text_encoder"], f"{where}/{CONFIGS['text_encoder']}")
    second = None
    if "text_encoder_2" in configs:
        second = text_config(configs["text_encoder_2"], f"{where}/{SECOND['text_encoder_2']}")
    width = text.hidden_size + (second.hidden_size if second else 0)
    pooled = (second.projection_dim or 0) if second else 0
    takes = (unet.in_channels, unet.cross_attention_dim, unet.pooled_features)
    gives = (vae.latent_channels, width, pooled)
    if takes != gives:
        names = ("latent channels", "text of width", "pooled text of width")
        wrong = [
            f"{name} {a}, not {b}" for name, a, b in zip(names, takes, gives, strict=True) if a != b
        ]
        raise UserError(
            f"{where}: the parts do not fit each other: the UNet takes {'; '.join(wrong)} as the "
            "autoencoder and the text encoders give"
        )
    betas = scheduler_betas(configs["scheduler"], f"{where}/{CONFIGS['scheduler']}")
    return Architecture(unet, vae, text, betas, second)


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


# --- Weights --------------------------------------------------------------------------------------


def shapes(part: Part, arch: Architecture) -> dict[str, Any]:
    """The weight tree of a part as shapes; for a LoRA that of its base."""
    if part == "vae":
        return vae_shapes(arch.vae)
    if part == "text_encoder":
        return text_encoder_shapes(arch.text)
    if part == "text_encoder_2":
        return text_encoder_shapes(arch.text_2) if arch.text_2 else {}
    return unet_shapes((unguided(arch) if part == "denoiser" else arch).unet)


def read_part(part: Part, path: Path, arch: Architecture, number: Any = np.float32) -> Tree:
    """The weights of one part, numpy arrays of this type; None: as the file has them.

    Raises:
        UserError: the file is missing, damaged or does not fit; the message names it.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: {WRITTEN_BY[part]} writes it")
    if part not in TABLES:
        return read_lora(path, shapes(part, arch))
    tensors = unprefixed(part_of(read_tensors(path, PREFIXES[part]), part, str(path)))
    return convert(tensors, TABLES[part], shapes(part, arch), str(path), number)


def read_parts(folder: Path, names: Iterable[Part]) -> dict[Part, Tree]:
    """Parts of a model folder that training wrote, see `read_part`."""
    arch = read_blueprint(folder).architecture
    return {name: read_part(name, folder / PARTS[name], arch) for name in names}


@dataclass(frozen=True)
class Base:
    """A base model of SD1.x or SDXL, as it is published: before any distillation of this
    package's."""

    architecture: Architecture
    unet: Tree
    vae: Tree
    texts: tuple[Tree, ...]
    """Of one text encoder or two."""
    tokenizers: tuple[Path, ...]
    """Their folders."""
    zero_negative: bool
    """Whether the unconditional half of guidance without a negative prompt is told zeros and not
    the empty prompt."""


def read_base(pipeline: Path) -> Base:
    """A base model from its diffusers folder; weights in numpy, numbers as the files have them.

    Raises:
        UserError: files are missing, damaged, not supported or do not fit; the message names them.
    """
    if not pipeline.is_dir():
        raise UserError(f"{pipeline} is not a folder")
    held = contents(pipeline)
    networks = [name for name in held.configs if name != "scheduler"]
    if lacks := held.lacking(pipeline, networks):
        raise UserError(f"{pipeline} has missing files: {'; '.join(lacks)}")
    arch = architecture(read_configs(pipeline), str(pipeline))

    def read(part: Part) -> Tree:
        return read_part(part, network_file(pipeline, part), arch, None)

    texts: list[Part] = ["text_encoder", "text_encoder_2"]
    index = read_json(pipeline / INDEX) if (pipeline / INDEX).is_file() else {}
    return Base(
        arch,
        read("unet"),
        read("vae"),
        tuple(read(part) for part in texts if part in held.configs),
        tuple(pipeline / name for name in held.tokenizers),
        index.get("force_zeros_for_empty_prompt", arch.text_2 is not None) is True,
    )


def base_facts(pipeline: Path) -> Facts:
    """What a base model's configs tell. Those of few steps have `trailing` steps, the first of them
    at the last timestep.

    Raises:
        UserError: they are missing or damaged.
    """
    held = contents(pipeline)
    scheduler = read_json(pipeline / CONFIGS["scheduler"])
    few = scheduler.get("timestep_spacing") == "trailing"
    return Facts(pair=False, few_steps=few, texts=len(held.tokenizers))


def base_pipeline(folder: Path) -> Pipeline:
    """`read_base`, as everything an edit needs.

    Raises:
        UserError: see `read_base`.
    """
    base = read_base(folder)
    texts = dict(zip(("text_encoder", "text_encoder_2"), base.texts, strict=False))
    weights = Weights(base.unet, None, None, base.vae, **texts)
    tokenizer, *second = base.tokenizers
    return Pipeline(base.architecture, weights, tokenizer, base_facts(folder), *second)


def with_guidance(unet: UNetConfig, teacher: Mapping[str, Any]) -> UNetConfig:
    """The published config is SD1.5's own; the width of the guidance embedding, which distillation
    added, is known from the distilled weights alone."""
    projection = teacher.get("time_embedding.cond_proj.weight")
    if unet.time_cond_proj_dim or projection is None or projection.ndim != 2:
        return unet
    return replace(unet, time_cond_proj_dim=projection.shape[1])


def convert_files(files: Files) -> tuple[Architecture, Weights]:
    """Read and convert upstream files.

    Raises:
        UserError: a file is missing, damaged or does not fit; the message names it.
    """
    arch = architecture(read_configs(files.pipeline), str(files.pipeline))
    teacher = unprefixed(part_of(read_tensors(files.teacher), "unet", str(files.teacher)))
    arch = replace(arch, unet=with_guidance(arch.unet, teacher))
    if not arch.unet.time_cond_proj_dim:
        raise UserError(
            f"{files.teacher}: not the guidance-distilled UNet: there is no matrix "
            "time_embedding.cond_proj.weight"
        )
    # In float32 SDXL's would take 5 GB more of memory and disk, and hold nothing more.
    half = all(x.dtype.itemsize == 2 for x in teacher.values())
    number = None if half else np.float32
    unet = convert(teacher, UNET, shapes("unet", arch), str(files.teacher), number)
    del teacher

    def network(part: Part) -> Tree:
        return read_part(part, network_file(files.pipeline, part), arch)

    second = network("text_encoder_2") if arch.text_2 else None
    weights = Weights(
        unet=unet,
        forward=read_lora(files.forward, unet),
        backward=read_lora(files.backward, unet),
        vae=network("vae"),
        text_encoder=network("text_encoder"),
        text_encoder_2=second,
    )
    return arch, weights


def write_parts(
    folder: Path,
    source_folder: Path,
    parts: Mapping[Part, Tree],
    metadata: Mapping[str, str],
    vae_scaling: float | None = None,
) -> None:
    """Write a copy of a model folder with some parts new. It appears whole or not at all, in place
    of an older model; it may be the source folder itself. With a new forward LoRA, those that were
    fine-tuned from the one before are left out.

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
        if "forward" in parts:
            for path in new.glob(FORWARDS):
                path.unlink()
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
