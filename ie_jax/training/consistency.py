"""Invertible consistency distillation: forward and backward LoRA from the guidance-distilled UNet.

Four losses, one update: distillation of both directions, and their preservation losses, which make
them each other's inverse (paper, section 3; method 5).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.schedule import BOUNDARIES, Schedule
from ie_jax.diffusion.trajectory import Chain, walk_all
from ie_jax.errors import UserError
from ie_jax.models.networks import Context, Latents, Networks, any_denoiser, encode_text
from ie_jax.training.cycle import reconstruction_metrics
from ie_jax.training.denoiser import latent_shape, latents_of
from ie_jax.training.losses import (
    BACKWARD,
    FORWARD,
    distillation_aim,
    distillation_lead,
    forward_grid,
    preservation_aim,
    preservation_lead,
    pseudo_huber,
)
from ie_jax.training.stage import Metrics, Stage, Tree


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

    def __post_init__(self) -> None:
        if not self.guidance or min(self.guidance) < 0 or self.rank < 1:
            raise UserError("consistency: guidance needs values from 0 up, rank must be positive")
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
    context: Context
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

    def draw(key: Array) -> tuple[Array, ...]:
        posterior, noise, up, down, segments, w = jax.random.split(key, 6)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(up, (), 0, config.grid_steps - 1),
            jax.random.randint(down, (), 0, config.grid_steps),
            jax.random.randint(segments, (2,), 0, len(config.boundaries)),
            jax.random.choice(w, jnp.asarray(config.guidance)),
        )

    posterior, noise, up, down, segments, w = jax.vmap(draw)(keys)
    z = latents_of(networks, frozen.vae, batch, posterior)
    context = encode_text(networks, frozen.text_encoder, batch["ids"])
    return lax.stop_gradient(Example(z, context, noise, up, down, segments, w))


def backward_grid(
    index: Int[Array, " b"], start: int, steps: int, boundaries: Array, timesteps: int
) -> tuple[Array, Array, Array]:
    """Timestep t, the teacher's next t and the boundary below, of a draw of 0 .. steps - 1: the
    grid of `forward_grid` walked down, to 0 at last."""
    stride = timesteps // steps
    t = start + stride * index
    next_t = jnp.maximum(t - stride, 0)
    ends = jnp.concatenate([jnp.zeros(1, boundaries.dtype), boundaries[:-1]])
    return t, next_t, ends[jnp.searchsorted(ends, next_t, side="right") - 1]


def losses(
    config: ConsistencyConfig, networks: Networks, params: Tree, frozen: Frozen, example: Example
) -> tuple[Float[Array, ""], Metrics]:
    """The weighted sum of the four losses, all pseudo-Huber."""
    abar = frozen.schedule.abar
    boundaries = jnp.asarray(config.boundaries)
    ends = jnp.concatenate([jnp.array([config.grid_start]), boundaries[:-1]])
    grid = (config.grid_start, config.grid_steps, boundaries, len(abar))
    up, down = example.segments[:, 0], example.segments[:, 1]

    drawn = (abar, example.latents, example.noise)
    zero = jnp.zeros(example.w.shape)

    def walk(params: Tree, chains: Mapping[str, Chain]) -> dict[str, Array]:
        loras = (params["forward"], params["backward"], None)
        eps = any_denoiser(networks, frozen.unet, loras, example.context)
        return walk_all(eps, abar, chains, networks.execution.unroll)

    grids = forward_grid(example.up, *grid), backward_grid(example.down, *grid)
    leads = {
        "forward": distillation_lead(FORWARD, *drawn, grids[0], zero),
        "backward": distillation_lead(BACKWARD, *drawn, grids[1], example.w),
        "forward_preservation": preservation_lead(BACKWARD, *drawn, boundaries[up], ends[up]),
        "backward_preservation": preservation_lead(FORWARD, *drawn, ends[down], boundaries[down]),
    }
    led = walk(lax.stop_gradient(params), leads)
    aims = {
        name: (preservation_aim if "preservation" in name else distillation_aim)(
            FORWARD if "forward" in name else BACKWARD, lead, led[name]
        )
        for name, lead in leads.items()
    }
    ends_of = walk(params, {name: aim.chain for name, aim in aims.items()})
    values = {
        name: pseudo_huber(ends_of[name][-1], aim.target).mean() for name, aim in aims.items()
    }
    distilled = values["forward"] + values["backward"]
    preserved = values["forward_preservation"] + values["backward_preservation"]
    return distilled + config.preservation_weight * preserved, values


def evaluate(
    networks: Networks, params: Tree, frozen: Frozen, batch: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Reconstruction through noise and back, see `reconstruction_metrics`."""
    return reconstruction_metrics(networks, params["forward"], params["backward"], frozen, batch)


def consistency_stage(
    config: ConsistencyConfig,
    networks: Networks,
    optimiser: optax.GradientTransformation,
    ema: float | None,
) -> Stage:
    """Trains {"forward", "backward"}, a LoRA each."""
    return Stage(
        prepare=partial(prepare, config, networks),
        updates={"consistency": partial(losses, config, networks)},
        optimiser=optimiser,
        evaluate=partial(evaluate, networks),
        ema=ema,
    )
