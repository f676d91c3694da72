"""What the methods on SDXL-Turbo share: the network at a noise level of Euler's steps, and
generation from an inverted latent with the inversion's noise."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.euler import Steps, down, scaled
from ie_jax.methods.cfg import at, guided, two_halves
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import AnyContext


class Sampled(NamedTuple):
    """Steps of generation."""

    latents: Float[Array, "n b h w c"]
    """After each step."""
    eps: Any
    """Of each step, (n b h w c); with guidance of both halves, (n 2 b h w c)."""


def at_level(
    network: ControlledNetwork, z: Latents, t: Array, level: Array, context: AnyContext
) -> Latents:
    """The noise that the network predicts in a latent of this noise level."""
    return at(network, scaled(z, level), t, context)


def generate(
    network: ControlledNetwork,
    z: Latents,
    noise: Float[Array, "n b h w c"],
    negative: AnyContext | None,
    context: AnyContext,
    w: Float[Array, " b"],
    steps: Steps,
) -> Sampled:
    """A latent at the first step's level to a clean one.

    Args:
        noise: what each step adds.
        negative: what the unconditional half of guidance is told; None: no guidance.
    """

    def step(z: Latents, now: tuple[Steps, Latents]) -> tuple[Latents, Sampled]:
        (t, high, low), added = now
        if negative is None:
            eps = seen = at_level(network, z, t, high, context)
        else:
            halves = two_halves(network, scaled(z, high), t, negative, context)[:2]
            eps, seen = guided(*halves, w), jnp.stack(halves)
        z = down(z, eps, added, high, low)
        return z, Sampled(z, seen)

    return lax.scan(step, z.astype(jnp.float32), (steps, noise))[1]
