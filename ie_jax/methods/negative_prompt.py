"""Negative-prompt inversion (Miyake et al. 2023, arXiv 2305.16807) and its proximal guidance
(Han et al. 2023, arXiv 2306.05414): null-text inversion without optimisation."""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents, per_image
from ie_jax.diffusion.ddim import Levels, inverted, leading
from ie_jax.methods.cfg import Combine, Path, generate, guided, invert, same_each_step
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import Context

Proximal = Literal["l0", "l1"]


def negative_embedding(source: Context, empty: Context, interpolation: Array) -> Context:
    """What takes the place of the empty prompt: the source prompt, or for an interpolation above 0
    a point on the arc from it to the empty one, each taken as one vector."""
    empty = jnp.broadcast_to(empty, source.shape)

    def norm(x: Array) -> Array:
        return jnp.sqrt(jnp.sum(x * x, axis=(1, 2), keepdims=True))

    cosine = jnp.sum(source * empty, axis=(1, 2), keepdims=True) / (norm(source) * norm(empty))
    omega = jnp.arccos(jnp.clip(cosine, -1, 1))
    sine = jnp.where(jnp.sin(omega) == 0, 1.0, jnp.sin(omega))
    part = jnp.sin((1 - interpolation) * omega) * source + jnp.sin(interpolation * omega) * empty
    return jnp.where(interpolation > 0, part / sine, source)


def proximal(kind: Proximal, quantile: Float[Array, ""]) -> Combine:
    """Guidance by a shrunken difference of the two halves.

    Args:
        quantile: of the difference's absolute values, of each image; below 0 it is the threshold
            itself, with its sign turned.
    """

    def combine(eps_u: Latents, eps_c: Latents, w: Float[Array, " b"]) -> Latents:
        delta = eps_c - eps_u
        sizes = jnp.abs(delta).reshape(len(delta), -1)
        q = per_image(jnp.quantile(sizes, jnp.clip(quantile, 0, 1), axis=1))
        q = jnp.where(quantile < 0, -quantile, q)
        delta -= jnp.clip(delta, -q, q)
        if kind == "l1":  # as published: the second condition looks at what the first one made
            delta = jnp.where(delta > 0, delta - q, delta)
            delta = jnp.where(delta < 0, delta + q, delta)
        return eps_u + per_image(w) * delta

    return combine


def negative_prompt(
    network: ControlledNetwork,
    z: Latents,
    source: Context,
    target: Context,
    empty: Context,
    abar: Levels,
    w: Float[Array, " b"],
    interpolation: Float[Array, ""],
    steps: int = 50,
    offset: int = 1,
    combine: Callable[..., Latents] = guided,
) -> tuple[Path, Path]:
    """DDIM inversion, and generation with the source prompt as the unconditional one.

    Published: 50 steps, w = 7.5, interpolation 0. 50 calls, and 50 of twice the batch.
    """
    down = leading(abar, steps, offset)
    there = invert(network, z, source, inverted(down))
    uncond = same_each_step(negative_embedding(source, empty, interpolation), down)
    return there, generate(network, there.latents[-1], uncond, target, w, down, combine)
