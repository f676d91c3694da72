"""Training of the denoiser with its text encoder, and distillation of its guidance (method 1)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import add_noise, consistency_step
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.diffusion.trajectory import Denoiser, with_text
from ie_jax.errors import UserError
from ie_jax.models.networks import Context, Latents, Networks, denoiser, encode_text, vae
from ie_jax.models.pixels import from_uint8, to_uint8
from ie_jax.training.losses import squared
from ie_jax.training.stage import Metrics, Stage, Tree


@dataclass(frozen=True)
class DenoiserConfig:
    """How the denoiser and its guidance are trained."""

    caption_dropout: float = 0.1
    """Share of captions that are replaced by the empty one, for classifier-free guidance."""
    sample_guidance: float = 3.0
    """w of the samples that validation shows."""
    guidance: tuple[float, float] = (0.0, 8.0)
    """Guidance distillation draws w from here."""

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout < 1:
            raise UserError("denoiser: caption_dropout must be from 0 to below 1")
        if not 0 <= self.guidance[0] <= self.guidance[1]:
            raise UserError("denoiser: guidance must be two numbers that rise from 0 or above")


@struct.dataclass
class Frozen:
    """What both kinds of training read."""

    vae: Tree
    empty: Int[Array, " n"]
    """Token ids of the empty caption."""
    text_encoder: Tree | None = None
    """None where it is trained."""
    denoiser: Tree | None = None
    """Before guidance distillation, which has it as its teacher."""


@struct.dataclass
class Example:
    """A batch with its draws."""

    latents: Latents
    noise: Latents
    t: Int[Array, " b"]
    ids: Int[Array, "b n"]
    w: Float[Array, " b"]


def latents_of(networks: Networks, params: Tree, batch: Mapping[str, Array], noise: Array) -> Array:
    """A sample of the posterior of a batch's pictures, scaled."""
    x = from_uint8(batch["pixels"])
    z: Array = vae(networks).apply({"params": params}, x, noise, method="encode")  # type: ignore[assignment]
    return z


def latent_shape(networks: Networks, batch: Mapping[str, Array]) -> tuple[int, int, int]:
    """(h, w, c) of a picture's latent."""
    model = networks.architecture.vae
    height, width = (side // model.factor for side in batch["pixels"].shape[1:3])
    return height, width, model.latent_channels


def prepare(
    config: DenoiserConfig,
    networks: Networks,
    frozen: Frozen,
    batch: Mapping[str, Array],
    keys: Array,
) -> Example:
    """Latents and every draw, without gradient; one key per picture."""
    shape = latent_shape(networks, batch)

    def draw(key: Array) -> tuple[Array, ...]:
        posterior, noise, t, drop, w = jax.random.split(key, 5)
        return (
            jax.random.normal(posterior, shape),
            jax.random.normal(noise, shape),
            jax.random.randint(t, (), 0, networks.architecture.betas[2]),
            jax.random.uniform(drop) < config.caption_dropout,
            jax.random.uniform(w, (), minval=config.guidance[0], maxval=config.guidance[1]),
        )

    posterior, noise, t, drop, w = jax.vmap(draw)(keys)
    z = latents_of(networks, frozen.vae, batch, posterior)
    ids = jnp.where(drop[:, None], frozen.empty[None], batch["ids"])
    return lax.stop_gradient(Example(z, noise, t, ids, w))


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


def guidance_distillation(
    networks: Networks, params: Tree, frozen: Frozen, example: Example
) -> tuple[Float[Array, ""], Metrics]:
    """Squared distance of one call with w to the guided denoiser's two, divided by (1 + w)²,
    which is how fast the latter's own error grows."""
    abar = jnp.asarray(cumulative_alphas(networks.architecture.betas))
    context = encode_text(networks, frozen.text_encoder, example.ids)
    empty = encode_text(networks, frozen.text_encoder, frozen.empty[None])
    z, t, w = add_noise(abar, example.latents, example.noise, example.t), example.t, example.w
    teacher = two_calls(networks, frozen.denoiser, context, empty, w)
    target = lax.stop_gradient(teacher(z, t, w))
    eps, _ = denoiser(networks, params)(z, t, w, context)
    return (squared(eps, target) / (1.0 + w) ** 2).mean(), {}


def ddim(
    eps: Denoiser, z: Latents, abar: Array, w: Array, steps: int = 50, unroll: int = 1
) -> Latents:
    """Noise at the last timestep to a clean latent, by as many equal steps."""
    stride = len(abar) // steps
    t = jnp.arange(len(abar) - 1, -1, -stride)
    s = jnp.append(t[1:], 0)

    def step(z: Latents, at: tuple[Array, Array]) -> tuple[Latents, None]:
        t, s = (jnp.broadcast_to(x, z.shape[:1]) for x in at)
        return consistency_step(abar, z, eps(z, t, w), t, s), None

    return lax.scan(step, z, (t, s), unroll=unroll)[0]


def held_out_loss(z: Latents, ids: Array, steps: int = 1000) -> Example:
    """An example whose draws depend on nothing but the number of pictures."""
    keys = jax.random.split(jax.random.key(0), 2)
    t = jnp.arange(len(z)) * 37 % steps
    w = jnp.arange(len(z)) % 8 * 1.0
    return Example(z, jax.random.normal(keys[0], z.shape), t, ids, w)


def evaluate(
    config: DenoiserConfig,
    networks: Networks,
    distilled: bool,
    params: Tree,
    frozen: Frozen,
    batch: Mapping[str, Array],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The noise's squared error on held-out pictures, and samples for their captions."""
    abar = jnp.asarray(cumulative_alphas(networks.architecture.betas))
    text = frozen.text_encoder if distilled else params["text_encoder"]
    context = encode_text(networks, text, batch["ids"])
    z = latents_of(networks, frozen.vae, batch, jnp.zeros((1, *latent_shape(networks, batch))))
    example = held_out_loss(z, batch["ids"], len(abar))
    noised = add_noise(abar, z, example.noise, example.t)
    w = jnp.full(len(z), config.sample_guidance)
    if distilled:
        network = with_text(denoiser(networks, params), context)
        guide = network
    else:
        network = with_text(denoiser(networks, params["denoiser"]), context)
        empty = encode_text(networks, text, frozen.empty[None])
        guide = two_calls(networks, params["denoiser"], context, empty, w)
    mse = squared(network(noised, example.t, jnp.zeros(len(z))), example.noise)
    sample = ddim(guide, example.noise, abar, w, steps=25)
    decoded: Array = vae(networks).apply({"params": frozen.vae}, sample, method="decode")  # type: ignore[assignment]
    return {"mse": mse}, {"source": batch["pixels"], "sample": to_uint8(decoded)}


def denoiser_stage(
    config: DenoiserConfig, networks: Networks, optimiser: optax.GradientTransformation
) -> Stage:
    """Trains {"denoiser", "text_encoder"}. `networks` has the UNet without guidance embedding."""
    return Stage(
        prepare=partial(prepare, config, networks),
        updates={"denoiser": partial(denoising, networks)},
        optimiser=optimiser,
        evaluate=partial(evaluate, config, networks, False),
    )


def guidance_stage(
    config: DenoiserConfig, networks: Networks, optimiser: optax.GradientTransformation
) -> Stage:
    """Trains the guidance-distilled UNet's tree."""
    return Stage(
        prepare=partial(prepare, config, networks),
        updates={"guidance": partial(guidance_distillation, networks)},
        optimiser=optimiser,
        evaluate=partial(evaluate, config, networks, True),
    )
