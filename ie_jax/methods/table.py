"""The methods that are not ours by name, each as one function of the same kind.

    edit = METHODS["p2p"].edit(networks, weights, request, size)

`networks` and `size` are static; a request is arrays. So each method is one program under
`jax.jit`, takes batches, and can be spread over devices like every edit. A new method is a function
here and a line in `METHODS`; docs/methods.md shows one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Key

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Steps, inverted, leading
from ie_jax.diffusion.schedule import Schedule, cumulative_alphas
from ie_jax.errors import UserError
from ie_jax.methods import ddim_inversion as ddim
from ie_jax.methods import guide_and_rescale as gar
from ie_jax.methods import icd as few_steps
from ie_jax.methods import infedit as virtual
from ie_jax.methods import masactrl as masa
from ie_jax.methods import negative_prompt as negative
from ie_jax.methods import null_text, prompt_to_prompt
from ie_jax.methods import renoise as fixed_point
from ie_jax.methods.cfg import generate, invert, pair, same_each_step
from ie_jax.methods.direct_inversion import path_offsets
from ie_jax.methods.prompt_to_prompt import Edits
from ie_jax.models.networks import Context, Networks, one_denoiser
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
]


@dataclass(frozen=True)
class MethodConfig:
    """Settings of the methods that are not ours. The defaults are the published ones; None: those
    of the method, see `settled`."""

    steps: int | None = None
    """Of DDIM in either direction (50), or of InfEdit (12)."""
    guidance: float | None = None
    """w of classifier-free guidance, where 1 is none; icd has `cfg_schedule` in its place."""
    words: Literal["refine", "replace"] = "refine"
    """How prompts are aligned. replace: word for word, of equally many words."""
    cross_steps: float | None = None
    """Share of steps in which cross-attention is taken over."""
    self_steps: float | None = None
    """Share of steps in which self-attention is taken over."""
    amplify: float | None = None
    """Factor of the taken maps of words that the source prompt does not have."""
    interpolation: float = 0.0
    """npi: from the source prompt (0) to the empty one (1) as the unconditional prompt."""
    inner_steps: int = 10
    """nti: at most so many steps of Adam in each step."""
    near: float = 1e-5
    """nti: the loss at which a step's optimisation ends."""
    first_step: int = 4
    """masactrl: from this step on."""
    first_layer: int = 10
    """masactrl: from this self-attention layer on, of 16."""
    layout: float = 3e5
    """guide-and-rescale: weight of self-attention maps."""
    appearance: float = 500.0
    """guide-and-rescale: weight of features."""
    guided_steps: float = 0.6
    """guide-and-rescale: share of steps with energies."""
    bounds: tuple[float, float] = (1 / 3, 3.0)
    """guide-and-rescale: of the gradient's norm to that of the guidance term."""

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise UserError(f"baseline: steps {self.steps} must be from 1 to 1000")
        shares = (self.cross_steps, self.self_steps, self.guided_steps)
        if not all(x is None or 0 <= x <= 1 for x in shares):
            raise UserError(
                "baseline: cross_steps, self_steps and guided_steps are shares, from 0 to 1"
            )
        if self.inner_steps < 1 or (self.guidance or 0) < 0:
            raise UserError("baseline: inner_steps must be 1 or more, guidance not negative")
        if not 0 <= self.bounds[0] <= self.bounds[1]:
            raise UserError("baseline: bounds must be 0 <= lower <= upper")


@dataclass(frozen=True)
class Settings(MethodConfig):
    """`MethodConfig` with nothing left open."""

    steps: int = 50
    guidance: float = 7.5
    cross_steps: float = 0.4
    self_steps: float = 0.6
    amplify: float = 1.0


def settled(name: str, config: MethodConfig) -> Settings:
    """What is not given is as the method was published."""
    given = {key: x for key, x in vars(config).items() if x is not None}
    return Settings(**dict(METHODS[name].published) | given)


class Size(NamedTuple):
    """What a program is compiled for."""

    steps: int
    inner_steps: int


@struct.dataclass
class Numbers:
    """Settings that recompile nothing, see `MethodConfig`."""

    guidance: Float[Array, ""]
    cross_steps: Float[Array, ""]
    self_steps: Float[Array, ""]
    interpolation: Float[Array, ""]
    near: Float[Array, ""]
    first_step: Int[Array, ""]
    first_layer: Int[Array, ""]
    energies: Float[Array, "n e"]
    """Weights of Guide-and-Rescale's energies in each step."""
    bounds: Float[Array, " 2"]


def size_of(config: Settings) -> Size:
    """The static settings."""
    return Size(config.steps, config.inner_steps)


def numbers_of(config: Settings) -> Numbers:
    """All others, on the host."""
    on = np.arange(config.steps) < round(config.guided_steps * config.steps)
    weights = np.array([config.layout, config.appearance])
    shares = (config.cross_steps, config.self_steps)
    values = (config.guidance, *shares, config.interpolation, config.near)
    counts = (config.first_step, config.first_layer)
    arrays: list[Any] = [
        *(np.asarray(x, np.float32) for x in values),
        *(np.asarray(x, np.int32) for x in counts),
        np.asarray(on[:, None] * weights, np.float32),
        np.asarray(config.bounds, np.float32),
    ]
    return Numbers(*arrays)


@struct.dataclass
class Request:
    """Edits of b images, one target each."""

    z: Latents
    """The clean latent."""
    noise: Latents
    keys: Key[Array, " b"]
    """Of whatever else a method draws."""
    source: Context
    target: Context
    empty: Context
    """The empty prompt's embedding."""
    edits: Edits
    """What Prompt-to-Prompt takes over."""
    schedule: Schedule
    """Of few-step methods."""
    numbers: Numbers

    @property
    def w(self) -> Float[Array, " b"]:
        """Guidance of each image."""
        return jnp.full(len(self.z), self.numbers.guidance)


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


def grid(networks: Networks, size: Size) -> tuple[Array, Steps]:
    """abar, and the steps of generation."""
    abar = jnp.asarray(cumulative_alphas(networks.architecture.betas))
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
    """Guide-and-Rescale, its setting for other edits than of style."""
    abar, _ = grid(networks, size)
    network = one_denoiser(networks, weights.unet, collect=("features", "queries_keys"))
    lower, upper = (jnp.full(len(request.z), x) for x in request.numbers.bounds)
    empty = jnp.broadcast_to(request.empty, request.source.shape)
    _, seen = gar.guide_and_rescale(
        network,
        *(request.z, request.source, request.target, empty, abar, request.w),
        request.numbers.energies,
        (lower, upper),
        steps=size.steps,
    )
    return seen.latent_out[-1]


def infedit_edit(networks: Networks, weights: Weights, request: Request, size: Size) -> Latents:
    """InfEdit, without words that bound where the target may differ."""
    abar, _ = grid(networks, size)
    numbers, (b, *shape) = request.numbers, request.z.shape
    drawn = jax.vmap(lambda key: jax.random.normal(key, (size.steps, *shape)))(request.keys)
    empty = jnp.broadcast_to(request.empty, request.source.shape)
    one = jnp.ones(b)
    seen = virtual.infedit(
        one_denoiser(networks, weights.unet),
        *(request.z, request.noise, jnp.moveaxis(drawn, 1, 0)),
        uncond=jnp.stack([empty] * 3),
        cond=jnp.stack([request.source, request.target, request.source]),
        w=jnp.stack([one, request.w, one]),
        abar=abar,
        t=jnp.asarray(virtual.timesteps(size.steps)),
        steps=size.steps,
        branches=virtual.Branches(
            request.edits.matrix, request.edits.own, numbers.cross_steps, numbers.self_steps
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
    _, back = few_steps.icd(forward, backward, *given, request.edits)
    return back.latents[-1, len(request.z) :]


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
        {"steps": 12, "guidance": 2.3, "cross_steps": 0.7, "self_steps": 0.7},
    ),
    "renoise": Method(
        renoise_edit,
        lambda x: 4 * x.steps + fixed_point.low_steps(x.steps),
        {"guidance": 1.0},
    ),
    "icd": Method(icd_edit, lambda x: 12, {"cross_steps": 0.3, "amplify": 4.0}),
}
