"""MasaCtrl (Cao et al. 2023, arXiv 2304.08465): from some step and layer on, the target looks with
its own queries at the keys and values of the source."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Steps, move
from ie_jax.methods.cfg import Path, guided, pair, two_halves
from ie_jax.methods.prompt_to_prompt import grouped
from ie_jax.models.attention import Control, Heads, Keys, Site
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import Context


def mutual_attention(on: Array, first_layer: Int[Array, ""], probe: Sequence[int] = ()) -> Control:
    """Both images of each half of the guidance attend to that half's source.

    Args:
        on: whether at all, in this step.
        first_layer: of the self-attention layers, 0 to 15 in order of execution.
        probe: of these self-attention layers queries, keys, values, and the output without and with
            the control are returned.
    """

    def control(site: Site, q: Heads, k: Keys, v: Keys, plain: Any) -> tuple[Heads, Any]:
        if site.is_cross:
            return plain(q, k, v), None
        layer = site.number // 2

        def of_source(x: Heads) -> Heads:
            shared = jnp.repeat(grouped(x, 4)[0::2], 2, axis=0).reshape(x.shape)
            return jnp.where(on & (layer >= first_layer), shared, x)

        y = plain(q, of_source(k), of_source(v))
        if layer not in probe:
            return y, None
        return y, {f"layer {layer}": (q, k, v, plain(q, k, v), y)}

    return control


def masactrl(
    network: ControlledNetwork,
    z: Latents,
    empty: Float[Array, "b2 l d"],
    source: Context,
    target: Context,
    w: Float[Array, " b"],
    steps: Steps,
    first_step: Int[Array, ""],
    first_layer: Int[Array, ""],
    reference: Float[Array, "n1 b h w c"] | None = None,
) -> tuple[Path, Float[Array, "n b2 h w c"]]:
    """Source and target from one noise.

    Published: 50 steps, w = 7.5, from step 4 and layer 10 on, with an empty source prompt (also of
    the inversion). 50 calls of four times the batch.

    Args:
        z: noise, (b h w c).
        empty: the unconditional embedding of sources and targets.
        reference: the inversion's latents, the clean one first, which take the source's place
            before each step. None: it goes its own way.

    Returns:
        The path of sources and targets, and what each step took.
    """
    cond, both_w = pair(source, target), pair(w, w)
    given = None if reference is None else reference[:0:-1]

    def step(z: Latents, now: Any) -> tuple[Latents, Any]:
        i, at, known = now
        if known is not None:
            z = pair(known, grouped(z, 2)[1])
        control = mutual_attention(i >= first_step, first_layer)
        eps_u, eps_c, _ = two_halves(network, z, at.t, empty, cond, control)
        after = move(z, guided(eps_u, eps_c, both_w), at.before, at.after)
        return after, (after, (eps_u, eps_c), z)

    start = pair(z, z).astype(jnp.float32)
    at = (jnp.arange(len(steps.t)), steps, given)
    _, (latents, eps, taken) = lax.scan(step, start, at)
    return Path(jnp.concatenate([start[None], latents]), eps), taken
