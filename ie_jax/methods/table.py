"""The methods that are not ours by name, each as one function of the same kind.

    edit = METHODS["p2p"].edit(networks, weights, request, size)

Some ask of the model what not each has, see `Method` and `check_method`.

`networks` and `size` are static; a request is arrays. So each method is one program under
`jax.jit`, takes batches, and can be spread over devices like every edit. A new method is a function
here and a line in `METHODS`; docs/methods.md shows one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Key

from ie_jax.diffusion import euler
from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Steps, inverted, leading
from ie_jax.diffusion.schedule import Schedule, cumulative_alphas
from ie_jax.errors import UserError
from ie_jax.methods import ddim_inversion as ddim
from ie_jax.methods import gnri, null_text, postedit, prompt_to_prompt, turbo, turboedit
from ie_jax.methods import guide_and_rescale as gar
from ie_jax.methods import icd as few_steps
from ie_jax.methods import infedit as virtual
from ie_jax.methods import masactrl as masa
from ie_jax.methods import negative_prompt as negative
from ie_jax.methods import renoise as fixed_point
from ie_jax.methods.cfg import generate, invert, pair, same_each_step
from ie_jax.methods.direct_inversion import path_offsets
from ie_jax.methods.prompt_to_prompt import Edits
from ie_jax.methods.settings import MethodConfig, Numbers, Settings, Size
from ie_jax.models.networks import ControlledNetwork, Networks, one_denoiser
from ie_jax.weights.facts import Facts
from ie_jax.weights.folder import Weights

Name = Literal[
    "ddim",
    "npi",
    "nti",
    "p2p",
    "p2p-npi",
    "p2p-nti",
    "p2p-direct",
    "masactrl",
    "guide-and-rescale",
    "infedit",
    "renoise",
    "icd",
    "turboedit",
    "gnri",
    "renoise-turbo",
    "postedit",
]


def settled(name: str, config: MethodConfig) -> Settings:
    """What is not given is as the method was published."""
    given = {key: x for key, x in vars(config).items() if x is not None}
    style: Mapping[str, Any] = gar.STYLE_SETTINGS if config.style else {}
    return Settings(**{**METHODS[name].published, **style, **given})


@struct.dataclass
class Request:
    """Edits of b images, one target each."""

    z: Latents
    """The clean latent."""
    noise: Latents
    keys: Key[Array, " b"]
    """Of whatever else a method draws."""
    source: Any
    """`AnyContext`; for methods that need one text encoder a `Context`, like the following."""
    target: Any
    empty: Any
    """The empty prompt's embedding."""
    edits: Edits
    """What Prompt-to-Prompt takes over."""
    blend: Any
    """Where its result may differ, a `Blend`; of InfEdit its `Words`. None: everywhere."""
    schedule: Schedule
    """Of few-step methods."""
    numbers: Numbers

    @property
    def w(self) -> Float[Array, " b"]:
        """Guidance of each image."""
        return jnp.full(len(self.z), self.numbers.guidance)

    def drawn(self, steps: int) -> Float[Array, "n b h w c"]:
        """Noise for each step."""
        shape = (steps, *self.z.shape[1:])
        return jnp.moveaxis(jax.vmap(lambda key: jax.random.normal(key, shape))(self.keys), 1, 0)


Edit = Callable[[Networks, Weights, Request, Size], Latents]
"""(networks, weights, request, size) -> clean latents of the targets."""


@dataclass(frozen=True)
class Method:
    """A method."""

    edit: Edit
    evaluations: Callable[[Settings], int]
    """Evaluations of the network for one edit, at most."""
    published: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings, where they are not those of `Settings`."""
    needs: Literal["one text", "pair", "few steps"] = "one text"
    """What not each model has: a single text encoder; the LoRAs of a pair; a network that makes a
    picture in a few steps."""


def levels(networks: Networks) -> Array:
    """abar of every timestep."""
    return jnp.asarray(cumulative_alphas(networks.architecture.betas))


def grid(networks: Networks, size: Size) -> tuple[Array, Steps]:
    """abar, and the steps of generation."""
    abar = levels(networks)
    return abar, leading(abar, size.steps, offset=1)


def ddim_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """DDIM inversion and guided generation."""
    abar, _ = grid(networks, size)
    network = one_denoiser(networks, weights.unet)
    given = (request.z, request.source, request.target, request.empty, abar, request.w)
    _, back = ddim.ddim_inversion(network, *given, size.steps)
    return back.latents[-1]


def negative_prompt_edit(
    networks: Networks, weights: Weights, request: Request, size: Size
) -> Latents:
    """Negative-prompt inversion."""
    abar, _ = grid(networks, size)
    network = one_denoiser(networks, weights.unet)
    given = (request.z, request.source, request.target, request.empty, abar, request.w)
    interpolation = request.numbers.interpolation
    _, back = negative.negative_prompt(network, *given, interpolation, size.steps)
    return back.latents[-1]


def null_text_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """Null-text inversion."""
    abar, _ = grid(networks, size)
    network = one_denoiser(networks, weights.unet)
    given = (request.z, request.source, request.target, request.empty, abar, request.w)
    near = request.numbers.near
    *_, back = null_text.null_text(network, *given, near, size.steps, inner_steps=size.inner_steps)
    return back.latents[-1]


def prompt_to_prompt_edit(
    on: Literal["ddim", "npi", "nti", "direct"],
    networks: Networks,
    weights: Weights,
    request: Request,
    size: Size,
) -> Latents:
    """Prompt-to-Prompt on an inversion."""
    _, steps = grid(networks, size)
    network = one_denoiser(networks, weights.unet)
    there = invert(network, request.z, request.source, inverted(steps))
    empty = jnp.broadcast_to(request.empty, request.source.shape)
    uncond, offsets = same_each_step(empty, steps), None
    if on == "npi":
        interpolation = request.numbers.interpolation
        negative_text = negative.negative_embedding(request.source, empty, interpolation)
        uncond = same_each_step(negative_text, steps)
    if on == "nti":
        found = null_text.null_texts(
            network,
            there.latents,
            request.source,
            empty,
            request.w,
            steps,
            size.inner_steps,
            request.numbers.near,
        )
        uncond = found.embeddings
    if on == "direct":
        offsets = path_offsets(network, there.latents, empty, request.source, request.w, steps)
    path, _ = prompt_to_prompt.prompt_to_prompt(
        network,
        there.latents[-1],
        uncond,
        request.source,
        request.target,
        request.w,
        steps,
        request.edits,
        request.blend,
        offsets=offsets,
    )
    return path.latents[-1, len(request.z) :]


def masactrl_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """MasaCtrl, with the empty prompt for the source, as published."""
    _, steps = grid(networks, size)
    network = one_denoiser(networks, weights.unet)
    empty = jnp.broadcast_to(request.empty, request.source.shape)
    there = invert(network, request.z, empty, inverted(steps))
    path, _ = masa.masactrl(
        network,
        there.latents[-1],
        pair(empty, empty),
        empty,
        request.target,
        request.w,
        steps,
        request.numbers.first_step,
        request.numbers.first_layer,
    )
    return path.latents[-1, len(request.z) :]


def guide_and_rescale_edit(
    networks: Networks, weights: Weights, request: Request, size: Size
) -> Latents:
    """Guide-and-Rescale."""
    abar, _ = grid(networks, size)
    network = one_denoiser(networks, weights.unet, collect=("features", "queries_keys"))
    lower, upper = (jnp.full(len(request.z), x) for x in request.numbers.bounds)
    empty = jnp.broadcast_to(request.empty, request.source.shape)
    _, seen = gar.guide_and_rescale(
        network,
        *(request.z, request.source, request.target, empty, abar, request.w),
        request.numbers.energies,
        (lower, upper),
        gar.STYLE if size.style else gar.NON_STYLE,
        steps=size.steps,
    )
    return seen.latent_out[-1]


def infedit_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """InfEdit."""
    abar, _ = grid(networks, size)
    numbers, b = request.numbers, len(request.z)
    empty = jnp.broadcast_to(request.empty, request.source.shape)
    one = jnp.ones(b)
    seen = virtual.infedit(
        one_denoiser(networks, weights.unet),
        *(request.z, request.noise, request.drawn(size.steps)),
        uncond=jnp.stack([empty] * 3),
        cond=jnp.stack([request.source, request.target, request.source]),
        w=jnp.stack([one, request.w, one]),
        abar=abar,
        t=jnp.asarray(virtual.timesteps(size.steps)),
        steps=size.steps,
        branches=virtual.Branches(
            request.edits.matrix,
            request.edits.own,
            numbers.cross_steps,
            numbers.self_steps,
            request.blend,
        ),
        eta=jnp.float32(1),
    )
    return seen.clean[-1]


def renoise_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """ReNoise's inversion, then DDIM. The shifts of its regularisation are those of key 0."""
    abar, steps = grid(networks, size)
    network = one_denoiser(networks, weights.unet)
    _, height, _, channels = request.z.shape
    low = fixed_point.low_steps(size.steps)
    counts = (low, size.steps - low)
    rolls = fixed_point.all_rolls(jax.random.key(0), fixed_point.zones(), counts, channels, height)
    _, high = fixed_point.renoise(network, request.z, request.source, abar, rolls, steps=size.steps)
    empty = same_each_step(jnp.broadcast_to(request.empty, request.source.shape), steps)
    path = generate(network, high.latents[-1], empty, request.target, request.w, steps)
    return path.latents[-1]


def icd_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """Invertible consistency distillation with Prompt-to-Prompt."""
    forward, backward = (
        one_denoiser(networks, weights.unet, lora) for lora in (weights.forward, weights.backward)
    )
    given = (request.z, request.noise, request.source, request.target, request.schedule)
    _, back = few_steps.icd(forward, backward, *given, request.edits, request.blend)
    return back.latents[-1, len(request.z) :]


def few_step_network(networks: Networks, weights: Weights) -> ControlledNetwork:
    """A base model itself, or with a backward LoRA: that of a pair, or the user's own."""
    return one_denoiser(networks, weights.unet, weights.backward)


def turboedit_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """TurboEdit."""
    plan = turboedit.plan(size.steps)
    height, width = request.z.shape[1:3]
    limit = request.numbers.limit * np.sqrt(height * width) / turboedit.PUBLISHED_SIDE
    seen = turboedit.turboedit(
        few_step_network(networks, weights),
        *(request.z, request.drawn(size.steps), request.source, request.target, levels(networks)),
        plan._replace(limits=plan.limits.at[-1].set(limit)),
        request.w,
    )
    return seen.latents[-1, 2]


def gnri_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """GNRi, and generation with its noise and the empty prompt as the negative one."""
    network = few_step_network(networks, weights)
    steps = euler.turbo_steps(levels(networks), size.steps, size.highest)
    noise, prior = request.drawn(len(steps.t)), request.numbers.prior
    there = gnri.gnri_inversion(
        network, request.z, noise, request.source, steps, size.inner_steps, prior
    )
    texts = request.empty, request.target
    back = turbo.generate(network, there.latents[-1], noise, *texts, request.w, steps)
    return back.latents[-1]


def renoise_turbo_edit(
    networks: Networks, weights: Weights, request: Request, size: Size
) -> Latents:
    """ReNoise on a few-step model, and generation with its corrected noise; where it is guided, the
    source is the negative prompt. The shifts of its regularisation are those of key 0."""
    network, abar = few_step_network(networks, weights), levels(networks)
    noise, (_, height, _, channels) = request.drawn(size.steps), request.z.shape
    up = fixed_point.turbo_inversion_steps(abar, noise, request.noise, size.steps, size.highest)
    low = fixed_point.low_turbo_steps(size.steps, len(abar), size.highest)
    zones, counts = fixed_point.zones(size.inner_steps), (low, len(up.t) - low)
    rolls = fixed_point.all_rolls(jax.random.key(0), zones, counts, channels, height)
    there = fixed_point.renoise_turbo(
        network, request.z, request.source, up, rolls, low, plan=zones
    )
    start = jnp.concatenate([zone.latents for zone in there.zones])[-1]
    steps = euler.turbo_steps(abar, size.steps, size.highest)
    negative = request.source if size.guided else None
    texts = negative, request.target
    back = turbo.generate(network, start, there.corrected.noise, *texts, request.w, steps)
    return back.latents[-1]


def postedit_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """PostEdit. The first step's noise is the request's own."""
    abar = levels(networks)
    noise = request.drawn(2 * size.steps).at[0].set(request.noise)
    seen = postedit.postedit(
        few_step_network(networks, weights),
        *(request.z, noise.reshape(size.steps, 2, *request.z.shape)),
        postedit.measure(request.z, jax.vmap(partial(jax.random.fold_in, data=1))(request.keys)),
        *(request.empty, request.target, abar, request.w),
        postedit.timesteps(size.steps, size.highest, len(abar)),
        size.inner_steps,
        request.numbers.kept,
    )
    return seen[-1]


def kept(config: Settings) -> int:
    """How many of its steps a method on a few-step model takes in either direction."""
    return int((euler.trailing(config.steps) < 1000 * config.highest).sum())


def renoise_turbo_evaluations(config: Settings) -> int:
    """Passes of either zone; in each step also the noised source and the correction."""
    low = fixed_point.low_turbo_steps(config.steps, below=config.highest)
    first, rest = (zone.passes for zone in fixed_point.zones(config.inner_steps))
    back = 2 if config.guidance != 1 else 1
    return low * first + (kept(config) - low) * rest + kept(config) * (2 + back)


METHODS: dict[str, Method] = {
    "ddim": Method(ddim_edit, lambda x: 3 * x.steps),
    "npi": Method(negative_prompt_edit, lambda x: 3 * x.steps),
    "nti": Method(null_text_edit, lambda x: x.steps * (6 + x.inner_steps)),
    "p2p": Method(partial(prompt_to_prompt_edit, "ddim"), lambda x: 5 * x.steps),
    "p2p-npi": Method(partial(prompt_to_prompt_edit, "npi"), lambda x: 5 * x.steps),
    "p2p-nti": Method(
        partial(prompt_to_prompt_edit, "nti"), lambda x: x.steps * (8 + x.inner_steps)
    ),
    "p2p-direct": Method(partial(prompt_to_prompt_edit, "direct"), lambda x: 7 * x.steps),
    "masactrl": Method(masactrl_edit, lambda x: 5 * x.steps),
    "guide-and-rescale": Method(guide_and_rescale_edit, lambda x: 5 * x.steps),
    "infedit": Method(
        infedit_edit,
        lambda x: 6 * x.steps,
        {
            "steps": 12,
            "guidance": 2.3,
            "cross_steps": 0.7,
            "self_steps": 0.7,
            "blend_threshold": 0.55,
        },
    ),
    "renoise": Method(
        renoise_edit,
        lambda x: 4 * x.steps + fixed_point.low_steps(x.steps),
        {"guidance": 1.0},
    ),
    "icd": Method(icd_edit, lambda x: 12, {"cross_steps": 0.3, "amplify": 4.0}, "pair"),
    "turboedit": Method(
        turboedit_edit,
        lambda x: 3 * x.steps,
        {"steps": 4, "guidance": turboedit.PUBLISHED_W},
        "few steps",
    ),
    "gnri": Method(
        gnri_edit,
        lambda x: kept(x) * (x.inner_steps + 2),
        {
            "steps": 4,
            "guidance": gnri.GUIDANCE,
            "inner_steps": gnri.ITERATIONS,
            "highest": gnri.BELOW,
        },
        "few steps",
    ),
    "renoise-turbo": Method(
        renoise_turbo_edit,
        renoise_turbo_evaluations,
        {"steps": 4, "guidance": 1.0, "inner_steps": 9},
        "few steps",
    ),
    "postedit": Method(
        postedit_edit,
        lambda x: 2 * x.steps,
        {
            "steps": postedit.STEPS,
            "guidance": postedit.GUIDANCE,
            "inner_steps": postedit.LANGEVIN,
            "highest": postedit.BELOW,
        },
        "few steps",
    ),
}


def check_method(name: str, config: MethodConfig, model: str, facts: Facts) -> None:
    """Raise UserError if a method, `ours` among them, cannot be done with a model or settings."""
    needs = "pair" if name == "ours" else METHODS[name].needs
    few = ", ".join(x for x, method in METHODS.items() if method.needs == "few steps")
    if needs == "pair" and not facts.pair:
        raise UserError(
            f"method {name} needs a guidance-distilled UNet with a forward and a backward LoRA, "
            f"and {model} is a base model: take --method {few}"
        )
    if needs == "one text" and facts.texts > 1:
        raise UserError(
            f"method {name} is for models of SD1.x, and {model} has two text encoders: take "
            f"--method {few}"
        )
    if needs == "few steps" and not facts.few_steps:
        raise UserError(
            f"method {name} needs a model that makes a picture in a few steps, and {model} takes "
            "many (timestep_spacing of its scheduler is not trailing): take --model sdxl-turbo, or "
            "give it a --backward LoRA of few steps"
        )
    if needs != "few steps":
        return
    chosen = settled(name, config)
    if name == "turboedit" and chosen.steps not in turboedit.GRIDS:
        raise UserError(f"turboedit: steps {chosen.steps} must be 3 or 4, as it was published")
    if name in ("gnri", "renoise-turbo") and not kept(chosen):
        raise UserError(f"{name}: none of {chosen.steps} steps is below {chosen.highest}")
