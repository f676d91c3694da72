"""Euler's ancestral steps, by which SDXL-Turbo samples (Karras et al. 2022, arXiv 2206.00364).

A latent is x0 + s noise at noise level s = sqrt((1 - abar) / abar); the network takes it divided by
sqrt(s² + 1). A step goes below the level that it leads to and adds noise up to it.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Levels


class Steps(NamedTuple):
    """Steps in the order of generation: where the network is asked, the level there, and the level
    below, which is 0 after the last."""

    t: Int[Array, " n"]
    high: Float[Array, " n"]
    low: Float[Array, " n"]


def trailing(steps: int, total: int = 1000) -> np.ndarray:
    """The grid T - 1, T - T/n - 1, ..., falling: 999, 749, 499, 249 of four steps."""
    # The order of operations is upstream's: with others some of 1000 points round elsewhere.
    return np.round(np.arange(total, 0, -total / steps)).astype(int) - 1


def noise_level(abar: Levels, t: Array) -> Array:
    """s of timesteps."""
    return jnp.sqrt((1 - abar[t]) / abar[t])


def turbo_steps(abar: Levels, steps: int = 4, below: float = 1.0) -> Steps:
    """Of the `trailing` grid the timesteps under a share `below` of all."""
    t = trailing(steps, len(abar))
    t = t[t < len(abar) * below]
    levels = noise_level(abar, jnp.asarray(t))
    return Steps(jnp.asarray(t), levels, jnp.append(levels[1:], 0.0))


def scaled(z: Latents, level: Array) -> Latents:
    """A latent as the network takes it."""
    return z / jnp.sqrt(level**2 + 1)


def split(high: Array, low: Array) -> tuple[Array, Array]:
    """The level that a step goes down to, and the size of the noise that it adds then."""
    return low**2 / high, jnp.sqrt(low**2 * jnp.abs(high**2 - low**2)) / high


def down(z: Latents, eps: Latents, noise: Latents, high: Array, low: Array) -> Latents:
    """A step of generation; float32."""
    to, size = split(high, low)
    return z + eps * (to - high) + noise * size


def up(z: Latents, eps: Latents, noise: Latents, high: Array, low: Array) -> Latents:
    """Where `down` by this prediction leads to z from."""
    to, size = split(high, low)
    return z - eps * (to - high) - noise * size
