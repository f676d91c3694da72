"""Inversion, reconstruction and guided editing as pure functions of weights and arrays.

    inversion = invert_images(models, weights, pixels, source, noise, schedule)
    edit = edit_inversion(models, weights, inversion, target, schedule, strength, match)

`models` is static: what the networks are and how they are run. Everything else is arrays. Each
function, and each composition of them, is one program under `jax.jit`, and differentiable. Bytes
have no gradient: `differentiable_edit` takes and gives images of floats, from pixels to pixels.

A batch is b images; an inversion is edited e times, each with its own prompt and strength.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, UInt8

from ie_jax.devices import BATCH, LATER, WHOLE
from ie_jax.diffusion.consistency import Latents, consistency_step
from ie_jax.diffusion.schedule import Schedule
from ie_jax.diffusion.trajectory import generate, invert, per_step, with_text
from ie_jax.methods.cfg import pair
from ie_jax.methods.guidance import StepRecord, Strength, for_all_edits, guide
from ie_jax.methods.guiders import Guider
from ie_jax.methods.masks import Mask, keep_outside, keep_pixels, per_edit
from ie_jax.methods.statistics import match_statistics, mean_std
from ie_jax.models.networks import (
    Network,
    Networks,
    Prompts,
    Tokens,
    denoiser,
    encode_text,
    encode_two,
    vae,
)
from ie_jax.models.pixels import Image, Pixels, as_image, to_uint8
from ie_jax.models.unet import AnyContext, Conditions, Out
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
    context: AnyContext
    """The source prompt's embedding."""
    pixels: Pixels | Image
    """The image itself."""


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
    mask: Float[Array, "b e H W"] | None = None
    """1 where pixels could change; None without a mask."""


INVERSION = Inversion(latents=LATER, context=BATCH, pixels=BATCH)
"""Where the images of a batch are in an inversion."""


def places(models: Models) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Where the images of a batch are in arguments and results of this module's programs, by name,
    for `over_devices`."""
    by_guider: Any = P(None, *LATER)
    numbers = StepRecord(by_guider, *[LATER] * 5) if models.guiders else None
    edit = Edit(BATCH, BATCH, LATER, numbers, BATCH)
    steps = Schedule(*[WHOLE] * 7)
    each = replace(steps, guidance=BATCH), Strength(*[BATCH] * 4), WHOLE, BATCH
    return {
        "invert": ((WHOLE, BATCH, BATCH, BATCH, steps), INVERSION),
        "reconstruct": ((WHOLE, INVERSION, steps, WHOLE), (BATCH, BATCH)),
        "edit": ((WHOLE, INVERSION, BATCH, *each), edit),
        "invert and edit": ((WHOLE, *[BATCH] * 4, *each), (INVERSION, edit)),
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


def contexts(models: Networks, weights: Weights, prompts: Prompts | Any) -> Any:
    """What the UNet is told of prompts: made of their tokens; embeddings stay themselves."""
    if isinstance(prompts, Tokens):
        return encode_two(models, weights.two_texts, prompts)
    if isinstance(prompts, Conditions) or jnp.issubdtype(prompts.dtype, jnp.floating):
        return prompts
    return encode_text(models, weights.text_encoder, prompts)


def between(source: Any, aim: Any, amount: Float[Array, " be"]) -> Any:
    """Embeddings, for each edit so much of the way from the source's to the target's."""

    def each(source: Array, aim: Array) -> Array:
        share = amount.reshape(-1, *[1] * (source.ndim - 1))
        return ((1 - share) * source + share * aim.reshape(source.shape)).astype(source.dtype)

    return jax.tree.map(each, source, aim)


def leading(tree: Any, axes: int = 1) -> Any:
    """The first axes, which all leaves of prompts or embeddings have in common."""
    return jax.tree.leaves(tree)[0].shape[:axes]


def invert_images(
    models: Models,
    weights: Weights,
    pixels: Pixels | Image,
    source: Prompts | AnyContext,
    noise: Latents,
    schedule: Schedule,
) -> Inversion:
    """Images to noise: encode, then the forward model under the source prompt.

    Args:
        pixels: bytes, or images in [-1, 1].
        source: tokens or embeddings.
    """
    context = contexts(models, weights, source)
    z = encode_image(models, weights, pixels)
    eps = with_text(denoiser(models, weights.unet, weights.forward), context)
    trajectory = invert(eps, z, noise, schedule, models.execution.unroll)
    latents = jnp.concatenate([z[None].astype(jnp.float32), trajectory.latents])
    return Inversion(latents, context, pixels)


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
    return finish(models, weights, z, inversion.pixels, match)


def finish(
    models: Networks,
    weights: Weights,
    z: Float[Array, "be h w c"],
    source: Pixels | Image,
    match: Float[Array, ""] | Float[Array, " be"],
) -> tuple[UInt8[Array, "be H W 3"], Bool[Array, " be"]]:
    """Decode, and where `match` is 1 take over the source's statistics. And whether the result is
    finite."""
    pixels, finite = decode_image(models, weights, z)
    mean, std = (jnp.repeat(x, len(z) // len(source)) for x in mean_std(source))
    matched = jnp.reshape(match, (-1, 1, 1, 1)) > 0
    return jnp.where(matched, match_statistics(pixels, mean, std), pixels), finite


def inversion_passes(
    network: Network, inversion: Inversion, schedule: Schedule
) -> tuple[Float[Array, "n b h w c"], Out]:
    """The inversion pass of every step: z*_t under the source prompt, w = 0.

    It depends on no edit, so all steps go through the network as one batch, once for all edits.
    """
    reference = inversion.latents[:0:-1]
    n, b = reference.shape[:2]
    t = per_step(schedule.backward_t, b).reshape(-1)
    context = jax.tree.map(lambda x: jnp.tile(x, (n, *[1] * (x.ndim - 1))), inversion.context)
    eps, out = network(reference.reshape(n * b, *reference.shape[2:]), t, jnp.zeros(n * b), context)
    return jax.tree.map(lambda x: x.reshape(n, b, *x.shape[1:]), (eps, out))


Predict = Callable[..., tuple[Latents, StepRecord | None]]
"""(z, t, w, scales, inversion pass of this step) -> the noise prediction, and what guidance did."""


def plain_prediction(network: Network, context: AnyContext) -> Predict:
    """The target pass alone."""
    return lambda z, t, w, *_: (network(z, t, w, context)[0], None)


def guided_prediction(
    models: Models,
    network: Network,
    context: AnyContext,
    source: AnyContext,
    strength: Strength,
) -> Predict:
    """The target pass, guided towards the inversion (method 4).

    The target and the source pass of a step are one call of twice the batch.

    Args:
        context, source: every edit's target and source prompt.
        strength: bounds (be).
    """
    reads_source = any(guider.reads_source for guider in models.guiders)
    (edits,) = leading(context)

    def twice(x: Array) -> Array:
        return jnp.concatenate([x, x])

    def predict(z: Latents, t: Array, w: Array, scales: Array, inverted: Any) -> Any:
        eps_inv, out_inv = jax.tree.map(lambda x: jnp.repeat(x, edits // len(x), axis=0), inverted)

        def passes(z: Latents) -> tuple[Float[Array, "g be"], Latents]:
            if reads_source:
                both = pair(context, source)
                eps, out = network(twice(z), twice(t), jnp.concatenate([w, 0 * w]), both)
                out_trg, out_src = (
                    jax.tree.map(lambda x, h=h: jnp.split(x, 2)[h], out) for h in (0, 1)
                )
            else:
                eps, out_trg = network(z, t, w, context)
                out_src = {}
            seen = (out_src, out_inv, out_trg, models.execution.attention == "by_head")
            energies = [guider.energy(*seen) for guider in models.guiders]
            return jnp.stack(energies), eps[:edits]

        return guide(passes, z, eps_inv, scales, strength.lower, strength.upper)

    return predict


class Generation(NamedTuple):
    """What editing leaves, be edits in all."""

    latents: Float[Array, "n be h w c"]
    """After each step."""
    record: StepRecord | None
    away: Float[Array, "be h w"]
    """How far the edit left the inversion, see `masks.keep_outside`; 0 without a mask."""


def generation(
    models: Models,
    weights: Weights,
    inversion: Inversion,
    target: Prompts | Any,
    schedule: Schedule,
    strength: Strength,
    mask: Mask | None = None,
) -> Generation:
    """Generate from the inverted noise under target prompts.

    Args:
        target: tokens or embeddings (b, e, ...).
        schedule: guidance broadcasts to (b, e, n).
        strength: scales broadcast to (b, e, g, n), the others to (b, e).
        mask: leaves (be, ...), see `masks.per_edit`.
    """
    b, e = leading(target, 2)
    n, g = schedule.steps, len(models.guiders)

    def repeat(x: Array, axis: int = 0) -> Array:
        return jnp.repeat(x, e, axis=axis)

    # Without guiders nobody need give their scales a shape.
    scales = for_all_edits(strength.scales, (b, e), g, n) if g else jnp.zeros((b * e, 0, n))
    others = strength.lower, strength.upper, strength.amount
    strength = Strength(scales, *(for_all_edits(x, (b, e)) for x in others))
    source = jax.tree.map(repeat, inversion.context)
    context = between(source, contexts(models, weights, target), strength.amount)
    w = for_all_edits(schedule.guidance, (b, e), n) * strength.amount[:, None]
    t, s = (repeat(per_step(x, b), 1) for x in (schedule.backward_t, schedule.backward_s))

    backward = weights.unet, weights.backward
    if not models.guiders:
        predict, passes = plain_prediction(denoiser(models, *backward), context), None
    else:
        network = denoiser(models, *backward, ("features", "queries_keys"))
        predict = guided_prediction(models, network, context, source, strength)
        passes = inversion_passes(network, inversion, schedule)

    def step(carry: tuple[Latents, Array], at: Any) -> Any:
        (z, away), (t, s, w, scales, passes, kept) = carry, at
        eps, record = predict(z, t, w, scales, passes)
        z = consistency_step(schedule.abar, z, eps, t, s)
        if mask is not None:
            z, away = keep_outside(z, repeat(kept), mask, away)
        return (z, away), (z, record)

    # What the inversion went through at the boundaries that the steps arrive at.
    kept = inversion.latents[-2::-1]
    at = (t, s, w.T, jnp.transpose(strength.scales, (2, 1, 0)), passes, kept)
    z = repeat(inversion.latents[-1])
    start = z, jnp.zeros(z.shape[:3])
    (_, away), (latents, record) = lax.scan(step, start, at, unroll=models.execution.unroll)
    return Generation(latents, record, away)


def edit_inversion(
    models: Models,
    weights: Weights,
    inversion: Inversion,
    target: Prompts,
    schedule: Schedule,
    strength: Strength,
    match: Float[Array, ""],
    mask: Mask | None = None,
) -> Edit:
    """Generate from the inverted noise under target prompts, and decode.

    Args:
        schedule, strength: see `generation`.
        mask: `drawn` broadcasts to (b, e, H, W), its other leaves to (b, e).
        match: 1 to give the result the source's statistics, where no mask keeps its pixels.
    """
    b, e = leading(target, 2)
    area = None
    if mask is not None:
        mask = per_edit(mask, b, e)
        # Where the source's pixels stay beside the edit's, these are left as they are.
        match = match * (mask.drawn.min(axis=(1, 2)) * (1 - mask.found))
    made = generation(models, weights, inversion, target, schedule, strength, mask)
    pixels, finite = finish(models, weights, made.latents[-1], inversion.pixels, match)
    if mask is not None:
        source = jnp.repeat(inversion.pixels, e, axis=0)
        pixels, area = keep_pixels(pixels, source, mask, made.away)
    return Edit(
        pixels.reshape(b, e, *pixels.shape[1:]),
        finite.reshape(b, e),
        made.latents.reshape(-1, b, e, *made.latents.shape[2:]),
        jax.tree.map(lambda x: x.reshape(*x.shape[:-1], b, e), made.record),
        None if area is None else area.reshape(b, e, *area.shape[1:]),
    )


def edit_images(
    models: Models,
    weights: Weights,
    pixels: Pixels,
    source: Prompts,
    target: Prompts,
    noise: Latents,
    schedule: Schedule,
    strength: Strength,
    match: Float[Array, ""],
    mask: Mask | None = None,
) -> tuple[Inversion, Edit]:
    """The whole edit as one program: encode, invert, generate (guided), decode."""
    inversion = invert_images(models, weights, pixels, source, noise, schedule)
    # The backward model's weights are merged after the forward model's are gone, not beside them.
    backward, inversion = lax.optimization_barrier((weights.backward, inversion))
    weights = replace(weights, backward=backward)
    return inversion, edit_inversion(
        models, weights, inversion, target, schedule, strength, match, mask
    )


def differentiable_edit(
    models: Models,
    weights: Weights,
    image: Image,
    source: Prompts | AnyContext,
    target: Prompts | Any,
    noise: Latents,
    schedule: Schedule,
    strength: Strength,
    mask: Mask | None = None,
) -> Float[Array, "b e H W 3"]:
    """The whole edit with gradients from the edited pixels to source pixels, start noise, prompts'
    embeddings, LoRAs, strength and drawn mask. (That to the guidance scale w is right, but of no
    use: the network sees sines of 1000 w.)

    Args:
        image: in [-1, 1].
        source, target: tokens or embeddings, (b, ...) and (b, e, ...).

    Returns:
        edited images, about in [-1, 1], not clipped, without the source's statistics.
    """
    b, e = leading(target, 2)
    mask = None if mask is None else per_edit(mask, b, e)
    inversion = invert_images(models, weights, image, source, noise, schedule)
    made = generation(models, weights, inversion, target, schedule, strength, mask)
    edited = decode(models, weights, made.latents[-1])
    if mask is not None:
        edited, _ = keep_pixels(edited, jnp.repeat(image, e, axis=0), mask, made.away)
    return edited.reshape(b, e, *edited.shape[1:])
