"""Training of the autoencoder: images to latents and back."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from ie_jax.errors import UserError
from ie_jax.models.networks import Latents, Networks, vae
from ie_jax.models.pixels import Image, Pixels, from_uint8, to_uint8
from ie_jax.models.shapes import draw, vae_shapes
from ie_jax.training.config import RunConfig
from ie_jax.training.inputs import latent_shape
from ie_jax.training.losses import psnr, squared
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.recipe import (
    MODEL,
    Batches,
    Recipe,
    metadata,
    model_folder,
    networks_of,
    newest,
)
from ie_jax.training.stage import Metrics, Stage, State, Tree
from ie_jax.weights.folder import read_blueprint, read_parts, write_parts


@dataclass(frozen=True)
class AutoencoderConfig:
    """What the autoencoder is trained for."""

    kl_weight: float = 1e-5
    """Of the posterior's divergence from the standard normal, per latent number."""
    train: Literal["both", "decoder"] = "both"
    """decoder: the encoder stays as the model's folder has it, so that what was trained on its
    latents still fits. It needs --start model."""

    def __post_init__(self) -> None:
        if self.kl_weight < 0:
            raise UserError("autoencoder: kl_weight must not be negative")


DECODER = ("decoder", "post_quant_conv")
"""The parts of the tree that turn latents into pictures."""


@struct.dataclass
class Example:
    """Images in [-1, 1], and the noise of the posterior."""

    x: Image
    noise: Latents


def prepare(networks: Networks, frozen: Tree, batch: Mapping[str, Array], keys: Array) -> Example:
    """Images and a draw for each."""
    x = from_uint8(batch["pixels"])
    shape = latent_shape(networks, batch)
    return Example(x, jax.vmap(lambda key: jax.random.normal(key, shape))(keys))


def divergence(mean: Latents, std: Latents) -> Float[Array, " b"]:
    """KL(N(mean, std²) | N(0, 1)), as the mean over latent numbers."""
    terms = 0.5 * (mean**2 + std**2 - 1.0) - jnp.log(std)
    return jnp.mean(terms, axis=(1, 2, 3))


def reconstruction(
    config: AutoencoderConfig, networks: Networks, params: Tree, frozen: Tree, example: Example
) -> tuple[Float[Array, ""], Metrics]:
    """Mean squared error of the decoded sample, and the weighted divergence.

    Args:
        params: with `frozen` the whole tree.
    """
    model, variables = vae(networks), {"params": {**frozen, **params}}
    moments: tuple[Array, Array] = model.apply(variables, example.x, method="moments")  # type: ignore[assignment]
    mean, std = moments
    z = (mean + std * example.noise) * networks.architecture.vae.scaling_factor
    decoded: Array = model.apply(variables, z, method="decode")  # type: ignore[assignment]
    mse = squared(decoded, example.x).mean()
    kl = divergence(mean, std).mean()
    return mse + config.kl_weight * kl, {"mse": mse, "divergence": kl}


def evaluate(
    networks: Networks, params: Tree, frozen: Tree, batch: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """MSE on [-1, 1] and PSNR (dB) of the 8-bit picture through the posterior's mean."""
    x = from_uint8(batch["pixels"])
    decoded: Array = vae(networks).apply({"params": {**frozen, **params}}, x)  # type: ignore[assignment]
    result = to_uint8(decoded)
    mse = squared(from_uint8(result), x)
    return {"mse": mse, "psnr": psnr(mse)}, {"source": batch["pixels"], "decoded": result}


def normalised(params: Tree, mean: np.ndarray, std: np.ndarray) -> dict[str, Any]:
    """The same autoencoder, with latents shifted and scaled by channel: mean 0, deviation 1.

    The change is taken into the convolutions on either side of the latent, so that nothing else
    need know of it and the scaling factor is 1.

    Args:
        mean, std: of the latents (before the scaling factor) by channel.
    """
    quant, post = params["quant_conv"], params["post_quant_conv"]
    scale = np.concatenate([1 / std, np.ones_like(std)])
    shift = np.concatenate([-mean / std, -2 * np.log(std)])  # of mean and log-variance
    return {
        **params,
        "quant_conv": {"kernel": quant["kernel"] * scale, "bias": quant["bias"] * scale + shift},
        "post_quant_conv": {
            "kernel": post["kernel"] * std[:, None],
            "bias": post["bias"] + mean @ post["kernel"][0, 0],
        },
    }


def build(run: RunConfig, config: AutoencoderConfig, offline: bool, progress: bool) -> Recipe:
    """Trains the tree of the autoencoder, or only its decoder.

    Raises:
        UserError: only the decoder, of a model that is not trained.
    """
    alone = config.train == "decoder"
    if alone and run.start != "model":
        raise UserError("autoencoder.train decoder goes on from a trained encoder: --start model")
    folder = model_folder(run, "autoencoder")
    blueprint = read_blueprint(folder)
    arch = blueprint.architecture
    # Until it is known how large latents are, they are not scaled.
    scale = arch.vae.scaling_factor if alone else 1.0
    arch = replace(arch, vae=replace(arch.vae, scaling_factor=scale))
    networks = networks_of(run, arch)
    tree: dict[str, Any] = (
        read_parts(folder, ["vae"])["vae"]
        if run.start == "model"
        else draw(vae_shapes(arch.vae), run.seed)
    )
    params = {name: part for name, part in tree.items() if not alone or name in DECODER}
    frozen = {name: part for name, part in tree.items() if name not in params}

    def export(target: Path, state: State, best: bool, held_out: Batches) -> None:
        if best:
            return
        params = {**frozen, **jax.tree.map(np.asarray, newest(state))}
        if held_out is not None and not alone:

            @jax.jit
            def encode(params: Any, pixels: Pixels) -> Any:
                return vae(networks).apply({"params": params}, from_uint8(pixels), method="encode")

            z = np.concatenate([encode(params, batch["pixels"]) for batch in held_out])
            params = normalised(params, z.mean((0, 1, 2)), z.std((0, 1, 2)))
        facts = metadata(run, "autoencoder", state)
        write_parts(target / MODEL, folder, {"vae": params}, facts, scale)

    return Recipe(
        Stage(
            prepare=partial(prepare, networks),
            losses={"autoencoder": partial(reconstruction, config, networks)},
            optimiser=optimiser_of(run.optimiser, params),
            evaluate=partial(evaluate, networks),
        ),
        params,
        frozen,
        arch,
        (blueprint.tokenizer,),
        export,
    )
