"""From energies to the guided noise prediction: gradient, rescaling, addition (method 4)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents, per_image

NEGLIGIBLE = 1e-8
"""A guider whose weighted energy is within this of zero is skipped."""


@struct.dataclass
class Strength:
    """How much of an edit is made, and how strongly the guiders hold it. All leaves are arrays: no
    change of them recompiles. Leading axes broadcast against (images, edits)."""

    scales: Float[Array, "*be g n"]
    """Weight v of each guider at each of the n steps."""
    lower: Float[Array, "*be"]
    upper: Float[Array, "*be"]
    """Bounds of |G| / |eps_trg - eps_inv|. 0 and infinity: G is not rescaled."""
    amount: Float[Array, "*be"] = np.float32(1.0)  # type: ignore[assignment]
    """0: the reconstruction, 1: the whole edit. Between them prompt and guidance are mixed."""


@struct.dataclass
class StepRecord:
    """What guidance did in one step, one entry per edit."""

    energies: Float[Array, "g b"]
    """Unweighted."""
    active: Float[Array, " b"]
    """Whether any guider was not negligible; if none, eps is the target pass's."""
    gradient_norm: Float[Array, " b"]
    difference_norm: Float[Array, " b"]
    """|eps_trg - eps_inv|."""
    ratio: Float[Array, " b"]
    scale: Float[Array, " b"]
    """The factor that G was multiplied by."""


def for_all_edits(x: Any, at: tuple[int, int], *trailing: int) -> Array:
    """What broadcasts to `at`, images and edits, and the trailing axes: (be, ...)."""
    return jnp.broadcast_to(x, (*at, *trailing)).reshape(at[0] * at[1], *trailing)


def norm(x: Latents) -> Float[Array, " b"]:
    """Euclidean norm over the whole of each image."""
    return jnp.sqrt(jnp.sum(x.astype(jnp.float32) ** 2, axis=(1, 2, 3)))


def rescale_factor(
    gradient_norm: Float[Array, " b"],
    difference_norm: Float[Array, " b"],
    lower: Float[Array, " b"],
    upper: Float[Array, " b"],
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """r = |G| / |eps_trg - eps_inv| and the factor clip(r, lower, upper) / r.

    r is 1 where the denominator is 0; the factor is 1 where |G| is 0. A lower bound above 0
    amplifies small gradients.
    """
    same = difference_norm == 0
    ratio = jnp.where(same, 1.0, gradient_norm / jnp.where(same, 1.0, difference_norm))
    none = gradient_norm == 0
    factor = jnp.clip(ratio, lower, upper) / jnp.where(none, 1.0, ratio)
    return ratio, jnp.where(none, 1.0, factor)


def guide(
    passes: Callable[[Latents], tuple[Float[Array, "g b"], Latents]],
    z: Latents,
    eps_inv: Latents,
    scales: Float[Array, "g b"],
    lower: Float[Array, " b"],
    upper: Float[Array, " b"],
) -> tuple[Latents, StepRecord]:
    """The guided noise prediction eps_trg + G · clip(r) / r, float32.

    Args:
        passes: the energies of all guiders and eps_trg, as a function of the current latent z.
        eps_inv: the inversion pass's prediction.
        scales: weight of each guider.
    """
    energies, pull_back, eps_trg = jax.vjp(passes, z, has_aux=True)
    counts = jnp.abs(scales * energies) > NEGLIGIBLE
    (gradient,) = pull_back(jnp.where(counts, scales, 0.0))
    eps_trg, eps_inv = eps_trg.astype(jnp.float32), eps_inv.astype(jnp.float32)
    gradient_norm, difference_norm = norm(gradient), norm(eps_trg - eps_inv)
    ratio, factor = rescale_factor(gradient_norm, difference_norm, lower, upper)
    active = jnp.any(counts, axis=0)
    record = StepRecord(energies, active, gradient_norm, difference_norm, ratio, factor)
    return eps_trg + per_image(factor) * gradient, record
