"""The losses of consistency models, as pure functions of latents and denoisers (method 3).

Every distance is one number per image, float32; a loss is its mean over the batch. Gradients stop
where the method says so.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents, add_noise
from ie_jax.diffusion.schedule import Schedule
from ie_jax.diffusion.trajectory import (
    AnyDenoiser,
    Chain,
    chain,
    per_step,
    there_and_back,
    walk_all,
)
from ie_jax.models.pixels import Image

Levels = Float[Array, " T"]
"""abar_t of every timestep."""
Timesteps = Int[Array, " b"]
PerImage = Float[Array, " b"]
Distance = Callable[[Array, Array], PerImage]


def squared(x: Array, y: Array) -> PerImage:
    """Mean of d²."""
    d = x.astype(jnp.float32) - y.astype(jnp.float32)
    return jnp.mean(d**2, axis=range(1, d.ndim))


def psnr(mse: Array) -> Array:
    """Decibels, of a mean squared error on [-1, 1]."""
    return 10 * jnp.log10(4 / jnp.maximum(mse, 1e-10))


def pseudo_huber(x: Array, y: Array, c: float = 1e-3) -> PerImage:
    """Mean of sqrt(d² + c²) - c."""
    d = x.astype(jnp.float32) - y.astype(jnp.float32)
    return jnp.mean(jnp.sqrt(d**2 + c**2) - c, axis=range(1, d.ndim))


def corners(side: int, size: int, stride: int) -> range:
    """Where patches of `size` begin along a side; what is left at the end is not covered."""
    return range(0, side - size + 1, stride)


def patches(x: Image, size: int, stride: int) -> Float[Array, "bp s s 3"]:
    """All patches of all images, those of an image side by side."""
    rows, columns = (corners(side, size, stride) for side in x.shape[1:3])
    cut = [x[:, r : r + size, c : c + size] for r in rows for c in columns]
    return jnp.stack(cut, axis=1).reshape(-1, size, size, x.shape[-1])


def interleaved_patches(x: Image, size: int, stride: int) -> Float[Array, "bp s s 3"]:
    """Patches as the published training code cuts them, which mixes their pixels.

    That code swaps two axes before it reshapes. So a picture that LPIPS sees is not one window of
    the image, as with `patches`. Its rows come from all windows beside each other: with three
    windows a, b, c the rows are red of a, red of b, red of c, green of a, and so on, and the
    channels of the new picture are just the first, second and third part of these rows.

    Args:
        x: images.
        size, stride: of the windows, in pixels.

    Returns:
        as many pictures of the same size as `patches` gives.
    """
    rows, columns = (len(corners(side, size, stride)) for side in x.shape[1:3])
    cut = patches(x, size, stride).reshape(-1, rows, columns, size, size, 3)
    lines = jnp.transpose(cut, (0, 1, 3, 5, 2, 4))  # b, patch's row; row, colour; column; pixels
    return jnp.moveaxis(lines.reshape(-1, 3, size, size), 1, -1)


PATCHES: dict[str, Callable[[Image, int, int], Float[Array, "bp s s 3"]]] = {
    "interleaved": interleaved_patches,
    "windows": patches,
}
"""Ways to cut images, by the name that a config gives them."""


def patchwise(distance: Distance, size: int, stride: int, layout: str = "windows") -> Distance:
    """A distance between images as its mean over their patches."""
    cut = PATCHES[layout]

    def mean(x: Image, y: Image) -> PerImage:
        of_patches = distance(cut(x, size, stride), cut(y, size, stride))
        return of_patches.reshape(x.shape[0], -1).mean(axis=1)

    return mean


FORWARD, BACKWARD, TEACHER = range(3)
"""The models of a batch, by the numbers that chains name."""


class Aim(NamedTuple):
    """Where a chain of steps should end."""

    chain: Chain
    target: Latents


class Term(NamedTuple):
    """A loss between latents, in two walks: first the `lead`, without gradient; from the latents
    after each of its steps follows the aim, whose chain has a gradient."""

    lead: Chain | None
    aim: Callable[[Any], Aim]


def walk_terms(
    held: AnyDenoiser,
    eps: AnyDenoiser,
    abar: Levels,
    terms: Mapping[str, Term],
    unroll: int = 1,
) -> dict[str, tuple[Latents, Latents]]:
    """Where each term's chain ends, and where it should.

    The leads of all terms are one scan and their chains another, so that a program holds one copy
    of the network for each (see `walk_all`).

    Args:
        held: the models without gradient, for the leads.
        eps: the models with gradient.
    """
    leads = {name: term.lead for name, term in terms.items() if term.lead is not None}
    led = walk_all(held, abar, leads, unroll)
    aims = {name: term.aim(led.get(name)) for name, term in terms.items()}
    ends = walk_all(eps, abar, {name: aim.chain for name, aim in aims.items()}, unroll)
    return {name: (ends[name][-1], aim.target) for name, aim in aims.items()}


def distillation(
    student: int,
    abar: Levels,
    z: Latents,
    noise: Latents,
    at: tuple[Timesteps, Timesteps, Timesteps],
    w: PerImage | None = None,
) -> Term:
    """From z at t the student steps to the boundary s at once. It should end where the teacher's
    step to the next t of its grid leads, and from there the student's own to s.

    Args:
        at: t, the teacher's next t, and s. Where the teacher is at s already, its latent is the
            target.
        w: guidance of all three steps; None: 0.
    """
    t, next_t, s = at
    start = noised(abar, z, noise, t)
    guidance = None if w is None else jnp.stack([w, w])
    steps = jnp.stack([t, next_t]), jnp.stack([next_t, s])
    lead = chain(start, [TEACHER, student], *steps, guidance, hard=[False, True])

    def aim(led: Float[Array, "2 b h w c"]) -> Aim:
        arrived = (next_t == s)[:, None, None, None]
        step = chain(start, [student], t[None], s[None], lead.w[:1])
        return Aim(step, jnp.where(arrived, led[0], led[1]))

    return Term(lead, aim)


def preservation(
    student: int, other: int, abar: Levels, z: Latents, noise: Latents, t: Timesteps, s: Timesteps
) -> Term:
    """From z at t the opposite model steps over a segment to s, w = 0; the student should come back
    to where that began."""
    start = noised(abar, z, noise, t)

    def aim(led: Float[Array, "1 b h w c"]) -> Aim:
        return Aim(chain(led[0], [student], s[None], t[None]), start)

    return Term(chain(start, [other], t[None], s[None]), aim)


def cycle(z: Latents, noise: Latents, schedule: Schedule, guidance: Float[Array, "b n"]) -> Term:
    """The whole way to noise and back should end where it starts, at the clean latent.

    Args:
        noise: enters at the start where `schedule.start_noise` is 1.
        guidance: w of the generation.
    """
    t = per_step(schedule.forward_t, len(z))[0]
    start = jnp.where(schedule.start_noise > 0, noised(schedule.abar, z, noise, t), z)
    way = there_and_back(start, schedule, FORWARD, BACKWARD, guidance)
    return Term(None, lambda _: Aim(way, z))


def forward_grid(
    index: Int[Array, " b"], start: int, steps: int, boundaries: Array, timesteps: int
) -> tuple[Timesteps, Timesteps, Timesteps]:
    """Timestep t, the teacher's next t and the boundary of a draw of 0 .. steps - 2.

    The grid is start, start + T/steps, ...: 19, 39, ..., 999 as published. The boundary is the
    smallest that is not below the next t.
    """
    stride = timesteps // steps
    t = start + stride * index
    next_t = t + stride
    return t, next_t, boundaries[jnp.searchsorted(boundaries, next_t)]


def backward_grid(
    index: Int[Array, " b"], start: int, steps: int, boundaries: Array, timesteps: int
) -> tuple[Timesteps, Timesteps, Timesteps]:
    """Timestep t, the teacher's next t and the boundary below, of a draw of 0 .. steps - 1: the
    grid of `forward_grid` walked down, to 0 at last."""
    stride = timesteps // steps
    t = start + stride * index
    next_t = jnp.maximum(t - stride, 0)
    ends = jnp.concatenate([jnp.zeros(1, boundaries.dtype), boundaries[:-1]])
    return t, next_t, ends[jnp.searchsorted(ends, next_t, side="right") - 1]


def noised(abar: Levels, z: Latents, noise: Latents, t: Timesteps) -> Latents:
    """z at timestep t, without gradient."""
    return lax.stop_gradient(add_noise(abar, z, noise, t))
