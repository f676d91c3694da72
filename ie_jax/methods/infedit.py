"""InfEdit (Xu et al. 2023, arXiv 2312.04965): few steps of a consistency model, without inversion.

Three branches share their noise: the source, whose prediction is corrected to be exact, the target,
and between them a mutual branch, which has the target's queries on the source's keys and values.
Images go in three groups: source, target, mutual.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ie_jax.diffusion.consistency import Latents, per_image
from ie_jax.diffusion.ddim import Levels
from ie_jax.methods.prompt_to_prompt import (
    LARGEST,
    blend_maps,
    enlarged,
    grouped,
    looked_at,
    no_maps,
    placed,
)
from ie_jax.models.attention import Control, Heads, Keys, Site, attend, probabilities
from ie_jax.models.networks import ControlledNetwork

WORDS_FLOOR = 0.15
"""Divided by alpha_t, the least threshold of the target words' mask."""


@struct.dataclass
class Words:
    """Where the target may differ from the source. b images, l tokens."""

    target_words: Float[Array, "b l"]
    """1 for tokens around which the target may differ; none: everywhere."""
    source_words: Float[Array, "b l"]
    """1 for tokens around which it is the source."""
    both_words: Float[Array, "b l"]
    inside: Float[Array, "b l"]
    """1 for the tokens of the target prompt but its start and end."""
    target_threshold: Float[Array, ""]
    source_threshold: Float[Array, ""]


@struct.dataclass
class Branches:
    """What the target takes over. b images, l tokens."""

    matrix: Float[Array, "b l l"]
    own: Float[Array, "b l"]
    """As in `prompt_to_prompt.Edits`."""
    cross_steps: Float[Array, ""]
    self_steps: Float[Array, ""]
    """Shares of steps."""
    words: Words | None = None
    """None: the target may differ everywhere."""


class Seen(NamedTuple):
    """What a step computed."""

    eps: Float[Array, "b6 h w c"]
    """Of the doubled batch, the unconditional half first."""
    latents: Float[Array, "3 b h w c"]
    """Before the blend."""
    target: Latents
    """After it."""
    clean: Latents
    """The target's."""
    blend: Any
    """With words, of each around the target's, the source's, and both: masks (3 b h w), thresholds
    (3), maps (3 b h w)."""
    control: Any


def timesteps(steps: int, strength: float = 1.0, grid: int = 50, total: int = 1000) -> np.ndarray:
    """The timesteps of so many steps, falling: 999, 919, ... of 12; of a strength below 1 the last
    ones."""
    stride = total // grid
    falling = np.arange(grid, 0, -1) * stride - 1
    chosen = falling[np.floor(grid * np.arange(steps) / steps).astype(int)]
    return chosen[steps - int(steps * strength) :]


def of_self(q: Heads, k: Keys, v: Keys, early: Bool[Array, ""], plain: Any) -> Heads:
    """Self-attention of the branches. Early all have the source's maps; later the mutual branch has
    the target's queries on the source's keys and values."""
    (qs, qt, _), (ks, kt, _), (vs, vt, _) = (grouped(x, 3) for x in (q, k, v))
    qt, kt = jnp.where(early, qs, qt), jnp.where(early, ks, kt)
    return plain(
        jnp.concatenate([qs, qt, qt]),
        jnp.concatenate([ks, kt, ks]),
        jnp.concatenate([vs, vt, vs]),
    )


def control_of(
    branches: Branches,
    share: Float[Array, ""],
    take_from_mutual: bool,
    largest: int = LARGEST,
    probe: Sequence[int] = (),
) -> Control:
    """Attention of a step whose share of all steps, itself included, this is.

    Args:
        take_from_mutual: the target takes over the mutual branch's cross-attention, else the
            source's: the two published entry points differ.
        probe: numbers of layers whose maps, or outputs before projection, are returned.
    """
    early = branches.self_steps > share
    late_cross = branches.cross_steps < share

    def of_text(q: Heads, k: Keys, v: Keys) -> tuple[Heads, Array, Any]:
        maps = grouped(probabilities(q, k), 3)
        source, target, mutual = maps

        def aligned(taken: Array) -> Array:
            exact = lax.Precision.HIGHEST
            moved = jnp.einsum("bhnm,bmk->bhnk", taken, branches.matrix, precision=exact)
            return moved + target * branches.own[:, None, None]

        of_source, of_mutual = aligned(source), aligned(mutual)
        new = jnp.where(late_cross, target, of_mutual if take_from_mutual else of_source)
        edited = jnp.stack([source, new, mutual])
        y = attend(edited.reshape(-1, *edited.shape[2:]), v)
        return y, jnp.stack([of_source, of_mutual]).mean(axis=2), (maps, edited)

    def control(site: Site, q: Heads, k: Keys, v: Keys, plain: Any) -> tuple[Heads, Any]:
        half = len(q) // 2
        q1, k1, v1 = (x[:half] for x in (q, k, v))
        q2, k2, v2 = (x[half:] for x in (q, k, v))
        seen: dict[str, Any] = {}
        if site.is_cross:
            y, words, maps = of_text(q2, k2, v2)
            y = jnp.concatenate([plain(q1, k1, v1), y])
            if branches.words is not None and q.shape[1] <= largest:
                seen[f"words {site.place}"] = words
            if site.number in probe:
                seen[f"maps {site.number}"] = maps
        else:
            y = jnp.concatenate(
                [of_self(q1, k1, v1, early, plain), of_self(q2, k2, v2, early, plain)]
            )
        if site.number in probe:
            seen[f"output {site.number}"] = y
        return y, seen or None

    return control


def guided(eps: Float[Array, "b6 h w c"], w: Float[Array, "3 b"]) -> Float[Array, "3 b h w c"]:
    """Classifier-free guidance of the branches; of `eps` the first half is unconditional."""
    eps_u, eps_c = (grouped(x, 3) for x in jnp.split(eps, 2))
    return eps_u + w[:, :, None, None, None] * (eps_c - eps_u)


def virtual_inversion(
    z: Float[Array, "3 b h w c"],
    z0: Latents,
    eps: Float[Array, "3 b h w c"],
    alpha: Float[Array, ""],
    sigma: Float[Array, ""],
) -> tuple[Float[Array, "3 b h w c"], Float[Array, "3 b h w c"]]:
    """Clean latents and noise of the branches at a step, in place of what the network finds: the
    source's are the picture's own, those of the others as far from them as the network finds."""
    noise = (z[0] - alpha * z0) / sigma
    clean = z0[None] + ((z - z[:1]) - sigma * (eps - eps[:1])) / alpha
    moved = eps - eps[:1] + noise[None]
    return clean.at[0].set(z0), moved.at[0].set(moved[2])


def infedit(
    network: ControlledNetwork,
    z0: Latents,
    noise: Latents,
    step_noise: Float[Array, "n b h w c"],
    uncond: Float[Array, "3 b l d"],
    cond: Float[Array, "3 b l d"],
    w: Float[Array, "3 b"],
    abar: Levels,
    t: Int[Array, " n"],
    steps: int,
    branches: Branches,
    eta: Float[Array, ""],
    from_image: bool = False,
    take_from_mutual: bool = True,
    largest: int = LARGEST,
    probe: Sequence[int] = (),
) -> Seen:
    """The target in n steps of consistency; the result is the last step's `clean`.

    Published: 12 steps of a latent consistency model, w = 2.3 for the target and 1 for the others,
    eta 1. 12 calls of six times the batch.

    Args:
        z0: a sample of the posterior, scaled.
        step_noise: of each step, for all branches.
        uncond, cond: embeddings of source, target and mutual branch.
        t: the `timesteps`; `steps` counts those too that a strength below 1 leaves out.
        eta: the share of a step's noise, by variance, that is drawn anew.
        from_image: start from the noised image, else from noise alone.
    """
    n, b = len(t), len(z0)
    largest = looked_at(z0.shape[1], z0.shape[2], largest)
    alpha, sigma = jnp.sqrt(abar), jnp.sqrt(1 - abar)
    contexts = jnp.concatenate([uncond, cond]).reshape(6 * b, *cond.shape[2:])
    begun = jnp.where(from_image, alpha[t[0]] * z0 + sigma[t[0]] * noise, noise)

    def call(z: Float[Array, "3 b h w c"], t: Array | int, control: Control) -> Any:
        six = jnp.concatenate([z, z]).reshape(6 * b, *z.shape[2:])
        return network(six, jnp.full(6 * b, t), None, contexts, control)

    def step(carry: Any, now: Any) -> tuple[Any, Seen]:
        (z, summed), (i, t, p, drawn) = carry, now
        share = (i + 1 + steps - n) / steps
        eps6, out = call(z, t, control_of(branches, share, take_from_mutual, largest, probe))
        eps6 = eps6.astype(jnp.float32)
        clean, moved = virtual_inversion(z, z0, guided(eps6, w), alpha[t], sigma[t])
        kept = jnp.sqrt(sigma[p] ** 2 * (1 - eta))
        after = alpha[p] * clean + kept * moved + jnp.sqrt(eta) * sigma[p] * drawn[None]
        summed, blend, target = blended(branches.words, after, summed, out, alpha[t], i, n)
        seen = Seen(eps6, after, target, clean[1], blend, out["control"])
        return (after.at[1].set(target), summed), seen

    plain = control_of(branches, jnp.float32(0), take_from_mutual, largest)
    none = None
    if branches.words is not None:
        none = no_maps(lambda z: call(jnp.stack([z] * 3), 0, plain)[1]["control"], z0)
    p = jnp.append(t[1:], t[-1])
    z = jnp.stack([begun] * 3).astype(jnp.float32)
    return lax.scan(step, (z, none), (jnp.arange(n), t, p, step_noise))[1]


def blended(
    words: Words | None,
    after: Float[Array, "3 b h w c"],
    summed: Any,
    out: Any,
    alpha: Array,
    i: Array,
    n: int,
) -> tuple[Any, Any, Latents]:
    """The sum of maps, the blend as in `Seen`, and the target after it, in step i of n."""
    if words is None:
        return None, None, after[1]
    summed = summed + blend_maps(out["control"])
    masks = masks_of(words, summed, alpha, *after.shape[2:4])
    return summed, masks, jnp.where(i > 0, mixed(words, after, masks[0], i == n - 2), after[1])


def mixed(
    words: Words, after: Float[Array, "3 b h w c"], masks: Bool[Array, "3 b h w"], last: Array
) -> Latents:
    """The target with the mutual branch outside of its words and the source around the source's;
    in the `last` step of them the mutual branch around words of both."""
    source, target, mutual = after
    wanted, left, both = (mask[..., None] for mask in masks)
    has_words = per_image(jnp.any(words.target_words > 0, axis=1))
    found = jnp.where(has_words, jnp.where(wanted, target, mutual), target)
    found = jnp.where(left, source, found)
    return jnp.where(both & last, mutual, found)


def masks_of(
    words: Words, summed: Float[Array, "2 b q l"], alpha: Array, height: int, width: int
) -> tuple[Bool[Array, "3 b h w"], Float[Array, "3"], Float[Array, "3 b h0 w0"]]:
    """Masks, their thresholds, and the maps that they are made of: around the target's words
    (mutual maps), around the source's that are none of both (source maps), around both (mutual)."""
    source, mutual = summed
    parts = (
        (mutual, words.target_words),
        (source, words.source_words - words.both_words),
        (mutual, words.both_words),
    )
    maps = jnp.stack([jnp.max(x * (y * words.inside)[:, None], axis=-1) for x, y in parts])
    maps = placed(maps, height, width)
    large = enlarged(maps, height, width)
    first = jnp.maximum(WORDS_FLOOR / alpha, words.target_threshold)
    thresholds = jnp.stack([first, words.source_threshold, words.target_threshold])
    return large > thresholds[:, None, None, None], thresholds, maps


def joined(
    mapper: np.ndarray,
    weights: np.ndarray,
    source_states: np.ndarray,
    target_states: np.ndarray,
    length: int,
    source_length: int,
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """An alignment with one more pair for each run of target tokens without a source token, where
    source tokens without a target token stand between its neighbours': the most alike.

    As published, likeness is taken between the source prompt's state at the target's number and the
    target prompt's at the source's.

    Returns:
        mapper, weights, and the new pairs (target, source).
    """
    mapper, weights = mapper.copy(), weights.copy()
    pairs: list[tuple[int, int]] = []
    i = 0
    while i < length:
        if mapper[i] != -1:
            i += 1
            continue
        end = i
        while end < length and mapper[end] == -1:
            end += 1
        before = mapper[i - 1] if i else -1
        after = mapper[end] if end < length else source_length
        free = range(before + 1, after)
        if len(free):

            def likeness(pair: tuple[int, int]) -> float:
                a, b = source_states[pair[0]], target_states[pair[1]]
                return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

            best = max(((x, y) for x in range(i, end) for y in free), key=likeness)
            pairs.append(best)
        i = end
    for target, source in pairs:
        mapper[target], weights[target] = source, 1
    return mapper, weights, pairs
