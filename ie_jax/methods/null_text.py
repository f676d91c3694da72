"""Null-text inversion (Mokady et al. 2022, arXiv 2211.09794): in each step the unconditional
embedding is optimised until the guided step leads where the inversion came from."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Levels, Steps, inverted, leading, move
from ie_jax.methods.cfg import Path, at, generate, guided, invert, two_halves
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import Context


class NullTexts(NamedTuple):
    """What the optimisation found."""

    embeddings: Float[Array, "n b l d"]
    """Of each step."""
    losses: Float[Array, "n inner b"]
    """Before each inner step; -1 where none was made."""
    taken: Int[Array, "n b"]
    """Inner steps of each step."""
    latents: Float[Array, "n b h w c"]
    """What each step takes."""
    eps_c: Float[Array, "n b h w c"]
    """The conditional prediction of each step, which the optimisation holds fixed."""
    eps: tuple[Latents, Latents]
    """Both halves of the step that is made in the end."""


class Inner(NamedTuple):
    """The state of the inner optimisation of a step."""

    k: Int[Array, ""]
    u: Context
    adam: Any
    going: Bool[Array, " b"]
    """Images that are not yet near enough."""
    losses: Float[Array, "inner b"]


def learning_rate(step: Array) -> Array:
    """Of the inner optimisation in a step, whatever the number of steps."""
    return 0.01 * (1 - step / 100)


def distance(
    network: ControlledNetwork,
    z: Latents,
    goal: Latents,
    eps_c: Latents,
    w: Float[Array, " b"],
    step: Steps,
    u: Context,
) -> tuple[Float[Array, ""], Float[Array, " b"]]:
    """How far a guided step with the unconditional embedding u ends from its goal: mean squares of
    each image, and their sum, in which no image's gradient touches another's."""
    eps_u = at(network, z, step.t, u)
    reached = move(z, guided(eps_u, eps_c, w), step.before, step.after)
    each = jnp.mean((reached - goal) ** 2, axis=(1, 2, 3))
    return jnp.sum(each), each


def null_texts(
    network: ControlledNetwork,
    reference: Float[Array, "n1 b h w c"],
    cond: Context,
    empty: Context,
    w: Float[Array, " b"],
    steps: Steps,
    inner_steps: int = 10,
    near: Float[Array, ""] | float = 1e-5,
    first: Int[Array, ""] | int = 0,
) -> NullTexts:
    """The unconditional embeddings under which generation retraces an inversion.

    Each image has an optimisation of its own, and ends it by itself: after the inner step before
    which the loss was below `near` + 2e-5 i in step i. The embedding of a step is where the next
    one starts.

    Args:
        reference: the inversion's latents, the clean one first.
        inner_steps: at most so many of Adam, a new one for each step, at the rate 0.01 (1 - i/100).
        first: the number i of the first of these steps.
    """
    adam = optax.scale_by_adam()

    def step(carry: tuple[Latents, Context], now: Any) -> tuple[Any, Any]:
        (z, u), (i, at_step, goal) = carry, now
        eps_c = at(network, z, at_step.t, cond)
        rate, enough = learning_rate(i), near + i * 2e-5

        def improve(state: Inner) -> Inner:
            loss = partial(distance, network, z, goal, eps_c, w, at_step)
            (_, each), grads = jax.value_and_grad(loss, has_aux=True)(state.u)
            updates, moved = adam.update(grads, state.adam)
            going = state.going[:, None, None]
            u = jnp.where(going, state.u - rate * updates, state.u)
            told = jnp.where(state.going, each, -1.0)
            going_on = state.going & (each >= enough)
            return Inner(state.k + 1, u, moved, going_on, state.losses.at[state.k].set(told))

        none = jnp.full((inner_steps, len(z)), -1.0)
        first = Inner(jnp.int32(0), u, adam.init(u), jnp.ones(len(z), bool), none)
        inner = lax.while_loop(lambda x: (x.k < inner_steps) & x.going.any(), improve, first)
        eps_u, eps_again, _ = two_halves(network, z, at_step.t, inner.u, cond)
        reached = move(z, guided(eps_u, eps_again, w), at_step.before, at_step.after)
        taken = jnp.sum(inner.losses >= 0, axis=0)
        return (reached, inner.u), (inner.u, inner.losses, taken, z, eps_c, (eps_u, eps_again))

    u = jnp.broadcast_to(empty, cond.shape).astype(jnp.float32)
    goals = reference[-2::-1]
    numbers = first + jnp.arange(len(goals))
    _, found = lax.scan(step, (reference[-1], u), (numbers, steps, goals))
    return NullTexts(*found)


def null_text(
    network: ControlledNetwork,
    z: Latents,
    source: Context,
    target: Context,
    empty: Context,
    abar: Levels,
    w: Float[Array, " b"],
    near: Float[Array, ""],
    steps: int = 50,
    offset: int = 1,
    inner_steps: int = 10,
) -> tuple[Path, NullTexts, Path]:
    """DDIM inversion, `null_texts` for it, and generation with them under the target prompt.

    Published: 50 steps, w = 7.5, 10 inner steps, near 1e-5.
    """
    down = leading(abar, steps, offset)
    there = invert(network, z, source, inverted(down))
    found = null_texts(network, there.latents, source, empty, w, down, inner_steps, near)
    back = generate(network, there.latents[-1], found.embeddings, target, w, down)
    return there, found, back
