"""The losses of consistency models, as pure functions of latents and denoisers (method 3).

Every distance is one number per image, float32; a loss is its mean over the batch. Gradients stop
where the method says so.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents, add_noise
from ie_jax.diffusion.trajectory import Chain, chain
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
    """As many pictures from the same pixels, as the published training code lays them out.

    Patches side by side are read together, row by row: of a row its colours, of a colour the
    patches from left to right. Every `size` of these lines are a channel, three channels a picture.
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
    """A loss between latents: where a chain of steps should end."""

    chain: Chain
    target: Latents


def distillation_lead(
    student: int,
    abar: Levels,
    z: Latents,
    noise: Latents,
    at: tuple[Timesteps, Timesteps, Timesteps],
    w: PerImage | None = None,
) -> Chain:
    """What distillation computes first, without gradient: from z at t the teacher's step to the
    next t of its grid, then the student's own to the boundary. `at` holds these three."""
    t, next_t, s = at
    guidance = None if w is None else jnp.stack([w, w])
    return chain(
        noised(abar, z, noise, t),
        [TEACHER, student],
        jnp.stack([t, next_t]),
        jnp.stack([next_t, s]),
        guidance,
        hard=[False, True],
    )


def distillation_aim(student: int, lead: Chain, led: Float[Array, "2 b h w c"]) -> Aim:
    """In one step to where the lead ends: its second latent, or its first where the teacher is at
    the boundary already."""
    arrived = (lead.t[1] == lead.s[1])[:, None, None, None]
    step = chain(lead.start, [student], lead.t[:1], lead.s[1:], lead.w[:1])
    return Aim(step, jnp.where(arrived, led[0], led[1]))


def preservation_lead(
    other: int, abar: Levels, z: Latents, noise: Latents, t: Timesteps, s: Timesteps
) -> Chain:
    """What preservation computes first, without gradient: the opposite model's step over a segment,
    from z at t to s, w = 0."""
    return chain(noised(abar, z, noise, t), [other], t[None], s[None])


def preservation_aim(student: int, lead: Chain, led: Float[Array, "1 b h w c"]) -> Aim:
    """Back to where the lead began."""
    return Aim(chain(led[0], [student], lead.s, lead.t), lead.start)


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


def noised(abar: Levels, z: Latents, noise: Latents, t: Timesteps) -> Latents:
    """z at timestep t, without gradient."""
    return lax.stop_gradient(add_noise(abar, z, noise, t))
