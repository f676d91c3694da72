"""The losses of consistency models, as pure functions of latents and denoisers (method 3).

Every distance is one number per image, float32; a loss is its mean over the batch. Gradients stop
where the method says so.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents, add_noise, consistency_step, predict_clean
from ie_jax.diffusion.trajectory import Denoiser
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


def patchwise(distance: Distance, size: int, stride: int) -> Distance:
    """A distance between images as its mean over their patches."""

    def mean(x: Image, y: Image) -> PerImage:
        of_patches = distance(patches(x, size, stride), patches(y, size, stride))
        return of_patches.reshape(x.shape[0], -1).mean(axis=1)

    return mean


def teacher_step(
    teacher: Denoiser, abar: Levels, z: Latents, t: Timesteps, s: Timesteps, w: PerImage
) -> Latents:
    """The teacher's DDIM step t -> s, without gradient. Unlike a consistency step's, its end keeps
    its noise level even at timestep 0."""
    eps = teacher(z, t, w).astype(jnp.float32)
    return lax.stop_gradient(add_noise(abar, predict_clean(abar, z, eps, t), eps, s))


def distillation_target(
    student: Denoiser,
    teacher: Denoiser,
    abar: Levels,
    z: Latents,
    t: Timesteps,
    next_t: Timesteps,
    boundary: Timesteps,
    w: PerImage,
) -> Latents:
    """What the student should reach at the boundary from z_t, without gradient: the teacher's step
    to `next_t`, then the student's own from there (the identity where that is the boundary)."""
    z_next = teacher_step(teacher, abar, z, t, next_t, w)
    own = consistency_step(abar, z_next, student(z_next, next_t, w), next_t, boundary)
    arrived = (next_t == boundary)[:, None, None, None]
    return lax.stop_gradient(jnp.where(arrived, z_next, own))


def preservation_start(
    other: Denoiser, abar: Levels, z: Latents, t: Timesteps, s: Timesteps
) -> Latents:
    """z_t brought to the segment's other end by the opposite model, w = 0, without gradient."""
    eps = other(z, t, jnp.zeros(t.shape))
    return lax.stop_gradient(consistency_step(abar, z, eps, t, s))


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
