"""Noise levels and the timesteps that inversion and generation visit."""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Num

from ie_jax.errors import UserError

BOUNDARIES = (259, 519, 779, 999)
GUIDANCE = (0.0, 7.0, 11.0, 19.0)
BETAS = (0.00085, 0.012, 1000)
Numbers = float | Num[np.ndarray, "..."]


def cumulative_alphas(
    betas: tuple[float, float, int] = BETAS,
) -> Float[np.ndarray, " T"]:
    """abar_t of the scaled linear schedule (method 1), float32.

    Args:
        betas: first beta, last beta, number of timesteps.
    """
    first, last, steps = betas
    root = np.linspace(np.sqrt(first), np.sqrt(last), steps, dtype=np.float64)
    return np.cumprod(1.0 - root**2).astype(np.float32)


@struct.dataclass
class Schedule:
    """What the steps of inversion and generation are. All leaves are arrays, so that a change of
    value never recompiles; n is the number of steps of either direction.

    Timesteps may carry a leading axis (one schedule per image), guidance leading axes that
    broadcast against (images, edits).
    """

    abar: Float[Array, " T"]
    forward_t: Int[Array, "*b n"]
    """Timestep before each inversion step: start, then every boundary but the last."""
    forward_s: Int[Array, "*b n"]
    """Timestep after each inversion step: the boundaries."""
    backward_t: Int[Array, "*b n"]
    """Timestep before each generation step: the boundaries, falling."""
    backward_s: Int[Array, "*b n"]
    """Timestep after each generation step, falling to 0."""
    guidance: Float[Array, "*be n"]
    """Guidance scale w of each generation step."""
    start_noise: Float[Array, ""]
    """1: inversion starts from the latent noised to the start timestep, as published; 0: from the
    clean latent."""

    @property
    def steps(self) -> int:
        """n."""
        return self.forward_t.shape[-1]


def make_schedule(
    boundaries: Sequence[int] = BOUNDARIES,
    start_timestep: int = 0,
    guidance: Sequence[float] | Float[np.ndarray, "*be n"] = GUIDANCE,
    start_noise: bool = True,
    betas: tuple[float, float, int] = BETAS,
) -> Schedule:
    """A schedule over `boundaries` (rising timesteps), from `start_timestep` (0 or 19 published).

    Raises:
        UserError: boundaries do not rise from the start within the noise schedule, or guidance has
            another number of steps.
    """
    abar = cumulative_alphas(betas)
    rising = (start_timestep, *boundaries)
    if not boundaries or rising[0] < 0 or rising[-1] >= len(abar):
        raise UserError(
            f"boundaries {list(boundaries)} with start {start_timestep} leave 0..{len(abar) - 1}"
        )
    if any(a >= b for a, b in pairwise(rising)):
        raise UserError(
            f"boundaries {list(boundaries)} must rise, from above the start {start_timestep}"
        )
    w = np.asarray(guidance, np.float32)
    if w.ndim == 0 or w.shape[-1] != len(boundaries):
        raise UserError(
            f"cfg_schedule has {w.shape[-1] if w.ndim else 1} values, but there are "
            f"{len(boundaries)} steps (boundaries {list(boundaries)}): give one value per step"
        )
    t = np.asarray(rising, np.int32)
    return Schedule(
        abar=jnp.asarray(abar),
        forward_t=jnp.asarray(t[:-1]),
        forward_s=jnp.asarray(t[1:]),
        backward_t=jnp.asarray(t[:0:-1]),
        backward_s=jnp.asarray(np.append(t[-2:0:-1], 0).astype(np.int32)),
        guidance=jnp.asarray(w),
        start_noise=jnp.float32(start_noise),
    )


def dynamic_guidance(
    t: Numbers, w: Numbers, tau1: Numbers, tau2: Numbers
) -> Float[np.ndarray, "..."]:
    """Invertible-CD's guidance schedule, float32: w up to tau1, 0 from tau2 on, linear between,
    where t/1000 is compared. With tau1 = tau2 a step, at which w holds."""
    u = np.asarray(t, np.float64) / 1000.0
    ramp = (tau2 - u) / np.where(tau2 == tau1, 1.0, tau2 - tau1)
    return np.asarray(w * np.where(u <= tau1, 1.0, np.where(u >= tau2, 0.0, ramp)), np.float32)
