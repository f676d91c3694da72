"""TurboEdit (Deutch et al. 2024, arXiv 2408.00735): an edit in as many calls as a few-step model
needs to generate.

The source is noised to each level with noise of its own. Three rows go down together: the source,
the edit under the source prompt, and the edit under the target prompt. What the source's step
misses the next noised source by is added to the edit's step, and the difference of the edit's two
rows is enlarged. Latents are noised a step lower than the timestep that the network is told.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents, add_noise, per_image, predict_clean
from ie_jax.diffusion.ddim import Levels
from ie_jax.methods.cfg import at
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import AnyContext

PUBLISHED_W = 1.5
PUBLISHED_LIMIT, PUBLISHED_SIDE = 15.5, 64
"""Of the last step's correction; for latents of 64 x 64, whose norm grows with their side."""
GRIDS = {3: ([799, 499, 199], [599, 299, 0]), 4: ([799, 599, 399, 199], [599, 399, 199, -1])}
"""Published: of so many steps what the network is told, and what latents are noised to."""


class Plan(NamedTuple):
    """Steps, falling."""

    t: Int[Array, " n"]
    """What the network is told."""
    noised: Int[Array, " n"]
    """The timestep that each step's latent is noised to; up to 0: not at all."""
    limits: Float[Array, " n"]
    """The largest norm of each step's correction; below 0: none."""


class Seen(NamedTuple):
    """What each step computed; rows are source, edit under the source prompt, edit."""

    taken: Float[Array, "n 3 b h w c"]
    eps: Float[Array, "n 3 b h w c"]
    means: Float[Array, "n 3 b h w c"]
    """Where each row's step leads to without noise."""
    missed: Float[Array, "n b h w c"]
    """The correction, before its limit."""
    norm: Float[Array, "n b"]
    kept: Float[Array, "n b"]
    """The share of it within the limit."""
    latents: Float[Array, "n 3 b h w c"]
    """After the step."""


def plan(steps: int = 4) -> Plan:
    """Published, for three and four steps."""
    if steps not in GRIDS:
        raise ValueError("TurboEdit was published for 3 and 4 steps: give another plan")
    t, noised = GRIDS[steps]
    limits = [-1.0] * (steps - 1) + [PUBLISHED_LIMIT]
    return Plan(jnp.array(t), jnp.array(noised), jnp.array(limits))


def posterior_mean(abar: Levels, x: Latents, eps: Latents, t: Array, after: Array) -> Latents:
    """The mean of DDPM's step from t to the level `after`; float32."""
    now = abar[t]
    share = now / after
    clean = predict_clean(abar, x, eps, jnp.broadcast_to(t, x.shape[:1]))
    of_clean = jnp.sqrt(after) * (1 - share) / (1 - now)
    return of_clean * clean + jnp.sqrt(share) * (1 - after) / (1 - now) * x


def noised_sources(
    abar: Levels, z: Latents, noise: Float[Array, "n b h w c"], plan: Plan
) -> Float[Array, "n1 b h w c"]:
    """The source as each step takes it, and at last clean."""

    def source(t: Array, noise: Latents) -> Latents:
        level = jnp.broadcast_to(jnp.maximum(t, 0), z.shape[:1])
        return jnp.where(t > 0, add_noise(abar, z, noise, level), z)

    return jnp.concatenate([jax.vmap(source)(plan.noised, noise), z[None]])


def turboedit(
    network: ControlledNetwork,
    z: Latents,
    noise: Float[Array, "n b h w c"],
    source: AnyContext,
    target: AnyContext,
    abar: Levels,
    plan: Plan,
    w: Float[Array, " b"],
) -> Seen:
    """An edit of a clean latent; the result is `latents[-1, 2]`. n calls of three rows.

    Args:
        noise: standard normal, for each step; that of a step that takes the clean latent counts for
            nothing.
        w: of the difference between the prompts; published 1.5.
    """
    z = z.astype(jnp.float32)
    sources = noised_sources(abar, z, noise, plan)
    rows = jax.tree.map(lambda s, t: jnp.concatenate([s, s, t]), source, target)
    after = jnp.append(abar[plan.t[1:]], 1.0)

    def step(x: Float[Array, "3 b h w c"], now: tuple[Array, ...]) -> tuple[Array, Seen]:
        t, after, limit, wanted = now
        flat = x.reshape(-1, *z.shape[1:])
        eps = at(network, flat, t, rows)
        means = posterior_mean(abar, flat, eps, t, after).reshape(x.shape)
        missed = wanted - means[0]
        norm = jnp.sqrt(jnp.sum(missed**2, axis=(1, 2, 3)))
        kept = jnp.where(limit < 0, 1.0, jnp.minimum(1.0, limit / norm))
        added = per_image(kept) * missed
        edit = means[1] + added + per_image(w) * (means[2] - means[1])
        following = jnp.stack([means[0] + added, edit, edit])
        seen = Seen(x, eps.reshape(x.shape), means, missed, norm, kept, following)
        return following, seen

    start = jnp.broadcast_to(sources[0], (3, *z.shape))
    return lax.scan(step, start, (plan.t, after, plan.limits, sources[1:]))[1]
