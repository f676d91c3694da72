"""Cycle-consistency fine-tuning of the forward model's LoRA (method 3): the paper's contribution.

Three losses: the cycle (an image inverted and generated again should be the image), preservation
and distillation (the forward model should remain what it was distilled to be).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.schedule import BOUNDARIES, Schedule, make_schedule
from ie_jax.diffusion.trajectory import AnyDenoiser
from ie_jax.errors import UserError
from ie_jax.models.execution import DType, dtype
from ie_jax.models.lpips import lpips
from ie_jax.models.networks import Latents, Networks, any_denoiser, vae_precision
from ie_jax.models.pixels import Image, from_uint8
from ie_jax.models.unet import AnyContext
from ie_jax.training.config import RunConfig
from ie_jax.training.inputs import context_of, decoded, latent_shape, latents_of
from ie_jax.training.losses import (
    BACKWARD,
    FORWARD,
    Distance,
    Term,
    cycle,
    distillation,
    forward_grid,
    patchwise,
    preservation,
    pseudo_huber,
    squared,
    walk_terms,
)
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.recipe import (
    LORA,
    MODEL,
    Batches,
    Recipe,
    cast,
    load_perceptual,
    metadata,
    networks_of,
    newest,
)
from ie_jax.training.reconstruction import reconstruction_metrics
from ie_jax.training.stage import Loss, Metrics, Stage, State, Tree
from ie_jax.weights.embedded import folder_of
from ie_jax.weights.facts import NOTHING, Facts, as_metadata
from ie_jax.weights.folder import Pipeline, write_parts
from ie_jax.weights.load import facts_of_pair_before_loading, load_pipeline
from ie_jax.weights.lora_files import write_lora

NAMES = ("distillation", "cycle", "preservation")
"""The losses, in their published order."""
LATENT: dict[str, Distance] = {"huber": pseudo_huber, "l2": squared}
"""Distances between latents, by the name that a config gives them."""


@dataclass(frozen=True)
class CycleConfig:
    """What cycle fine-tuning computes. The defaults are the published run's."""

    order: Literal["in_turn", "sum"] = "in_turn"
    """in_turn: an update for each loss of a batch, distillation, cycle, preservation, as published.
    sum: one update for the weighted sum, as the paper writes, with shared network calls."""
    distance: Literal["lpips", "huber", "l2"] = "lpips"
    """What the cycle loss compares by: LPIPS between patches of images, or latents."""
    latent_distance: Literal["huber", "l2"] = "huber"
    """What distillation and preservation compare latents by, and the cycle loss beside LPIPS."""
    latent_weight: float = 0.0
    """Weight of `latent_distance` between latents, added to LPIPS in the cycle loss."""
    target: Literal["decoded", "image"] = "decoded"
    """What LPIPS compares with: the decoded latent of the image, as published, or the image."""
    patch_size: int = 224
    """Side of LPIPS' patches, pixels."""
    patch_stride: int = 110
    """Distance between patches. 110 leaves 68 rows and columns of 512 uncovered, as published;
    144 covers all."""
    patch_layout: Literal["interleaved", "windows"] = "interleaved"
    """interleaved: as published, where the patches' values reach LPIPS in another order: lines of
    neighbouring patches and of all colours below each other. windows: the patches themselves."""
    cycle_weight: float = 1.0
    """0 leaves a loss out."""
    preservation_weight: float = 1.5
    distillation_weight: float = 1.0
    guidance: float = 0.0
    """w of the cycle's generation from its second step on."""
    start_noise: bool = False
    """Noise the latent at the start of the cycle's inversion, as published edits do."""
    start_timestep: int = 0
    """Where the cycle's inversion starts."""
    boundaries: tuple[int, ...] = BOUNDARIES
    """Timesteps between the segments, rising."""
    grid_start: int = 19
    """First timestep of the teacher's grid; stands for 0 in preservation."""
    grid_steps: int = 50
    """Steps of the teacher's grid."""
    perceptual_compute: DType = "float32"
    """Number type of LPIPS' convolutions."""

    def __post_init__(self) -> None:
        weights = (self.cycle_weight, self.preservation_weight, self.distillation_weight)
        if min(*weights, self.latent_weight) < 0 or max(weights) == 0:
            raise UserError("the weights of the losses must not be negative, nor all be 0")
        if self.latent_weight and self.distance != "lpips":
            raise UserError(
                "latent_weight adds to LPIPS a distance between latents: "
                f"it must be 0 with distance {self.distance}"
            )
        if self.patch_size < 1 or self.patch_stride < 1:
            raise UserError("patch_size and patch_stride must be positive")
        if self.grid_steps < 2 or not 0 <= self.grid_start < min(self.boundaries, default=0):
            raise UserError(
                "the teacher's grid needs 2 or more steps and a start below the first boundary"
            )


@struct.dataclass
class Frozen:
    """What cycle fine-tuning reads and never changes."""

    unet: Tree
    """The guidance-distilled teacher, base of both consistency models."""
    backward: Tree
    """LoRA of the backward model."""
    vae: Tree
    text_encoder: Tree | None
    """Of SDXL both, as a pair. None where batches bring text embeddings."""
    perceptual: Tree | None
    """LPIPS; None where the cycle loss compares latents."""
    schedule: Schedule


@struct.dataclass
class Example:
    """A batch as the losses see it: what they share, and every random draw."""

    latents: Latents
    """A sample of the posterior, scaled."""
    context: AnyContext
    noise: Latents
    index: Int[Array, " b"]
    """Grid point of distillation, 0 .. grid_steps - 2."""
    segment: Int[Array, " b"]
    """Segment of preservation, 0 .. n - 1."""
    guidance: Float[Array, "b n"]
    """w of the cycle's generation."""
    target: Image | None
    """What LPIPS compares the reconstruction with, in [-1, 1], not clamped."""


def cycle_schedule(config: CycleConfig, betas: tuple[float, float, int]) -> Schedule:
    """The cycle's steps: w = 0 in the first step of generation, the config's from the second on."""
    guidance = [0.0] + [config.guidance] * (len(config.boundaries) - 1)
    return make_schedule(
        config.boundaries, config.start_timestep, guidance, config.start_noise, betas
    )


def target_of(
    config: CycleConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    z: Latents,
) -> Image | None:
    """What LPIPS compares with, where it does: the image, or the decoded latent."""
    if config.distance != "lpips" or not config.cycle_weight:
        return None
    if config.target == "image":
        return from_uint8(batch["pixels"])
    return decoded(networks, frozen.vae, z)


def prepare(
    config: CycleConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    keys: Array,
) -> Example:
    """What the losses of a batch share, without gradient; one key per image.

    Args:
        batch: see `ie_jax.training.inputs`.
    """
    b, n = keys.shape[0], frozen.schedule.steps
    shape = latent_shape(networks, batch)

    def draw(key: Array) -> tuple[Array, ...]:
        posterior, noise, index, segment = jax.random.split(key, 4)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(index, (), 0, config.grid_steps - 1),
            jax.random.randint(segment, (), 0, n),
        )

    posterior, noise, index, segment = jax.vmap(draw)(keys)
    z = latents_of(networks, frozen.vae, batch, posterior)
    target = target_of(config, networks, frozen, batch, z)
    context = context_of(networks, frozen.text_encoder, batch)
    guidance = jnp.broadcast_to(frozen.schedule.guidance, (b, n))
    example = Example(z, context, noise, index, segment, guidance, target)
    return lax.stop_gradient(example)


def models_of(networks: Networks, lora: Tree, frozen: Frozen, context: AnyContext) -> AnyDenoiser:
    """FORWARD, BACKWARD and TEACHER, for the batch's own texts."""
    return any_denoiser(networks, frozen.unet, (lora, frozen.backward, None), context)


def terms_of(
    config: CycleConfig, example: Example, schedule: Schedule, names: Iterable[str]
) -> dict[str, Term]:
    """The losses of these names."""
    abar, boundaries = schedule.abar, schedule.forward_s
    drawn = (abar, example.latents, example.noise)
    ends = jnp.concatenate([jnp.array([config.grid_start]), boundaries[:-1]])
    upper, lower = (x[example.segment] for x in (boundaries, ends))
    at = forward_grid(example.index, config.grid_start, config.grid_steps, boundaries, len(abar))
    terms = {
        "distillation": distillation(FORWARD, *drawn, at),
        "cycle": cycle(example.latents, example.noise, schedule, example.guidance),
        "preservation": preservation(FORWARD, BACKWARD, *drawn, upper, lower),
    }
    return {name: terms[name] for name in names}


def cycle_distance(
    config: CycleConfig, networks: Networks, frozen: Frozen, example: Example, z: Latents
) -> Float[Array, " b"]:
    """How far a latent that came back from noise is from where it started."""
    if config.distance != "lpips":
        return LATENT[config.distance](z, example.latents)
    perceptual, target = frozen.perceptual, example.target
    assert perceptual is not None and target is not None
    compute, form = dtype(config.perceptual_compute), networks.execution.convolution
    measure = partial(lpips, perceptual, compute=compute, form=form)
    distance = patchwise(measure, config.patch_size, config.patch_stride, config.patch_layout)

    def of_decoded(z: Latents) -> Array:
        return distance(decoded(networks, frozen.vae, z), target)

    remat = networks.execution.remat_call or networks.execution.remat_block
    of_images = (jax.checkpoint(of_decoded) if remat else of_decoded)(z)
    if not config.latent_weight:
        return of_images
    of_latents = LATENT[config.latent_distance](z, example.latents)
    return of_images + config.latent_weight * of_latents


def make_loss(
    config: CycleConfig, networks: Networks, weights: Mapping[str, float | Float[Array, ""]]
) -> Loss:
    """The weighted sum of the losses named."""
    latent = LATENT[config.latent_distance]

    def loss(lora: Tree, frozen: Frozen, example: Example) -> tuple[Float[Array, ""], Metrics]:
        schedule = frozen.schedule
        # Stopped here and not after the walk, which would be differentiated first.
        held, eps = (
            models_of(networks, x, frozen, example.context) for x in (lax.stop_gradient(lora), lora)
        )
        terms = terms_of(config, example, schedule, weights)
        walked = walk_terms(held, eps, schedule.abar, terms, networks.execution.unroll)
        values = {name: latent(*ends).mean() for name, ends in walked.items() if name != "cycle"}
        if "cycle" in walked:
            z = walked["cycle"][0]
            values["cycle"] = cycle_distance(config, networks, frozen, example, z).mean()
        return sum((weights[name] * x for name, x in values.items()), jnp.float32(0)), values

    return loss


def losses(config: CycleConfig, networks: Networks) -> dict[str, Loss]:
    """The losses of a batch, an update each: one after the other, or their sum."""
    weights = {name: getattr(config, f"{name}_weight") for name in NAMES}
    used = {name: weight for name, weight in weights.items() if weight}
    if config.order == "sum":
        return {"sum": make_loss(config, networks, used)}
    return {name: make_loss(config, networks, {name: weight}) for name, weight in used.items()}


def evaluate(
    networks: Networks, lora: Tree, frozen: Frozen, batch: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """See `reconstruction_metrics`."""
    return reconstruction_metrics(
        networks,
        frozen.unet,
        (lora, frozen.backward),
        frozen.vae,
        frozen.text_encoder,
        frozen.perceptual,
        frozen.schedule,
        batch,
    )


def cycle_stage(
    config: CycleConfig,
    networks: Networks,
    optimiser: optax.GradientTransformation,
    ema: float | None = None,
) -> Stage:
    """The stage for the loop. `networks` runs with its execution resolved for gradients."""
    return Stage(
        prepare=partial(prepare, config, networks),
        losses=losses(config, networks),
        optimiser=optimiser,
        evaluate=partial(evaluate, networks),
        ema=ema,
    )


# --- Its inputs and its files ---------------------------------------------------------------------


def check_boundaries(config: CycleConfig, facts: Facts, model: str) -> None:
    """Raise UserError if the losses have other boundaries than a trained model."""
    if facts.data != NOTHING and facts.boundaries != config.boundaries:
        raise UserError(
            f"cycle.boundaries {list(config.boundaries)} must be those of {model}, "
            f"{list(facts.boundaries)}"
        )


def frozen_of(run: RunConfig, config: CycleConfig, pipeline: Pipeline, perceptual: Any) -> Frozen:
    """What training reads, in the config's types, on the host; LoRA not rounded."""
    weights = pipeline.weights
    return Frozen(
        unet=cast(weights.unet, run.precision.param),
        backward=cast(weights.backward, "float32"),
        vae=cast(weights.vae, vae_precision(pipeline.architecture, run.vae_precision).param),
        text_encoder=cast(weights.texts, run.precision.param),
        perceptual=perceptual,
        schedule=cycle_schedule(config, pipeline.architecture.betas),
    )


def build(run: RunConfig, config: CycleConfig, offline: bool, progress: bool) -> Recipe:
    """Trains the forward LoRA of the chain's model, or of a published one."""
    # Before gigabytes are fetched.
    facts = facts_of_pair_before_loading(run.model, run.forward, run.backward)
    check_boundaries(config, facts, run.model)
    pipeline = load_pipeline(run.model, run.forward, run.backward, offline, progress)
    perceptual = load_perceptual(run, offline, progress) if config.distance == "lpips" else None
    if config.distance == "lpips" and config.cycle_weight and perceptual is None:
        raise UserError("cycle.distance lpips needs weights: name them in perceptual")
    source = folder_of(run.model)
    own = replace(
        facts,
        start_timestep=config.start_timestep,
        start_noise=config.start_noise,
        boundaries=config.boundaries,
    )

    def export(folder: Path, state: State, best: bool, held_out: Batches) -> None:
        suffix = "_best" if best else ""
        told = metadata(run, "cycle", state, best) | as_metadata(own) | {"model": run.model}
        write_lora(folder / f"{LORA}{suffix}.safetensors", state.params, metadata=told)
        if state.ema is not None:
            write_lora(folder / f"{LORA}{suffix}_ema.safetensors", state.ema, metadata=told)
        if source.is_dir() and not best and run.data.source == "world":
            write_parts(folder / MODEL, source, {"fine_tuned": newest(state)}, told)

    networks, params = networks_of(run, pipeline.architecture), pipeline.weights.forward
    return Recipe(
        cycle_stage(config, networks, optimiser_of(run.optimiser, params), run.optimiser.ema),
        params,
        frozen_of(run, config, pipeline, perceptual),
        pipeline.architecture,
        pipeline.tokenizers,
        export,
        best="lpips" if perceptual is not None else "mse",
        pipeline=pipeline,
    )
