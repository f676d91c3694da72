"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626): the target is generated beside the
source, and takes over its attention.

Images go in two groups, all sources, then all targets. A `Control` sees the rows of a network call
and changes those of the targets; it is static in structure, and everything that a person may set is
an array of `Edits` or `Blend`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from ie_jax.diffusion.consistency import Latents
from ie_jax.diffusion.ddim import Steps, move
from ie_jax.errors import UserError
from ie_jax.methods.cfg import Path, guided, pair, two_halves
from ie_jax.models.attention import Control, Heads, Keys, Site, attend, probabilities
from ie_jax.models.networks import ControlledNetwork
from ie_jax.models.unet import Context

LARGEST = 32 * 32
"""Tokens of the largest maps that are replaced or looked at."""


@struct.dataclass
class Edits:
    """What the target takes over. b images, n steps."""

    matrix: Float[Array, "b l l"]
    """Source tokens to target tokens, see `prompts.Alignment`."""
    own: Float[Array, "b l"]
    """How much a target token keeps of its own map."""
    equalizer: Float[Array, "b l"]
    """Factors of the taken maps; 1 leaves them."""
    cross: Float[Array, "n1 b l"]
    """1 in the steps in which a token takes over cross-attention; one row more than steps."""
    self_steps: Int[Array, " 2"]
    """First step, and the one after the last, in which self-attention is taken over."""


@struct.dataclass
class Blend:
    """Where the target may differ from the source: around the words' maps."""

    words: Float[Array, "2 b l"]
    """1 for the tokens that count, of the source and of the target prompt."""
    without: Float[Array, "2 b l"]
    """Tokens around which it may not."""
    threshold: Float[Array, ""]
    without_threshold: Float[Array, ""]
    start: Int[Array, ""]
    """The first step."""


class Masks(NamedTuple):
    """What a blend saw in a step; the groups are source and target."""

    maps: Float[Array, "2 b h w"]
    """Means of the words' maps, summed over steps, before pooling."""
    wanted: Float[Array, "2 b h w"]
    """1 around the words."""
    without: Float[Array, "2 b h w"]
    """1 around the words to leave out."""

    @property
    def mask(self) -> Float[Array, "2 b h w"]:
        """1 where an image may differ from the source."""
        return self.wanted * (1 - self.without)


def grouped(x: Array, groups: int) -> Array:
    """(groups * b, ...) as (groups, b, ...)."""
    return x.reshape(groups, -1, *x.shape[1:])


def of_source(x: Heads | Keys, taken: Array) -> Heads | Keys:
    """Queries or keys of both groups; where `taken`, targets have those of their sources."""
    source, target = grouped(x, 2)
    return jnp.concatenate([source, jnp.where(taken, source, target)])


def control_of(
    edits: Edits,
    step: Int[Array, ""],
    groups: int,
    words: Float[Array, "k 2 b l"] | None = None,
    largest: int = LARGEST,
    probe: Sequence[int] = (),
    looked: int = LARGEST,
) -> Control:
    """Attention of a step, in calls whose last two groups are sources and targets.

    Args:
        groups: of a call's rows: 4 with guidance, whose unconditional half stays, or 2.
        words: for each layer, the maps of these tokens are returned, summed over them and averaged
            over heads: (k, 2, b, queries). None: nothing is.
        largest: tokens of the largest maps that self-attention takes over.
        probe: numbers of layers whose maps of both groups are returned too, before and after.
        looked: tokens of the largest maps that are returned for `words`, see `looked_at`.
    """
    first, end = edits.self_steps
    takes_self = (step >= first) & (step < end)
    alpha = edits.cross[step][:, None, None]  # b, heads, queries, tokens

    def of_text(q: Heads, k: Keys, v: Keys) -> tuple[Heads, Any, tuple[Array, Array]]:
        maps = grouped(probabilities(q, k), 2)
        source, target = maps
        exact = lax.Precision.HIGHEST
        taken = jnp.einsum("bhnm,bmk->bhnk", source, edits.matrix, precision=exact)
        taken = (taken + target * edits.own[:, None, None]) * edits.equalizer[:, None, None]
        target = taken * alpha + target * (1 - alpha)
        edited = jnp.stack([source, target])
        seen = None
        if words is not None and q.shape[1] <= looked:
            seen = jnp.einsum("gbhnm,kgbm->kgbn", edited, words, precision=exact) / q.shape[2]
        y = attend(edited.reshape(-1, *edited.shape[2:]), v)
        return y, seen, (maps, edited)

    def control(site: Site, q: Heads, k: Keys, v: Keys, plain: Any) -> tuple[Heads, Any]:
        rest = (groups - 2) * (len(q) // groups)
        before = plain(*(x[:rest] for x in (q, k, v))) if rest else None
        q, k, v = (x[rest:] for x in (q, k, v))
        seen: dict[str, Any] = {}
        if site.is_cross:
            y, near, maps = of_text(q, k, v)
            seen = {} if near is None else {f"words {site.place}": near}
            if site.number in probe:
                seen |= {f"maps {site.number}": maps}
        else:
            edited = q, k
            if q.shape[1] <= largest:
                edited = of_source(q, takes_self), of_source(k, takes_self)
            y = plain(*edited, v)
            if site.number in probe:
                maps = grouped(probabilities(q, k), 2), grouped(probabilities(*edited), 2)
                seen = {f"maps {site.number}": maps}
        return (y if before is None else jnp.concatenate([before, y])), seen or None

    return control


def blend_maps(seen: Sequence[Any]) -> Array:
    """The maps that a blend looks at, averaged over their layers: of those that a `Control`
    returned, the third and fourth on the way down and the first three on the way up. For 64 x 64
    latents these are the five of 16 x 16. With `control_of` here: (k, 2, b, queries).

    Raises:
        UserError: the model has none, or of several sizes.
    """
    down, up = ([x[name] for x in seen if name in x] for name in ("words down", "words up"))
    maps = [*down[2:4], *up[:3]]
    if len({x.shape for x in maps}) != 1:
        raise UserError("blend: this model has no cross-attention maps of one size to look at")
    return jnp.mean(jnp.stack(maps), axis=0)


def looked_at(height: int, width: int, largest: int) -> int:
    """Tokens of the largest maps that a blend looks at: those of half a latent's sides. Of 64 x 64
    latents these are the published 32 x 32."""
    return min(largest, height * width // 4)


def placed(maps: Float[Array, "*any q"], height: int, width: int) -> Float[Array, "*any h w"]:
    """Maps over the pixels of a picture, shaped as latents of this height and width."""
    rows = round((maps.shape[-1] * height / width) ** 0.5)
    return maps.reshape(*maps.shape[:-1], rows, -1)


def no_maps(call: Callable[[Latents], Sequence[Any]], z: Latents) -> Array:
    """Zeros of the shape of `blend_maps` of what the controls of this call return: nothing is
    computed."""
    return jnp.zeros(jax.eval_shape(lambda z: blend_maps(call(z)), z).shape, jnp.float32)


def enlarged(
    maps: Float[Array, "k b h0 w0"], height: int, width: int
) -> Float[Array, "k b height width"]:
    """Maps of a latent's size, by the nearest pixel, with 1 as largest value. 0 / 0 is NaN, which
    is over no threshold."""
    rows = jnp.arange(height) * maps.shape[2] // height
    columns = jnp.arange(width) * maps.shape[3] // width
    large = maps[:, :, rows][:, :, :, columns]
    return large / jnp.max(large, axis=(2, 3), keepdims=True)


def masks_of(blend: Blend, summed: Float[Array, "2 2 b q"], height: int, width: int) -> Masks:
    """Masks from maps summed over steps: [words, words to leave out]."""
    maps = placed(summed, height, width)

    def mask(x: Array, threshold: Array, pool: bool) -> Array:
        if pool:
            x = nn.max_pool(x.reshape(-1, *x.shape[2:], 1), (3, 3), padding="SAME").reshape(x.shape)
        over = (enlarged(x, height, width) > threshold).astype(jnp.float32)
        return jnp.stack([over[0], jnp.maximum(over[0], over[1])])

    wanted = mask(maps[0], blend.threshold, True)
    left_out = mask(maps[1], blend.without_threshold, False)
    return Masks(maps[0], wanted, left_out)


def blended(z: Latents, masks: Masks, on: Array) -> Latents:
    """The source's latent where the mask is 0, from the first step of the blend on."""
    groups = grouped(z, 2)
    mixed = groups[:1] + masks.mask[..., None] * (groups - groups[:1])
    return jnp.where(on, mixed.reshape(z.shape), z)


def prompt_to_prompt(
    network: ControlledNetwork,
    z: Latents,
    uncond: Float[Array, "n b l d"],
    source: Context,
    target: Context,
    w: Float[Array, " b"],
    steps: Steps,
    edits: Edits,
    blend: Blend | None = None,
    offsets: Float[Array, "n b h w c"] | None = None,
    largest: int = LARGEST,
) -> tuple[Path, Masks | None]:
    """Source and target from one noise, the target with the source's attention.

    Published: refinement, 50 steps, w = 7.5, cross-attention in the first 0.4 of the steps and
    self-attention in 0.6, on any of DDIM, null-text and negative-prompt inversion, which `uncond`
    comes from. 50 calls of four times the batch.

    Args:
        z: noise, (b h w c).
        uncond: the unconditional embedding of each step.
        blend: None: the target may differ everywhere.
        offsets: added to the sources after each step (see `direct_inversion`).

    Returns:
        The path of sources and targets, (n + 1, 2 b, h, w, c), and what the blend saw.
    """
    cond, both_w = pair(source, target), pair(w, w)
    words = None if blend is None else jnp.stack([blend.words, blend.without])
    height, width = z.shape[1:3]

    def call(z: Latents, i: Array, t: Array, uncond: Array) -> tuple[Array, Array, Any]:
        looked = looked_at(height, width, largest)
        control = control_of(edits, i, 4, words, largest, looked=looked)
        eps_u, eps_c, out = two_halves(network, z, t, uncond, cond, control)
        return eps_u, eps_c, out["control"]

    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        (z, summed), (i, at, uncond, offset) = carry, now
        eps_u, eps_c, seen = call(z, i, at.t, pair(uncond, uncond))
        z = move(z, guided(eps_u, eps_c, both_w), at.before, at.after)
        if offset is not None:
            z = z + pair(offset, jnp.zeros_like(offset))
        masks = None
        if blend is not None:
            summed = summed + blend_maps(seen)
            masks = masks_of(blend, summed, height, width)
            z = blended(z, masks, i >= blend.start)
        return (z, summed), (z, (eps_u, eps_c), masks)

    start = pair(z, z).astype(jnp.float32)
    n = len(steps.t)
    none: Any = jnp.float32(0)
    if blend is not None:
        none = no_maps(lambda z: call(z, jnp.int32(0), steps.t[0], cond)[2], start)
    at = (jnp.arange(n), steps, uncond, offsets)
    _, (latents, eps, masks) = lax.scan(step, (start, none), at)
    return Path(jnp.concatenate([start[None], latents]), eps), masks
