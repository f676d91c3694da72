"""What each stage of training reads, trains and writes: a stage for the loop from a config."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.diffusion.schedule import make_schedule
from ie_jax.errors import UserError
from ie_jax.models.execution import DType, dtype
from ie_jax.models.lora import lora_shapes
from ie_jax.models.networks import Architecture, Networks, vae
from ie_jax.models.pixels import from_uint8
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.training.autoencoder import autoencoder_stage, normalised
from ie_jax.training.classifier import classifier_stage
from ie_jax.training.config import TrainConfig, optimiser_of
from ie_jax.training.consistency import Frozen as ConsistencyFrozen
from ie_jax.training.consistency import consistency_stage
from ie_jax.training.cycle import Frozen, cycle_schedule, cycle_stage
from ie_jax.training.denoiser import Frozen as DenoiserFrozen
from ie_jax.training.denoiser import denoiser_stage, guidance_stage
from ie_jax.training.stage import Stage, State, Tree
from ie_jax.weights.classifier import classifier_shapes, save_classifier
from ie_jax.weights.export import write_lora
from ie_jax.weights.load import RANDOM, load_pipeline
from ie_jax.weights.parts import Blueprint, Part, read_blueprint, read_parts, unguided, write_parts
from ie_jax.weights.perceptual import load_lpips, random_lpips, save_lpips, with_even_heads
from ie_jax.weights.pipeline import Pipeline
from ie_jax.weights.sources import PUBLISHED

LORA = "forward_lora"
MODEL = "model"
NONE = "none"
NARROW = (8, 8, 16, 16, 16)
"""Widths of a random LPIPS."""

Batches = Iterable[Mapping[str, np.ndarray]] | None
Export = Callable[[Path, State, bool, Batches], None]
"""(folder, state, whether it is the best by validation, held-out batches) -> files."""


@dataclass(frozen=True)
class Recipe:
    """A stage with its inputs."""

    stage: Stage
    params: Tree
    """To start from."""
    frozen: Tree
    architecture: Architecture
    tokenizer: Path
    export: Export
    best: str | None = None
    """The metric of validation by which the best checkpoint is told, the smaller the better."""
    pipeline: Pipeline | None = None
    """Of a stage that can be trained on cached latents."""


def networks_of(config: TrainConfig, architecture: Architecture) -> Networks:
    """The networks, run as the config says."""
    return Networks(
        architecture,
        config.precision,
        config.vae_precision,
        config.execution.resolve(config.precision),
        config.lora,
    )


def cast(tree: Any, name: DType) -> Any:
    """A tree on the host in a number type."""
    return jax.tree.map(lambda x: np.asarray(x, dtype(name)), tree)


def model_folder(config: TrainConfig) -> Path:
    """The folder that a stage of the chain starts from.

    Raises:
        UserError: there is none.
    """
    folder = Path(config.model).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"stage {config.stage} starts from a folder of upstream files: there is none at "
            f"{config.model!r}"
        )
    return folder


def metadata(config: TrainConfig, state: State) -> dict[str, str]:
    """What a file says of how it was trained."""
    facts = {
        "stage": config.stage,
        "steps": int(state.step),
        "batch_size": config.batch_size,
        "data": config.data.source,
        "seed": config.seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    return {name: str(value) for name, value in facts.items()}


def origin(config: TrainConfig) -> dict[str, str]:
    """What a LoRA says of the model that it belongs to; `lora_files.origin_of` reads it."""
    return {
        "model": config.model,
        "boundaries": " ".join(map(str, config.cycle.boundaries)),
        "start_timestep": str(config.cycle.start_timestep),
    }


def newest(state: State) -> Tree:
    """What a stage has trained: the moving average, where one is kept."""
    return state.params if state.average is None else state.average


def write_model(
    config: TrainConfig,
    source: Path,
    parts: Callable[[Tree], Mapping[Part, Tree]],
    folder: Path,
    state: State,
    best: bool,
    held_out: Batches,
) -> None:
    """Write the model folder of a run: the one it started from with the new parts."""
    if not best:
        write_parts(folder / MODEL, source, parts(newest(state)), metadata(config, state))


def autoencoder(config: TrainConfig, offline: bool, progress: bool) -> Recipe:
    """Stage (a) of the chain: the autoencoder."""
    folder = model_folder(config)
    blueprint = read_blueprint(folder)
    # Until it is known how large latents are, they are not scaled.
    arch = replace(
        blueprint.architecture, vae=replace(blueprint.architecture.vae, scaling_factor=1.0)
    )
    networks = networks_of(config, arch)

    def export(target: Path, state: State, best: bool, held_out: Batches) -> None:
        if best:
            return
        params = jax.tree.map(np.asarray, newest(state))
        if held_out is not None:
            encode = jax.jit(lambda x: vae(networks).apply({"params": params}, x, method="encode"))
            z = np.concatenate([np.asarray(encode(from_uint8(b["pixels"]))) for b in held_out])  # type: ignore[arg-type]
            params = normalised(params, z.mean((0, 1, 2)), z.std((0, 1, 2)))
        write_parts(target / MODEL, folder, {"vae": params}, metadata(config, state), 1.0)

    return Recipe(
        autoencoder_stage(config.autoencoder, networks, optimiser_of(config.optimiser)),
        read_parts(folder, ["vae"])["vae"]
        if config.start == "model"
        else draw(vae_shapes(arch.vae), config.seed),
        {},
        arch,
        blueprint.tokenizer,
        export,
    )


def empty_caption(blueprint: Blueprint) -> jax.Array:
    """Token ids of no words."""
    length = blueprint.architecture.text.max_position_embeddings
    return jnp.asarray(Tokenizer(blueprint.tokenizer)([""], length)[0])


def denoiser(config: TrainConfig, offline: bool, progress: bool) -> Recipe:
    """Stage (b): the denoiser with its text encoder, on the autoencoder's latents."""
    folder = model_folder(config)
    blueprint, parts = read_blueprint(folder), read_parts(folder, ["vae"])
    arch = unguided(blueprint.architecture)
    if config.start == "model":
        params = read_parts(folder, ["denoiser", "text_encoder"])
    else:
        params = {
            "denoiser": draw(unet_shapes(arch.unet), config.seed),
            "text_encoder": draw(text_encoder_shapes(arch.text), config.seed + 1),
        }
    return Recipe(
        denoiser_stage(config.denoiser, networks_of(config, arch), optimiser_of(config.optimiser)),
        params,
        DenoiserFrozen(parts["vae"], empty_caption(blueprint)),
        arch,
        blueprint.tokenizer,
        partial(write_model, config, folder, lambda params: params),
    )


def guidance(config: TrainConfig, offline: bool, progress: bool) -> Recipe:
    """Stage (c): guidance distillation. The UNet starts as the denoiser, w without effect."""
    folder = model_folder(config)
    blueprint = read_blueprint(folder)
    parts = read_parts(folder, ["vae", "text_encoder", "denoiser"])
    arch = blueprint.architecture
    params = jax.tree.map(lambda x: x, parts["denoiser"])
    shape = unet_shapes(arch.unet)["time_embedding"]["cond_proj"]["kernel"].shape
    params["time_embedding"] = {
        **params["time_embedding"],
        "cond_proj": {"kernel": np.zeros(shape, np.float32)},
    }
    frozen = DenoiserFrozen(
        parts["vae"], empty_caption(blueprint), parts["text_encoder"], parts["denoiser"]
    )
    return Recipe(
        guidance_stage(config.denoiser, networks_of(config, arch), optimiser_of(config.optimiser)),
        params,
        frozen,
        arch,
        blueprint.tokenizer,
        partial(write_model, config, folder, lambda params: {"unet": params}),
    )


def consistency(config: TrainConfig, offline: bool, progress: bool) -> Recipe:
    """Stage (d): forward and backward LoRA, distilled together."""
    folder = model_folder(config)
    blueprint = read_blueprint(folder)
    parts = read_parts(folder, ["vae", "text_encoder", "unet"])
    arch, chosen = blueprint.architecture, config.consistency
    loras = lora_shapes(parts["unet"], chosen.rank)
    frozen = ConsistencyFrozen(
        parts["unet"],
        parts["vae"],
        parts["text_encoder"],
        load_perceptual(config, offline, progress),
        make_schedule(
            chosen.boundaries, chosen.grid_start, (0.0,) * len(chosen.boundaries), False, arch.betas
        ),
    )
    optimiser = optimiser_of(config.optimiser)
    return Recipe(
        consistency_stage(chosen, networks_of(config, arch), optimiser, config.optimiser.ema),
        {"forward": draw(loras, config.seed), "backward": draw(loras, config.seed + 1)},
        frozen,
        arch,
        blueprint.tokenizer,
        partial(write_model, config, folder, lambda params: params),
    )


def classifier(config: TrainConfig, offline: bool, progress: bool) -> Recipe:
    """Beside the chain: a network that tells what a scene shows, or whose features tell how alike
    two pictures are."""
    folder, chosen = model_folder(config), config.classifier
    blueprint = read_blueprint(folder)
    name = f"{chosen.purpose}.safetensors"

    def export(target: Path, state: State, best: bool, held_out: Batches) -> None:
        if best:
            return
        write_parts(target / MODEL, folder, {}, {})
        params, facts = jax.tree.map(np.asarray, newest(state)), metadata(config, state)
        if chosen.purpose == "perceptual":
            save_lpips(target / MODEL / name, with_even_heads(params["vgg"]), facts)
        else:
            save_classifier(target / MODEL / name, params, facts)

    return Recipe(
        classifier_stage(optimiser_of(config.optimiser)),
        draw(classifier_shapes(chosen.widths, chosen.depths), config.seed),
        {},
        blueprint.architecture,
        blueprint.tokenizer,
        export,
    )


def load_perceptual(config: TrainConfig, offline: bool, progress: bool) -> Any:
    """The parameters of LPIPS; None where the cycle loss does without."""
    if config.cycle.distance != "lpips" or config.perceptual == NONE:
        return None
    if config.perceptual == RANDOM:
        return random_lpips(config.seed, NARROW)
    return load_lpips(config.perceptual, offline, progress)


def frozen_of(config: TrainConfig, pipeline: Pipeline, perceptual: Any) -> Frozen:
    """What training reads, in the config's types, on the host; LoRA not rounded."""
    weights = pipeline.weights
    return Frozen(
        unet=cast(weights.unet, config.precision.param),
        backward=cast(weights.backward, "float32"),
        vae=cast(weights.vae, config.vae_precision.param),
        text_encoder=cast(weights.text_encoder, config.precision.param),
        perceptual=perceptual,
        schedule=cycle_schedule(config.cycle, pipeline.architecture.betas),
    )


def check_grid(config: TrainConfig) -> None:
    """Raise UserError if the losses have other boundaries than the published model."""
    source = PUBLISHED.get(config.model)
    if source and source.boundaries != config.cycle.boundaries:
        raise UserError(
            f"cycle.boundaries {list(config.cycle.boundaries)} must be those of {config.model}, "
            f"{list(source.boundaries)}"
        )


def cycle(config: TrainConfig, offline: bool, progress: bool) -> Recipe:
    """Cycle fine-tuning: the last stage of the chain, or of the published models."""
    pipeline = load_pipeline(config.model, config.forward, config.backward, offline, progress)
    perceptual = load_perceptual(config, offline, progress)
    source = Path(config.model).expanduser()

    def export(folder: Path, state: State, best: bool, held_out: Batches) -> None:
        suffix = "_best" if best else ""
        facts = metadata(config, state) | origin(config) | {"step": str(int(state.step))}
        write_lora(folder / f"{LORA}{suffix}.safetensors", state.params, metadata=facts)
        if state.average is not None:
            write_lora(folder / f"{LORA}{suffix}_ema.safetensors", state.average, metadata=facts)
        if source.is_dir() and not best and config.data.source == "world":
            write_parts(folder / MODEL, source, {"fine_tuned": newest(state)}, facts)

    networks = networks_of(config, pipeline.architecture)
    optimiser = optimiser_of(config.optimiser)
    return Recipe(
        cycle_stage(config.cycle, networks, optimiser, config.optimiser.ema),
        pipeline.weights.forward,
        frozen_of(config, pipeline, perceptual),
        pipeline.architecture,
        pipeline.tokenizer,
        export,
        best="lpips" if perceptual is not None else "mse",
        pipeline=pipeline,
    )


RECIPES: dict[str, Callable[[TrainConfig, bool, bool], Recipe]] = {
    "autoencoder": autoencoder,
    "classifier": classifier,
    "denoiser": denoiser,
    "guidance": guidance,
    "consistency": consistency,
    "cycle": cycle,
}
"""By the name of the stage: (config, offline, progress) -> recipe, which raises UserError."""
