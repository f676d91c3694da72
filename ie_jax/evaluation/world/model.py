"""A model of the embedded world with its variants and its judges, as evaluation uses it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.data.world.scenes import SIZE
from ie_jax.diffusion.ddim import ddim, ddim_inversion
from ie_jax.diffusion.schedule import Schedule, cumulative_alphas, make_schedule
from ie_jax.diffusion.trajectory import generate, with_text
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor, placed
from ie_jax.errors import UserError
from ie_jax.methods.guidance import Strength
from ie_jax.methods.inverse_and_edit import Inversion, Models, decode_image, encode_image
from ie_jax.models.lpips import lpips
from ie_jax.models.networks import denoiser, encode_text
from ie_jax.models.pixels import Pixels, from_uint8
from ie_jax.weights import embedded
from ie_jax.weights.facts import Facts, facts_of
from ie_jax.weights.folder import Weights
from ie_jax.weights.judges import CLASSIFIER, PERCEPTUAL, load_classifier, load_lpips
from ie_jax.weights.layout import PARTS
from ie_jax.weights.load import load_pipeline, use_compilation_cache
from ie_jax.weights.lora_files import read_lora

ICD, OURS = "iCD", "ours"
ABLATION = "ablation-", "-forward.safetensors"
"""Before and after the name of an ablation in its file's."""


@dataclass(frozen=True)
class Pair:
    """A forward model with the common backward model, and how inversion starts."""

    method: str
    """iCD, ours, or an ablation's name."""
    start_timestep: int
    start_noise: bool


@dataclass(frozen=True)
class Model:
    """Editors, forward models and judges of one model folder."""

    plain: Editor
    """Without guiders; holds the programs and weights that inversion and reconstruction use."""
    guided: Editor
    forwards: Mapping[str, Any]
    """LoRA of the forward model by method, on the device."""
    files: Mapping[str, str]
    """File name of each."""
    facts: Facts
    """What iCD's pair was trained for."""
    starts: Mapping[str, tuple[int, bool]]
    """Where inversion starts by each forward model, and whether with noise."""
    perceptual: Any
    """The network of the perceptual distance."""
    classifier: Any

    @property
    def models(self) -> Models:
        """What the networks are, without guiders."""
        return self.plain.models

    @property
    def published(self) -> dict[str, Pair]:
        """The two methods with the start that each was trained for."""
        return {name: Pair(name, *self.starts[name]) for name in (ICD, OURS)}

    @property
    def pairs(self) -> list[Pair]:
        """All that are reconstructed with."""
        own = [(name, start) for name, (start, _) in self.starts.items()]
        starts = [own[0], (ICD, 0), *own[1:]]
        return [Pair(*at, noise) for at in dict.fromkeys(starts) for noise in (True, False)]

    def weights(self, method: str) -> Weights:
        """With a method's forward model."""
        return replace(self.plain.weights, forward=self.forwards[method])

    def schedule(self, pair: Pair, guidance: np.ndarray | None = None) -> Schedule:
        """A pair's steps; w = 0, or guidance broadcasting to (b, e, n)."""
        boundaries = self.facts.boundaries
        w = np.zeros(len(boundaries)) if guidance is None else guidance
        betas = self.models.architecture.betas
        return make_schedule(boundaries, pair.start_timestep, w, pair.start_noise, betas)


def model_folder(name: str) -> Path:
    """The folder of a model by name or path.

    Raises:
        UserError: there is none.
    """
    folder = embedded.folder_of(name)
    if not folder.is_dir():
        names = ", ".join(embedded.EMBEDDED)
        raise UserError(f"no model or folder named {name!r}: give {names}, or a model folder")
    return folder


def forward_files(folder: Path) -> dict[str, str]:
    """File names of the forward models by method: iCD, ours, then all ablations."""
    before, after = ABLATION
    ablations = {
        f"ablation: {path.name.removeprefix(before).removesuffix(after)}": path.name
        for path in sorted(folder.glob(f"{before}*{after}"))
    }
    return {ICD: PARTS["forward"], OURS: PARTS["fine_tuned"], **ablations}


def load_model(name: str, config: EditConfig) -> Model:
    """A model folder, ready to be evaluated.

    Args:
        name: of an embedded model, or a folder.
        config: the guided editor's.

    Raises:
        UserError: a file is missing, damaged or does not fit, or the config does not.
    """
    folder, forward, backward = model_folder(name), PARTS["forward"], PARTS["backward"]
    # The judges are read first: they are small, and what lacks them cannot be evaluated.
    perceptual = load_lpips(str(folder / PERCEPTUAL))
    classifier = load_classifier(folder / CLASSIFIER)
    use_compilation_cache()
    pipeline = load_pipeline(name, forward, backward, progress=False)
    arch = pipeline.architecture
    if SIZE % arch.latent_factor:
        raise UserError(f"{folder}: its networks do not take pictures of {SIZE} pixels")
    files = forward_files(folder)
    guided = Editor(pipeline, config)
    plain = Editor(pipeline, replace(config, guiders=()))
    forwards = {
        method: placed(
            replace(pipeline.weights, forward=read_lora(folder / file, pipeline.weights.unet)),
            config,
            plain.mesh,
        ).forward
        for method, file in files.items()
    }
    facts = {name: facts_of(folder / file, folder / backward) for name, file in files.items()}
    starts = {name: (x.start_timestep, x.start_noise) for name, x in facts.items()}
    judges = (jax.tree.map(jnp.asarray, x) for x in (perceptual, classifier))
    return Model(plain, guided, forwards, files, pipeline.facts, starts, *judges)


def invert(
    model: Model, pair: Pair, pixels: np.ndarray, ids: np.ndarray, noise: np.ndarray
) -> Inversion:
    """A batch to noise."""
    inversion: Inversion = model.plain.programs["invert"](
        model.weights(pair.method), pixels, ids, jnp.asarray(noise), model.schedule(pair)
    )
    return inversion


def reconstruct(
    model: Model, pair: Pair, pixels: np.ndarray, ids: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A batch to noise and back, and the noise's deviation: uint8 (b, h, w, 3) and (b)."""
    inversion = invert(model, pair, pixels, ids, noise)
    result, _ = model.plain.programs["reconstruct"](
        model.weights(pair.method), inversion, model.schedule(pair), jnp.float32(0)
    )
    return np.asarray(result), np.asarray(deviation(inversion.latents[-1]))


def edit(
    model: Model,
    pair: Pair,
    guided: bool,
    pixels: np.ndarray,
    ids: np.ndarray,
    noise: np.ndarray,
    targets: np.ndarray,
    guidance: np.ndarray,
    strength: Strength,
) -> tuple[np.ndarray, np.ndarray]:
    """A batch inverted once and edited e times.

    Args:
        targets: token ids (b, e, n).
        guidance, strength: see `ie_jax.methods.inverse_and_edit.edit_inversion`.

    Returns:
        uint8 (b, e, h, w, 3), and whether the networks gave finite numbers, bool (b, e).
    """
    editor = model.guided if guided else model.plain
    inversion = invert(model, pair, pixels, ids, noise)
    match = jnp.float32(editor.config.match_statistics)
    schedule = model.schedule(pair, guidance)
    result = editor.programs["edit"](editor.weights, inversion, targets, schedule, strength, match)
    return np.asarray(result.pixels), np.asarray(result.finite)


def deviation(z: jax.Array) -> jax.Array:
    """Standard deviation of each latent: (b)."""
    return jnp.std(z, axis=(1, 2, 3))


@partial(jax.jit, static_argnums=0)
def autoencode(models: Models, weights: Weights, pixels: Pixels) -> Pixels:
    """What the autoencoder alone makes of a batch."""
    return decode_image(models, weights, encode_image(models, weights, pixels))[0]


@partial(jax.jit, static_argnums=(0, 1))
def teacher_reconstruct(
    models: Models, steps: int, weights: Weights, pixels: Pixels, ids: jax.Array
) -> tuple[Pixels, jax.Array]:
    """DDIM inversion and generation of the guidance-distilled teacher, w = 0, and the noise's
    deviation."""
    context = encode_text(models, weights.text_encoder, ids)
    eps = with_text(denoiser(models, weights.unet), context)
    abar = jnp.asarray(cumulative_alphas(models.architecture.betas))
    noise = ddim_inversion(eps, encode_image(models, weights, pixels), abar, steps)
    z = ddim(eps, noise, abar, jnp.zeros(len(noise)), steps)
    return decode_image(models, weights, z)[0], deviation(noise)


@partial(jax.jit, static_argnums=(0, 1))
def teacher_sample(
    models: Models, steps: int, weights: Weights, ids: jax.Array, noise: jax.Array, w: jax.Array
) -> Pixels:
    """Pictures of captions, from noise, by DDIM of the guidance-distilled teacher."""
    context = encode_text(models, weights.text_encoder, ids)
    eps = with_text(denoiser(models, weights.unet), context)
    abar = jnp.asarray(cumulative_alphas(models.architecture.betas))
    z = ddim(eps, noise, abar, jnp.broadcast_to(w, (len(noise),)), steps)
    return decode_image(models, weights, z)[0]


@partial(jax.jit, static_argnums=0)
def backward_sample(
    models: Models, weights: Weights, ids: jax.Array, noise: jax.Array, schedule: Schedule
) -> Pixels:
    """Pictures of captions, from noise, by the backward model."""
    context = encode_text(models, weights.text_encoder, ids)
    eps = with_text(denoiser(models, weights.unet, weights.backward), context)
    z = generate(eps, noise, schedule).latents[-1]
    return decode_image(models, weights, z)[0]


@jax.jit
def perceptual_distance(params: Any, pixels: Pixels, other: Pixels) -> jax.Array:
    """LPIPS of pairs of pictures: (b)."""
    return lpips(params, from_uint8(pixels), from_uint8(other))


def start_noise(model: Model, seed: int, numbers: Sequence[int]) -> np.ndarray:
    """Standard normal noise for scenes, of each the same whatever batch it is in: float32
    (b, h, w, c)."""
    shape = model.models.architecture.vae.latent_shape(SIZE, SIZE)
    # The third number keeps the noise apart from the draws of scenes and edits.
    draws = (np.random.default_rng((seed, i, 99)).standard_normal(shape) for i in numbers)
    return np.stack([x.astype(np.float32) for x in draws])
