"""What the methods of fifty steps share: DDIM inversion, and generation with classifier-free
guidance, eps = eps_u + w (eps_c - eps_u), where w = 1 is no guidance.

Both halves of the guidance are one network call of twice the batch, the unconditional half first.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents, per_image
from ie_jax.diffusion.ddim import Steps, move
from ie_jax.models.attention import Control
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import AnyContext, Context, Out

Combine = Callable[[Latents, Latents, Float[Array, " b"]], Latents]
"""(eps_u, eps_c, w) -> eps."""


class Path(NamedTuple):
    """Latents and predictions of steps one after the other."""

    latents: Float[Array, "n1 b h w c"]
    """What the first step takes, and the latent after each step."""
    eps: Any
    """The noise predicted in each step, (n b h w c); with guidance both halves of it."""


def guided(eps_u: Latents, eps_c: Latents, w: Float[Array, " b"]) -> Latents:
    """Classifier-free guidance."""
    return eps_u + per_image(w) * (eps_c - eps_u)


def at(network: ControlledNetwork, z: Latents, t: Array, context: AnyContext) -> Latents:
    """The noise that a network predicts at timestep t, w = 0 where it takes a w."""
    t = jnp.broadcast_to(t, z.shape[:1])
    return network(z, t, jnp.zeros(len(z)), context)[0].astype(jnp.float32)


def two_halves(
    network: ControlledNetwork,
    z: Latents,
    t: Array,
    uncond: AnyContext,
    cond: AnyContext,
    control: Control | None = None,
) -> tuple[Latents, Latents, Out]:
    """eps_u, eps_c and what else the call returns, of its doubled batch."""
    twice = jnp.concatenate([z, z])
    both = jax.tree.map(
        lambda u, c: jnp.concatenate([jnp.broadcast_to(u, c.shape), c]), uncond, cond
    )
    t = jnp.broadcast_to(t, twice.shape[:1])
    eps, out = network(twice, t, jnp.zeros(len(twice)), both, control)
    eps_u, eps_c = jnp.split(eps.astype(jnp.float32), 2)
    return eps_u, eps_c, out


def invert(network: ControlledNetwork, z: Latents, context: Context, steps: Steps) -> Path:
    """A clean latent to noise under the source prompt, without guidance."""

    def step(z: Latents, now: Steps) -> tuple[Latents, tuple[Latents, Latents]]:
        eps = at(network, z, now.t, context)
        z = move(z, eps, now.before, now.after)
        return z, (z, eps)

    z = z.astype(jnp.float32)
    _, (latents, eps) = lax.scan(step, z, steps)
    return Path(jnp.concatenate([z[None], latents]), eps)


def generate(
    network: ControlledNetwork,
    z: Latents,
    uncond: Float[Array, "n b l d"],
    cond: Context,
    w: Float[Array, " b"],
    steps: Steps,
    combine: Combine = guided,
) -> Path:
    """Noise to a clean latent.

    Args:
        uncond: the unconditional embedding of each step.
        combine: makes one prediction of the two halves.
    """

    def step(z: Latents, now: tuple[Steps, Context]) -> tuple[Latents, Any]:
        steps, uncond = now
        eps_u, eps_c, _ = two_halves(network, z, steps.t, uncond, cond)
        z = move(z, combine(eps_u, eps_c, w), steps.before, steps.after)
        return z, (z, (eps_u, eps_c))

    z = z.astype(jnp.float32)
    _, (latents, eps) = lax.scan(step, z, (steps, uncond))
    return Path(jnp.concatenate([z[None], latents]), eps)


def same_each_step(context: Context, steps: Steps) -> Float[Array, "n b l d"]:
    """One embedding for all steps."""
    return jnp.broadcast_to(context, (len(steps.t), *context.shape))


def pair(x: Any, y: Any) -> Any:
    """Two trees of one batch each as one of twice the batch."""
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, y)
