"""Inversion, reconstruction and guided editing as pure functions of weights and arrays.

    inversion = invert_images(models, weights, pixels, source_ids, noise, schedule)
    edit = edit_inversion(models, weights, inversion, target_ids, schedule, strength, match)

`models` is static: what the networks are and how they are run. Everything else is arrays. Each
function, and each composition of them, is one program under `jax.jit`, and differentiable. Bytes
have no gradient: `differentiable_edit` takes and gives images of floats, from pixels to pixels.

A batch is b images; an inversion is edited e times, each with its own prompt and strength.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt8

from ie_jax.devices import BATCH, LATER, WHOLE
from ie_jax.diffusion.consistency import Latents, consistency_step
from ie_jax.diffusion.schedule import Schedule
from ie_jax.diffusion.trajectory import generate, invert, per_step, with_text
from ie_jax.methods.guidance import StepRecord, Strength, guide
from ie_jax.methods.guiders import Guider
from ie_jax.methods.statistics import match_statistics, mean_std
from ie_jax.models.networks import Context, Network, Networks, denoiser, encode_text, vae
from ie_jax.models.pixels import Image, Pixels, as_image, to_uint8
from ie_jax.models.unet import Out
from ie_jax.weights.folder import Weights


@dataclass(frozen=True)
class Models(Networks):
    """What is fixed when a program of this module is compiled."""

    guiders: tuple[Guider, ...] = ()


@struct.dataclass
class Inversion:
    """An image as noise, with what editing needs to know about it."""

    latents: Float[Array, "n1 b h w c"]
    """The clean latent, and the latent after each step."""
    context: Context
    """The source prompt's embedding."""
    mean: Float[Array, " b"]
    std: Float[Array, " b"]
    """Statistics of the source's pixels, 0..255."""


@struct.dataclass
class Edit:
    """The result of editing."""

    pixels: UInt8[Array, "b e H W 3"]
    finite: Bool[Array, "b e"]
    """False where the networks gave NaN or infinity, which pixels cannot show."""
    latents: Float[Array, "n b e h w c"]
    """After each step."""
    record: StepRecord | None
    """Per step, leaves (n, ..., b, e); None without guiders."""


INVERSION = Inversion(latents=LATER, context=BATCH, mean=BATCH, std=BATCH)
"""Where the images of a batch are in an inversion."""


def places(models: Models) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Where the images of a batch are in arguments and results of this module's programs, by name,
    for `over_devices`."""
    by_guider: Any = P(None, *LATER)
    numbers = StepRecord(by_guider, *[LATER] * 5) if models.guiders else None
    edit = Edit(BATCH, BATCH, LATER, numbers)
    steps = Schedule(*[WHOLE] * 7)
    per_edit = replace(steps, guidance=BATCH), Strength(BATCH, BATCH, BATCH), WHOLE
    return {
        "invert": ((WHOLE, BATCH, BATCH, BATCH, steps), INVERSION),
        "reconstruct": ((WHOLE, INVERSION, steps, WHOLE), (BATCH, BATCH)),
        "edit": ((WHOLE, INVERSION, BATCH, *per_edit), edit),
        "invert and edit": ((WHOLE, BATCH, BATCH, BATCH, BATCH, *per_edit), (INVERSION, edit)),
    }


def encode_image(models: Networks, weights: Weights, pixels: Pixels | Image) -> Latents:
    """Bytes, or an image in [-1, 1], to the latent of the posterior mean."""
    variables = {"params": weights.vae}
    z: Latents = vae(models).apply(variables, as_image(pixels), method="encode")  # type: ignore[assignment]
    return z


def decode(models: Networks, weights: Weights, z: Latents) -> Image:
    """Latents to images, about in [-1, 1], not clipped."""
    x: Image = vae(models).apply({"params": weights.vae}, z, method="decode")  # type: ignore[assignment]
    return x


def decode_image(
    models: Networks, weights: Weights, z: Latents
) -> tuple[Pixels, Bool[Array, " b"]]:
    """Latents to pixels, and whether the autoencoder gave finite numbers."""
    x = decode(models, weights, z)
    return to_uint8(x), jnp.isfinite(x).all(axis=(1, 2, 3))


def contexts(models: Networks, weights: Weights, prompts: Array) -> Float[Array, "... l d"]:
    """Prompts' embeddings: of token ids (..., l), or themselves, (..., l, d)."""
    if jnp.issubdtype(prompts.dtype, jnp.floating):
        return prompts
    return encode_text(models, weights.text_encoder, prompts)


def invert_images(
    models: Models,
    weights: Weights,
    pixels: Pixels | Image,
    source: Int[Array, "b l"] | Context,
    noise: Latents,
    schedule: Schedule,
) -> Inversion:
    """Images to noise: encode, then the forward model under the source prompt.

    Args:
        pixels: bytes, or images in [-1, 1].
        source: token ids or embeddings.
    """
    context = contexts(models, weights, source)
    z = encode_image(models, weights, pixels)
    eps = with_text(denoiser(models, weights.unet, weights.forward), context)
    trajectory = invert(eps, z, noise, schedule, models.execution.unroll)
    latents = jnp.concatenate([z[None].astype(jnp.float32), trajectory.latents])
    return Inversion(latents, context, *mean_std(pixels))


def reconstruct(
    models: Models,
    weights: Weights,
    inversion: Inversion,
    schedule: Schedule,
    match: Float[Array, ""],
) -> tuple[Pixels, Bool[Array, " b"]]:
    """The image back from its noise: the source prompt, w = 0, no guiders. And whether it is
    finite."""
    eps = with_text(denoiser(models, weights.unet, weights.backward), inversion.context)
    plain = replace(schedule, guidance=jnp.zeros(schedule.steps))
    z = generate(eps, inversion.latents[-1], plain, models.execution.unroll).latents[-1]
    return finish(models, weights, z, inversion, match)


def finish(
    models: Networks, weights: Weights, z: Latents, inversion: Inversion, match: Float[Array, ""]
) -> tuple[Pixels, Bool[Array, " be"]]:
    """Decode, and where `match` is 1 take over the source's statistics. And whether the result is
    finite."""
    pixels, finite = decode_image(models, weights, z)
    edits = z.shape[0] // inversion.mean.shape[0]
    mean, std = (jnp.repeat(x, edits) for x in (inversion.mean, inversion.std))
    return jnp.where(match > 0, match_statistics(pixels, mean, std), pixels), finite


def inversion_passes(
    network: Network, inversion: Inversion, schedule: Schedule
) -> tuple[Float[Array, "n b h w c"], Out]:
    """The inversion pass of every step: z*_t under the source prompt, w = 0.

    It depends on no edit, so all steps go through the network as one batch, once for all edits.
    """
    reference = inversion.latents[:0:-1]
    n, b = reference.shape[:2]
    t = per_step(schedule.backward_t, b).reshape(-1)
    context = jnp.tile(inversion.context, (n, 1, 1))
    eps, out = network(reference.reshape(n * b, *reference.shape[2:]), t, jnp.zeros(n * b), context)
    return jax.tree.map(lambda x: x.reshape(n, b, *x.shape[1:]), (eps, out))


def guided_generation(
    models: Models,
    weights: Weights,
    inversion: Inversion,
    context: Context,
    schedule: Schedule,
    strength: Strength,
) -> tuple[Float[Array, "n be h w c"], StepRecord]:
    """Generation under the target prompts, guided towards the inversion (method 4).

    The target and the source pass of a step are one call of twice the batch.

    Args:
        context: m target prompts, a multiple of the images.
        schedule: guidance of shape (m, n).
        strength: scales of shape (m, g, n), bounds (m).
    """
    network = denoiser(models, weights.unet, weights.backward, ("features", "queries_keys"))
    m, b = context.shape[0], inversion.context.shape[0]

    def repeat(x: Array, axis: int = 0) -> Array:
        return jnp.repeat(x, m // b, axis=axis)

    def twice(x: Array) -> Array:
        return jnp.concatenate([x, x])

    reads_source = any(guider.reads_source for guider in models.guiders)
    source = repeat(inversion.context)
    t, s = (repeat(per_step(x, b), 1) for x in (schedule.backward_t, schedule.backward_s))
    reference = inversion_passes(network, inversion, schedule)

    def step(z: Latents, at: Any) -> tuple[Latents, tuple[Latents, StepRecord]]:
        t, s, w, scales, reference = at
        eps_inv, out_inv = jax.tree.map(repeat, reference)

        def passes(z: Latents) -> tuple[Float[Array, "g be"], Latents]:
            if reads_source:
                both = jnp.concatenate([context, source])
                eps, out = network(twice(z), twice(t), jnp.concatenate([w, 0 * w]), both)
                out_trg, out_src = (
                    jax.tree.map(lambda x, h=h: jnp.split(x, 2)[h], out) for h in (0, 1)
                )
            else:
                eps, out_trg = network(z, t, w, context)
                out_src = {}
            seen = (out_src, out_inv, out_trg, models.execution.attention == "by_head")
            energies = [guider.energy(*seen) for guider in models.guiders]
            return jnp.stack(energies), eps[:m]

        eps, record = guide(passes, z, eps_inv, scales, strength.lower, strength.upper)
        z = consistency_step(schedule.abar, z, eps, t, s)
        return z, (z, record)

    at = (t, s, schedule.guidance.T, jnp.transpose(strength.scales, (2, 1, 0)), reference)
    start = repeat(inversion.latents[-1])
    _, (latents, record) = lax.scan(step, start, at, unroll=models.execution.unroll)
    return latents, record


def edit_latents(
    models: Models,
    weights: Weights,
    inversion: Inversion,
    target: Int[Array, "b e l"] | Float[Array, "b e l d"],
    schedule: Schedule,
    strength: Strength,
) -> tuple[Float[Array, "n be h w c"], StepRecord | None]:
    """Generate from the inverted noise under target prompts.

    Args:
        target: token ids or embeddings.
        schedule: guidance broadcasts to (b, e, n).
        strength: scales broadcast to (b, e, g, n), bounds to (b, e).

    Returns:
        latents after each step, and the record of guidance, see `Edit`.
    """
    b, e = target.shape[:2]
    n, g = schedule.steps, len(models.guiders)

    def flat(x: Array, *trailing: int) -> Array:
        return jnp.broadcast_to(x, (b, e, *trailing)).reshape(b * e, *trailing)

    context = contexts(models, weights, target)
    context = context.reshape(b * e, *context.shape[2:])
    schedule = replace(schedule, guidance=flat(schedule.guidance, n))
    if models.guiders:
        strength = Strength(flat(strength.scales, g, n), flat(strength.lower), flat(strength.upper))
        latents, record = guided_generation(models, weights, inversion, context, schedule, strength)
        return latents, jax.tree.map(lambda x: x.reshape(*x.shape[:-1], b, e), record)
    eps = with_text(denoiser(models, weights.unet, weights.backward), context)
    per_edit = replace(
        schedule,
        backward_t=jnp.repeat(jnp.broadcast_to(schedule.backward_t, (b, n)), e, axis=0),
        backward_s=jnp.repeat(jnp.broadcast_to(schedule.backward_s, (b, n)), e, axis=0),
    )
    start = jnp.repeat(inversion.latents[-1], e, axis=0)
    return generate(eps, start, per_edit, models.execution.unroll).latents, None


def edit_inversion(
    models: Models,
    weights: Weights,
    inversion: Inversion,
    target_ids: Int[Array, "b e l"],
    schedule: Schedule,
    strength: Strength,
    match: Float[Array, ""],
) -> Edit:
    """Generate from the inverted noise under target prompts, and decode.

    Args:
        schedule, strength: see `edit_latents`.
        match: 1 to give the result the source's statistics, 0 not to.
    """
    b, e = target_ids.shape[:2]
    latents, record = edit_latents(models, weights, inversion, target_ids, schedule, strength)
    pixels, finite = finish(models, weights, latents[-1], inversion, match)
    return Edit(
        pixels.reshape(b, e, *pixels.shape[1:]),
        finite.reshape(b, e),
        latents.reshape(-1, b, e, *latents.shape[2:]),
        record,
    )


def edit_images(
    models: Models,
    weights: Weights,
    pixels: Pixels,
    source_ids: Int[Array, "b l"],
    target_ids: Int[Array, "b e l"],
    noise: Latents,
    schedule: Schedule,
    strength: Strength,
    match: Float[Array, ""],
) -> tuple[Inversion, Edit]:
    """The whole edit as one program: encode, invert, generate (guided), decode."""
    inversion = invert_images(models, weights, pixels, source_ids, noise, schedule)
    # The backward model's weights are merged after the forward model's are gone, not beside them.
    backward, inversion = lax.optimization_barrier((weights.backward, inversion))
    weights = replace(weights, backward=backward)
    return inversion, edit_inversion(
        models, weights, inversion, target_ids, schedule, strength, match
    )


def differentiable_edit(
    models: Models,
    weights: Weights,
    image: Image,
    source: Int[Array, "b l"] | Context,
    target: Int[Array, "b e l"] | Float[Array, "b e l d"],
    noise: Latents,
    schedule: Schedule,
    strength: Strength,
) -> Float[Array, "b e H W 3"]:
    """The whole edit with gradients from the edited pixels to source pixels, start noise, prompts'
    embeddings, LoRAs and the strength of guiders. (That to the guidance scale w is right, but of no
    use: the network sees sines of 1000 w.)

    Args:
        image: in [-1, 1].
        source, target: token ids or embeddings.

    Returns:
        edited images, about in [-1, 1], not clipped, without the source's statistics.
    """
    inversion = invert_images(models, weights, image, source, noise, schedule)
    latents, _ = edit_latents(models, weights, inversion, target, schedule, strength)
    edited = decode(models, weights, latents[-1])
    return edited.reshape(*target.shape[:2], *edited.shape[1:])
