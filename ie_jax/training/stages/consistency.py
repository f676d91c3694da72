"""Invertible consistency distillation: forward and backward LoRA from the guidance-distilled UNet.

Four losses, one update: distillation of both directions, and their preservation losses, which make
them each other's inverse (paper, section 3; method 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.schedule import BOUNDARIES, GUIDANCE, Schedule, make_schedule
from ie_jax.diffusion.trajectory import AnyDenoiser
from ie_jax.errors import UserError
from ie_jax.models.lora import lora_shapes
from ie_jax.models.networks import Latents, Networks, any_denoiser
from ie_jax.models.shapes import draw
from ie_jax.models.unet import AnyContext
from ie_jax.training.config import RunConfig
from ie_jax.training.inputs import context_of, latent_shape, latents_of
from ie_jax.training.losses import (
    BACKWARD,
    FORWARD,
    backward_grid,
    distillation,
    forward_grid,
    preservation,
    pseudo_huber,
    walk_terms,
)
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.recipe import (
    Recipe,
    load_perceptual,
    metadata,
    model_export,
    model_folder,
    networks_of,
)
from ie_jax.training.reconstruction import reconstruction_metrics
from ie_jax.training.stage import Metrics, Stage, Tree
from ie_jax.weights.facts import Facts, as_metadata
from ie_jax.weights.folder import read_blueprint, read_parts


@dataclass(frozen=True)
class ConsistencyConfig:
    """What consistency distillation computes. The defaults are the published run's."""

    boundaries: tuple[int, ...] = BOUNDARIES
    """Timesteps between the segments, rising."""
    grid_start: int = 19
    """First timestep of the teacher's grid, and where inversion starts."""
    grid_steps: int = 50
    """Steps of the teacher's grid."""
    guidance: tuple[float, ...] = (0.0, 7.0, 11.0, 15.0, 19.0)
    """w of the backward direction is drawn from these."""
    preservation_weight: float = 1.5
    rank: int = 64
    """Of both LoRAs."""
    edit_guidance: tuple[float, ...] = GUIDANCE
    """w of each generation step that suits edits by the trained pair: its files say so, and the
    editor takes it."""

    def __post_init__(self) -> None:
        if not self.guidance or min(self.guidance) < 0 or self.rank < 1:
            raise UserError("consistency: guidance needs values from 0 up, rank must be positive")
        if len(self.edit_guidance) != len(self.boundaries):
            raise UserError("consistency: edit_guidance needs a value for each boundary")
        if self.grid_steps < 2 or not 0 <= self.grid_start < min(self.boundaries, default=0):
            raise UserError(
                "consistency: the teacher's grid needs 2 or more steps and a start below the first "
                "boundary"
            )


@struct.dataclass
class Frozen:
    """What is read and never changed."""

    unet: Tree
    """The guidance-distilled UNet, teacher and base."""
    vae: Tree
    text_encoder: Tree
    perceptual: Tree | None
    schedule: Schedule
    """Of the inversion and generation that validation makes."""


@struct.dataclass
class Example:
    """A batch with its draws: of everything one for each direction."""

    latents: Latents
    context: AnyContext
    noise: Latents
    up: Int[Array, " b"]
    """Grid point of the forward direction, 0 .. grid_steps - 2."""
    down: Int[Array, " b"]
    """Of the backward direction, 0 .. grid_steps - 1."""
    segments: Int[Array, "b 2"]
    """Of either preservation loss, 0 .. n - 1."""
    w: Float[Array, " b"]


def prepare(
    config: ConsistencyConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    keys: Array,
) -> Example:
    """Latents, text and every draw, without gradient; one key per picture."""
    shape = latent_shape(networks, batch)

    def drawn(key: Array) -> tuple[Array, ...]:
        posterior, noise, up, down, segments, w = jax.random.split(key, 6)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(up, (), 0, config.grid_steps - 1),
            jax.random.randint(down, (), 0, config.grid_steps),
            jax.random.randint(segments, (2,), 0, len(config.boundaries)),
            jax.random.choice(w, jnp.asarray(config.guidance)),
        )

    posterior, noise, up, down, segments, w = jax.vmap(drawn)(keys)
    z = latents_of(networks, frozen.vae, batch, posterior)
    context = context_of(networks, frozen.text_encoder, batch)
    return lax.stop_gradient(Example(z, context, noise, up, down, segments, w))


def loss(
    config: ConsistencyConfig, networks: Networks, params: Tree, frozen: Frozen, example: Example
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of the four losses, all pseudo-Huber."""

    def models(params: Tree) -> AnyDenoiser:
        loras = (params["forward"], params["backward"], None)
        return any_denoiser(networks, frozen.unet, loras, example.context)

    abar = frozen.schedule.abar
    boundaries = jnp.asarray(config.boundaries)
    ends = jnp.concatenate([jnp.array([config.grid_start]), boundaries[:-1]])
    grid = (config.grid_start, config.grid_steps, boundaries, len(abar))
    up, down = example.segments[:, 0], example.segments[:, 1]
    drawn = (abar, example.latents, example.noise)
    terms = {
        "forward": distillation(FORWARD, *drawn, forward_grid(example.up, *grid)),
        "backward": distillation(BACKWARD, *drawn, backward_grid(example.down, *grid), example.w),
        "forward_preservation": preservation(FORWARD, BACKWARD, *drawn, boundaries[up], ends[up]),
        "backward_preservation": preservation(
            BACKWARD, FORWARD, *drawn, ends[down], boundaries[down]
        ),
    }
    # Stopped here and not after the walk, which would be differentiated first.
    held, eps = models(lax.stop_gradient(params)), models(params)
    walked = walk_terms(held, eps, abar, terms, networks.execution.unroll)
    values = {name: pseudo_huber(*ends).mean() for name, ends in walked.items()}
    distilled = values["forward"] + values["backward"]
    preserved = values["forward_preservation"] + values["backward_preservation"]
    return distilled + config.preservation_weight * preserved, values


def evaluate(
    networks: Networks, params: Tree, frozen: Frozen, batch: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Reconstruction through noise and back, see `reconstruction_metrics`."""
    return reconstruction_metrics(
        networks,
        frozen.unet,
        (params["forward"], params["backward"]),
        frozen.vae,
        frozen.text_encoder,
        frozen.perceptual,
        frozen.schedule,
        batch,
    )


def build(run: RunConfig, config: ConsistencyConfig, offline: bool, progress: bool) -> Recipe:
    """Trains {"forward", "backward"}, a LoRA each."""
    folder = model_folder(run, "consistency")
    blueprint = read_blueprint(folder)
    parts = read_parts(folder, ["vae", "text_encoder", "unet"])
    networks = networks_of(run, blueprint.architecture)
    loras = lora_shapes(parts["unet"], config.rank)
    params = {"forward": draw(loras, run.seed), "backward": draw(loras, run.seed + 1)}
    still = (0.0,) * len(config.boundaries)
    betas = networks.architecture.betas
    facts = Facts(config.grid_start, config.boundaries, config.edit_guidance)
    return Recipe(
        Stage(
            prepare=partial(prepare, config, networks),
            losses={"consistency": partial(loss, config, networks)},
            optimiser=optimiser_of(run.optimiser, params),
            evaluate=partial(evaluate, networks),
            ema=run.optimiser.ema,
        ),
        params,
        Frozen(
            parts["unet"],
            parts["vae"],
            parts["text_encoder"],
            load_perceptual(run, offline, progress),
            make_schedule(config.boundaries, config.grid_start, still, False, betas),
        ),
        networks.architecture,
        (blueprint.tokenizer,),
        model_export(
            folder, lambda state: metadata(run, "consistency", state) | as_metadata(facts)
        ),
    )
