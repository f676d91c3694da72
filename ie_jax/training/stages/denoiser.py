"""Training of the denoiser with its text encoder (method 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import add_noise
from ie_jax.diffusion.ddim import ddim
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.diffusion.trajectory import Denoiser, with_text
from ie_jax.errors import UserError
from ie_jax.models.networks import Latents, Networks, denoiser, encode_text
from ie_jax.models.pixels import to_uint8
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes
from ie_jax.models.unet import Context, guidance_embedding
from ie_jax.training.config import RunConfig
from ie_jax.training.inputs import decoded, latent_shape, latents_of
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
from ie_jax.weights.folder import read_blueprint, read_parts, unguided
from ie_jax.weights.layout import PARTS


@dataclass(frozen=True)
class DenoiserConfig:
    """How the denoiser is trained."""

    caption_dropout: float = 0.1
    """Share of captions that are replaced by the empty one, for classifier-free guidance."""
    sample_guidance: float = 3.0
    """w of the samples that validation shows."""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise UserError("denoiser: caption_dropout must be from 0 to below 1")


@struct.dataclass
class Frozen:
    """What is read and never changed."""

    vae: Tree
    empty: Int[Array, " l"]
    """Token ids of the empty caption."""


@struct.dataclass
class Example:
    """A batch with its draws."""

    latents: Latents
    noise: Latents
    t: Int[Array, " b"]
    ids: Int[Array, "b l"]


def prepare(
    config: DenoiserConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    keys: Array,
) -> Example:
    """Latents and every draw, without gradient; one key per picture."""
    shape = latent_shape(networks, batch)

    def drawn(key: Array) -> tuple[Array, ...]:
        posterior, noise, t, drop = jax.random.split(key, 4)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(t, (), 0, networks.architecture.betas[2]),
            jax.random.uniform(drop) < config.caption_dropout,
        )

    posterior, noise, t, drop = jax.vmap(drawn)(keys)
    z = latents_of(networks, frozen.vae, batch, posterior)
    ids = jnp.where(drop[:, None], frozen.empty[None], batch["ids"])
    return lax.stop_gradient(Example(z, noise, t, ids))


def denoising(
    networks: Networks, params: Tree, frozen: Frozen, example: Example
) -> tuple[Float[Array, ""], Metrics]:
    """Mean squared error of the predicted noise."""
    abar = jnp.asarray(cumulative_alphas(networks.architecture.betas))
    context = encode_text(networks, params["text_encoder"], example.ids)
    z = add_noise(abar, example.latents, example.noise, example.t)
    eps, _ = denoiser(networks, params["denoiser"])(z, example.t, jnp.zeros(z.shape[0]), context)
    return squared(eps, example.noise).mean(), {}


def guided(model: Denoiser, unconditional: Denoiser, w: Array) -> Denoiser:
    """cond + w (cond - uncond), in two calls."""

    def eps(z: Latents, t: Array, _: Array) -> Latents:
        zero = jnp.zeros(z.shape[0])
        with_caption, without = model(z, t, zero), unconditional(z, t, zero)
        return with_caption + w[:, None, None, None] * (with_caption - without)

    return eps


def two_calls(
    networks: Networks, base: Tree, context: Context, empty: Context, w: Array
) -> Denoiser:
    """The guided denoiser before distillation."""
    plain = replace(networks.architecture.unet, time_cond_proj_dim=None)
    networks = replace(networks, architecture=replace(networks.architecture, unet=plain))
    network = denoiser(networks, base)
    empty = jnp.broadcast_to(empty, context.shape)
    return guided(with_text(network, context), with_text(network, empty), w)


def held_out_draws(z: Latents, timesteps: int) -> tuple[Latents, Int[Array, " b"]]:
    """Noise and timesteps that depend on nothing but the number of pictures."""
    noise = jax.random.normal(jax.random.key(0), z.shape)
    return noise, jnp.arange(len(z)) * 37 % timesteps


def evaluate(
    config: DenoiserConfig,
    networks: Networks,
    params: Tree,
    frozen: Frozen,
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The noise's squared error on held-out pictures, and samples for their captions."""
    context = encode_text(networks, params["text_encoder"], batch["ids"])
    empty = encode_text(networks, params["text_encoder"], frozen.empty[None])
    w = jnp.full(len(context), config.sample_guidance)
    plain = with_text(denoiser(networks, params["denoiser"]), context)
    guided = two_calls(networks, params["denoiser"], context, empty, w)
    return errors_and_samples(networks, plain, guided, w, frozen.vae, batch)


def errors_and_samples(
    networks: Networks,
    plain: Denoiser,
    guided: Denoiser,
    w: Float[Array, " b"],
    vae_params: Tree,
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The squared error of the noise that `plain` predicts without guidance, and samples of
    `guided` with w."""
    abar = jnp.asarray(cumulative_alphas(networks.architecture.betas))
    z = latents_of(networks, vae_params, batch, jnp.zeros((1, *latent_shape(networks, batch))))
    noise, t = held_out_draws(z, len(abar))
    mse = squared(plain(add_noise(abar, z, noise, t), t, jnp.zeros(len(z))), noise)
    sample = decoded(networks, vae_params, ddim(guided, noise, abar, w, steps=25))
    return {"mse": mse}, {"source": batch["pixels"], "sample": to_uint8(sample)}


def trained(folder: Path) -> Tree:
    """The denoiser of a model folder and its text encoder. Where only the UNet after guidance
    distillation is there, as in published models: that one, held at w = 0."""
    if (folder / PARTS["denoiser"]).is_file():
        return read_parts(folder, ["denoiser", "text_encoder"])
    parts = read_parts(folder, ["unet", "text_encoder"])
    unet = parts["unet"]
    embedding = dict(unet["time_embedding"])
    projection, first = embedding.pop("cond_proj")["kernel"], embedding["linear_1"]
    # What w = 0 adds to the first layer's input becomes part of its bias.
    zero = np.asarray(guidance_embedding(jnp.zeros(1), len(projection)))[0]
    bias = first["bias"] + zero @ projection @ first["kernel"]
    plain = unet | {"time_embedding": embedding | {"linear_1": first | {"bias": bias}}}
    return {"denoiser": plain, "text_encoder": parts["text_encoder"]}


def build(run: RunConfig, config: DenoiserConfig, offline: bool, progress: bool) -> Recipe:
    """Trains {"denoiser", "text_encoder"} on the autoencoder's latents, without guidance."""
    folder = model_folder(run, "denoiser")
    blueprint, parts = read_blueprint(folder), read_parts(folder, ["vae"])
    arch = unguided(blueprint.architecture)
    params = (
        trained(folder)
        if run.start == "model"
        else {
            "denoiser": draw(unet_shapes(arch.unet), run.seed),
            "text_encoder": draw(text_encoder_shapes(arch.text), run.seed + 1),
        }
    )
    networks = networks_of(run, arch)
    return Recipe(
        Stage(
            prepare=partial(prepare, config, networks),
            losses={"denoiser": partial(denoising, networks)},
            optimiser=optimiser_of(run.optimiser, params),
            evaluate=partial(evaluate, config, networks),
        ),
        params,
        Frozen(parts["vae"], empty_caption(blueprint)),
        arch,
        (blueprint.tokenizer,),
        model_export(folder, partial(metadata, run, "denoiser")),
    )
