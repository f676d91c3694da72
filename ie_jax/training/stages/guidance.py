"""Distillation of guidance: one call of the UNet with w in place of two (method 1)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import add_noise
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.diffusion.trajectory import with_text
from ie_jax.errors import UserError
from ie_jax.models.networks import Latents, Networks, denoiser, encode_text
from ie_jax.models.shapes import unet_shapes
from ie_jax.training.config import RunConfig
from ie_jax.training.inputs import context_of, latent_shape, latents_of
from ie_jax.training.losses import squared
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.recipe import (
    Recipe,
    empty_caption,
    metadata,
    model_export,
    model_folder,
    networks_of,
)
from ie_jax.training.stage import Metrics, Stage, Tree
from ie_jax.training.stages.denoiser import errors_and_samples, two_calls
from ie_jax.weights.folder import read_blueprint, read_parts


@dataclass(frozen=True)
class GuidanceConfig:
    """How guidance is distilled."""

    w: tuple[float, float] = (0.0, 8.0)
    """The guidance scale is drawn from here."""
    caption_dropout: float = 0.1
    """Share of captions that are replaced by the empty one."""
    sample_w: float = 3.0
    """The guidance scale of the samples that validation shows."""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise UserError("guidance: caption_dropout must be from 0 to below 1")
        if not 0 <= self.w[0] <= self.w[1]:
            raise UserError("guidance: w must be two numbers that rise from 0 or above")


@struct.dataclass
class Frozen:
    """What is read and never changed."""

    vae: Tree
    text_encoder: Tree
    denoiser: Tree
    """The teacher."""
    empty: Int[Array, " l"]
    """Token ids of the empty caption."""


@struct.dataclass
class Example:
    """A batch with its draws."""

    latents: Latents
    noise: Latents
    t: Int[Array, " b"]
    ids: Int[Array, "b l"]
    w: Float[Array, " b"]


def prepare(
    config: GuidanceConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    keys: Array,
) -> Example:
    """Latents and every draw, without gradient; one key per picture."""
    shape = latent_shape(networks, batch)

    def drawn(key: Array) -> tuple[Array, ...]:
        posterior, noise, t, drop, w = jax.random.split(key, 5)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(t, (), 0, networks.architecture.betas[2]),
            jax.random.uniform(drop) < config.caption_dropout,
            jax.random.uniform(w, (), minval=config.w[0], maxval=config.w[1]),
        )

    posterior, noise, t, drop, w = jax.vmap(drawn)(keys)
    z = latents_of(networks, frozen.vae, batch, posterior)
    ids = jnp.where(drop[:, None], frozen.empty[None], batch["ids"])
    return lax.stop_gradient(Example(z, noise, t, ids, w))


def distillation(
    networks: Networks, params: Tree, frozen: Frozen, example: Example
) -> tuple[Float[Array, ""], Metrics]:
    """Squared distance of one call with w to the teacher's two, divided by (1 + w)², which is how
    fast the teacher's own error grows."""
    abar = jnp.asarray(cumulative_alphas(networks.architecture.betas))
    context = encode_text(networks, frozen.text_encoder, example.ids)
    empty = encode_text(networks, frozen.text_encoder, frozen.empty[None])
    z, t, w = add_noise(abar, example.latents, example.noise, example.t), example.t, example.w
    teacher = two_calls(networks, frozen.denoiser, context, empty, w)
    target = lax.stop_gradient(teacher(z, t, w))
    eps, _ = denoiser(networks, params)(z, t, w, context)
    return (squared(eps, target) / (1.0 + w) ** 2).mean(), {}


def evaluate(
    config: GuidanceConfig,
    networks: Networks,
    params: Tree,
    frozen: Frozen,
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The noise's squared error on held-out pictures, and samples for their captions."""
    context = context_of(networks, frozen.text_encoder, batch)
    eps = with_text(denoiser(networks, params), context)
    w = jnp.full(len(batch["ids"]), config.sample_w)
    return errors_and_samples(networks, eps, eps, w, frozen.vae, batch)


def build(run: RunConfig, config: GuidanceConfig, offline: bool, progress: bool) -> Recipe:
    """Trains the UNet that takes w. It starts as the denoiser, with w of no effect."""
    folder = model_folder(run, "guidance")
    blueprint = read_blueprint(folder)
    parts = read_parts(folder, ["vae", "text_encoder", "denoiser"])
    networks = networks_of(run, blueprint.architecture)
    shape = unet_shapes(networks.architecture.unet)["time_embedding"]["cond_proj"]["kernel"].shape
    without_effect = {"cond_proj": {"kernel": np.zeros(shape, np.float32)}}
    embedding = parts["denoiser"]["time_embedding"] | without_effect
    params = parts["denoiser"] | {"time_embedding": embedding}
    return Recipe(
        Stage(
            prepare=partial(prepare, config, networks),
            losses={"guidance": partial(distillation, networks)},
            optimiser=optimiser_of(run.optimiser, params),
            evaluate=partial(evaluate, config, networks),
        ),
        params,
        Frozen(parts["vae"], parts["text_encoder"], parts["denoiser"], empty_caption(blueprint)),
        networks.architecture,
        (blueprint.tokenizer,),
        model_export(folder, partial(metadata, run, "guidance"), lambda params: {"unet": params}),
    )
