"""Cycle-consistency fine-tuning of the forward model's LoRA (method 3): the paper's contribution.

Three losses: the cycle (an image inverted and generated again should be the image), preservation
and distillation (the forward model should remain what it was distilled to be).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.schedule import BOUNDARIES, Schedule, make_schedule
from ie_jax.diffusion.trajectory import (
    AnyDenoiser,
    Chain,
    per_step,
    there_and_back,
    walk_all,
)
from ie_jax.errors import UserError
from ie_jax.models.execution import DType, dtype
from ie_jax.models.lpips import lpips
from ie_jax.models.networks import Context, Latents, Networks, any_denoiser, encode_text, vae
from ie_jax.models.pixels import Image, from_uint8, to_uint8
from ie_jax.training.losses import (
    BACKWARD,
    FORWARD,
    Aim,
    Distance,
    distillation_aim,
    distillation_lead,
    forward_grid,
    noised,
    patchwise,
    preservation_aim,
    preservation_lead,
    pseudo_huber,
    psnr,
    squared,
)
from ie_jax.training.stage import Loss, Metrics, Stage, Tree

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
    """What distillation and preservation compare latents by."""
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
    """Noise the latent at the start of the cycle's inversion, as editing does by default."""
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
        if min(weights) < 0 or max(weights) == 0:
            raise UserError("the weights of the losses must not be negative, nor all be 0")
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
    """None where batches bring text embeddings."""
    perceptual: Tree | None
    """LPIPS; None where the cycle loss compares latents."""
    schedule: Schedule


@struct.dataclass
class Example:
    """A batch as the losses see it: what they share, and every random draw."""

    latents: Latents
    """A sample of the posterior, scaled."""
    context: Context
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


def latents_and_target(
    config: CycleConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    noise: Latents,
) -> tuple[Latents, Image | None]:
    """A sample of the posterior, scaled, and LPIPS' target; from pixels, or from the posterior of a
    cached batch."""
    model, variables = vae(networks), {"params": frozen.vae}
    if "mean" in batch:
        mean, std = batch["mean"].astype(jnp.float32), batch["std"].astype(jnp.float32)
    else:
        x = from_uint8(batch["pixels"])
        moments: tuple[Array, Array] = model.apply(variables, x, method="moments")  # type: ignore[assignment]
        mean, std = moments
    z = (mean + std * noise) * networks.architecture.vae.scaling_factor
    if config.distance != "lpips" or not config.cycle_weight:
        return z, None
    if config.target == "image":
        return z, from_uint8(batch["pixels"])
    decoded: Array = model.apply(variables, z, method="decode")  # type: ignore[assignment]
    return z, decoded


def context_of(networks: Networks, text: Tree | None, batch: Mapping[str, Array]) -> Context:
    """Text embeddings of a batch: cached, or of its ids."""
    if "context" in batch:
        return batch["context"].astype(dtype(networks.precision.output))
    return encode_text(networks, text, batch["ids"])


def prepare(
    config: CycleConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    keys: Array,
) -> Example:
    """What the losses of a batch share, without gradient; one key per image.

    Args:
        batch: `pixels` uint8 (b, H, W, 3) and `ids` (b, n); or, cached, `mean` and `std` of the
            posterior (b, h, w, c), `context` (b, n, c) and, for the target `image`, `pixels`.
    """
    b, n = keys.shape[0], frozen.schedule.steps
    if "mean" in batch:
        shape = batch["mean"].shape[1:]
    else:
        height, width = (x // networks.architecture.vae.factor for x in batch["pixels"].shape[1:3])
        shape = (height, width, networks.architecture.vae.latent_channels)

    def draw(key: Array) -> tuple[Array, ...]:
        posterior, noise, index, segment = jax.random.split(key, 4)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(index, (), 0, config.grid_steps - 1),
            jax.random.randint(segment, (), 0, n),
        )

    posterior, noise, index, segment = jax.vmap(draw)(keys)
    z, target = latents_and_target(config, networks, frozen, batch, posterior)
    context = context_of(networks, frozen.text_encoder, batch)
    guidance = jnp.broadcast_to(frozen.schedule.guidance, (b, n))
    example = Example(z, context, noise, index, segment, guidance, target)
    return lax.stop_gradient(example)


def models_of(networks: Networks, lora: Tree, frozen: Frozen, context: Context) -> AnyDenoiser:
    """FORWARD, BACKWARD and TEACHER, for the batch's own texts."""
    return any_denoiser(networks, frozen.unet, (lora, frozen.backward, None), context)


def lead_of_distillation(config: CycleConfig, example: Example, schedule: Schedule) -> Chain:
    """From a point of the teacher's grid to the next boundary, w = 0."""
    at = forward_grid(
        example.index, config.grid_start, config.grid_steps, schedule.forward_s, len(schedule.abar)
    )
    return distillation_lead(FORWARD, schedule.abar, example.latents, example.noise, at)


def lead_of_preservation(config: CycleConfig, example: Example, schedule: Schedule) -> Chain:
    """The backward model's step down a segment."""
    ends = jnp.concatenate([jnp.array([config.grid_start]), schedule.forward_s[:-1]])
    upper, lower = (x[example.segment] for x in (schedule.forward_s, ends))
    return preservation_lead(BACKWARD, schedule.abar, example.latents, example.noise, upper, lower)


LEADS: dict[str, Callable[[CycleConfig, Example, Schedule], Chain]] = {
    "distillation": lead_of_distillation,
    "preservation": lead_of_preservation,
}
"""What losses compute first, without gradient."""


def round_trip(example: Example, schedule: Schedule) -> Aim:
    """The whole way to noise and back; the target is the start."""
    t = per_step(schedule.forward_t, len(example.latents))[0]
    z = noised(schedule.abar, example.latents, example.noise, t)
    z = jnp.where(schedule.start_noise > 0, z, example.latents)
    way = there_and_back(z, schedule, FORWARD, BACKWARD, example.guidance)
    return Aim(way, example.latents)


AIMS: dict[str, Callable[[Example, Schedule, Any, Any], Aim]] = {
    "distillation": lambda example, schedule, *lead: distillation_aim(FORWARD, *lead),
    "cycle": lambda example, schedule, *lead: round_trip(example, schedule),
    "preservation": lambda example, schedule, *lead: preservation_aim(FORWARD, *lead),
}
"""The losses in their published order: (example, schedule, lead, its latents) -> aim."""


def aims_of(
    config: CycleConfig,
    networks: Networks,
    eps: AnyDenoiser,
    example: Example,
    schedule: Schedule,
    names: Iterable[str],
) -> dict[str, Aim]:
    """The losses of these names, their leads walked by `eps`, which has no gradient."""
    leads = {name: LEADS[name](config, example, schedule) for name in names if name in LEADS}
    led = walk_all(eps, schedule.abar, leads, networks.execution.unroll)
    return {name: AIMS[name](example, schedule, leads.get(name), led.get(name)) for name in names}


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
        decoded: Array = vae(networks).apply({"params": frozen.vae}, z, method="decode")  # type: ignore[assignment]
        return distance(decoded, target)

    remat = networks.execution.remat_call or networks.execution.remat_block
    return (jax.checkpoint(of_decoded) if remat else of_decoded)(z)


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
        aims = aims_of(config, networks, held, example, schedule, weights)
        chains = {name: aim.chain for name, aim in aims.items()}
        walked = walk_all(eps, schedule.abar, chains, networks.execution.unroll)
        values: Metrics = {}
        for name, aim in aims.items():
            z = walked[name][-1]
            if name == "cycle":
                values[name] = cycle_distance(config, networks, frozen, example, z).mean()
            else:
                values[name] = latent(z, aim.target).mean()
        return sum((weights[name] * x for name, x in values.items()), jnp.float32(0)), values

    return loss


def updates(config: CycleConfig, networks: Networks) -> dict[str, Loss]:
    """The updates of a batch: one for each loss in turn, or one for their sum."""
    weights = {
        "distillation": config.distillation_weight,
        "cycle": config.cycle_weight,
        "preservation": config.preservation_weight,
    }
    used = {name: weight for name, weight in weights.items() if weight}
    if config.order == "sum":
        return {"sum": make_loss(config, networks, used)}
    return {name: make_loss(config, networks, {name: weight}) for name, weight in used.items()}


class ReconstructionFrozen(Protocol):
    """What a reconstruction reads beside the two LoRAs."""

    unet: Tree
    vae: Tree
    text_encoder: Tree | None
    perceptual: Tree | None
    schedule: Schedule


def reconstruction_metrics(
    networks: Networks,
    forward: Tree,
    backward: Tree,
    frozen: ReconstructionFrozen,
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Reconstruction of held-out images through noise, w = 0, from the posterior's mean: MSE on
    [-1, 1] and PSNR (dB) to the image, both of the 8-bit picture, PSNR to what the autoencoder
    alone gives, and LPIPS of the whole image.

    Args:
        batch: `pixels` uint8 (b, H, W, 3), and `ids` (b, n) or, cached, `context` (b, n, c).
    """
    pixels = batch["pixels"]
    x = from_uint8(pixels)
    model, variables = vae(networks), {"params": frozen.vae}
    z: Latents = model.apply(variables, x, method="encode")  # type: ignore[assignment]
    context = context_of(networks, frozen.text_encoder, batch)
    schedule = frozen.schedule
    eps = any_denoiser(networks, frozen.unet, (forward, backward), context)
    way = there_and_back(z, schedule, FORWARD, BACKWARD, jnp.zeros((len(z), schedule.steps)))
    returned = walk_all(eps, schedule.abar, {"cycle": way}, networks.execution.unroll)["cycle"][-1]

    def decode(z: Latents) -> Image:
        decoded: Array = model.apply(variables, z, method="decode")  # type: ignore[assignment]
        return decoded

    decoded = decode(returned)
    result = to_uint8(decoded)
    mse = squared(from_uint8(result), x)
    bound = squared(from_uint8(result), from_uint8(to_uint8(decode(z))))
    metrics = {"mse": mse, "psnr": psnr(mse), "psnr_to_autoencoder": psnr(bound)}
    if frozen.perceptual is not None:
        metrics["lpips"] = lpips(frozen.perceptual, jnp.clip(decoded, -1, 1), x)
    return metrics, {"source": pixels, "reconstruction": result}


def evaluate(
    networks: Networks, lora: Tree, frozen: Frozen, batch: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """See `reconstruction_metrics`."""
    return reconstruction_metrics(networks, lora, frozen.backward, frozen, batch)


def cycle_stage(
    config: CycleConfig,
    networks: Networks,
    optimiser: optax.GradientTransformation,
    ema: float | None = None,
) -> Stage:
    """The stage for the loop. `networks` runs with its execution resolved for gradients."""
    return Stage(
        prepare=partial(prepare, config, networks),
        updates=updates(config, networks),
        optimiser=optimiser,
        evaluate=partial(evaluate, networks),
        ema=ema,
    )
