"""The consistency step: from z_t to the boundary s of its segment (method 2)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from ie_jax.models.networks import Latents


def per_image(x: Shaped[Array, " b"]) -> Shaped[Array, "b 1 1 1"]:
    """One value per image, ready to scale latents."""
    return x[:, None, None, None]


def alpha_sigma(
    abar: Float[Array, " T"], t: Int[Array, " b"]
) -> tuple[Float[Array, "b 1 1 1"], Float[Array, "b 1 1 1"]]:
    """alpha_t and sigma_t."""
    at_t = abar[t]
    return per_image(jnp.sqrt(at_t)), per_image(jnp.sqrt(1.0 - at_t))


def predict_clean(
    abar: Float[Array, " T"], z: Latents, eps: Latents, t: Int[Array, " b"]
) -> Latents:
    """x0 = (z_t - sigma_t eps) / alpha_t."""
    alpha, sigma = alpha_sigma(abar, t)
    return (z - sigma * eps) / alpha


def consistency_step(
    abar: Float[Array, " T"],
    z: Latents,
    eps: Latents,
    t: Int[Array, " b"],
    s: Int[Array, " b"],
    hard: bool | Bool[Array, ""] = True,
) -> Latents:
    """z_s = alpha_s x0 + sigma_s eps, with the hard boundary alpha_0 = 1, sigma_0 = 0.

    float32 throughout, whatever the dtype of eps.

    Args:
        hard: False for a DDIM step, whose end keeps its noise level at timestep 0 too.
    """
    z, eps = z.astype(jnp.float32), eps.astype(jnp.float32)
    alpha, sigma = alpha_sigma(abar, s)
    end = per_image((s == 0) & hard)
    alpha, sigma = jnp.where(end, 1.0, alpha), jnp.where(end, 0.0, sigma)
    return alpha * predict_clean(abar, z, eps, t) + sigma * eps


def add_noise(abar: Float[Array, " T"], z: Latents, noise: Latents, t: Int[Array, " b"]) -> Latents:
    """alpha_t z + sigma_t noise. No special case at t = 0, where sigma is 0.029."""
    alpha, sigma = alpha_sigma(abar, t)
    return alpha * z + sigma * noise
