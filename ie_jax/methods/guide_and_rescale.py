"""Guide-and-Rescale (Titov et al. 2024, arXiv 2409.01322): classifier-free guidance, and the
gradient of energies that compare the edit with the inversion, scaled to the guidance's size."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents, per_image
from ie_jax.diffusion.ddim import Levels, Steps, leading, move
from ie_jax.methods.cfg import Path, invert
from ie_jax.methods.guidance import NEGLIGIBLE, norm, rescale_factor
from ie_jax.methods.guiders import feature_energy, self_attention_energy
from ie_jax.models.networks import Network
from ie_jax.models.unet import Context, Out


class Energy(NamedTuple):
    """A measure of how far an edit has moved."""

    function: Callable[[Out, Out, Out], Float[Array, " b"]]
    """(source pass, inversion pass, target pass) -> one number for each image."""
    of_source: bool = True
    """Whether it compares source and inversion pass, which are one where their latents are."""


def appearance(block: str) -> Energy:
    """Mean absolute difference of features between source and inversion pass: of the `last` up
    block, or of the `norm` after it."""

    def energy(source: Out, inversion: Out, target: Out) -> Float[Array, " b"]:
        ours, theirs = (x["features"][block].astype(jnp.float32) for x in (source, inversion))
        return jnp.mean(jnp.abs(ours - theirs), axis=(1, 2, 3))

    return Energy(energy)


LAYOUT = Energy(self_attention_energy)
"""Squared differences of self-attention maps between source and inversion pass."""
FEATURES = Energy(feature_energy, of_source=False)
"""Squared difference of features between target and inversion pass."""


class GuiderGroup(NamedTuple):
    """Energies that are weighed and skipped as one."""

    energies: tuple[Energy, ...]


NON_STYLE = (GuiderGroup((LAYOUT, appearance("last"))),)
"""Published weights 300000 and 500 in the first 30 of 50 steps, bounds 1/3 and 3."""
STYLE = (GuiderGroup((LAYOUT,)), GuiderGroup((FEATURES,)))
STYLE_SETTINGS: Mapping[str, Any] = {
    "layout": 1e5,
    "appearance": 2.5,
    "guided_steps": 0.5,
    "bounds": (1.5, 1.5),
}
"""Published, of 50 steps; those of other edits are `Settings`' own."""


class Seen(NamedTuple):
    """What a step computed. g groups of energies, e energies in all."""

    latent_in: Latents
    latent_out: Latents
    eps_uncond: Latents
    eps_inv: Latents
    eps_src: Latents
    eps_trg: Latents
    eps: Latents
    gradient: Latents
    energies: Float[Array, "e b"]
    """Unweighted."""
    groups: Float[Array, "g b"]
    """Weighted sums."""
    active: Float[Array, " b"]
    cfg_norm: Float[Array, " b"]
    """Of the guidance term with its weight."""
    gradient_norm: Float[Array, " b"]
    ratio: Float[Array, " b"]
    factor: Float[Array, " b"]


def upwards(abar: Levels, steps: int) -> Steps:
    """Inversion on the grid 0, T/n, ...: from a point's own level to the next point's."""
    stride = len(abar) // steps
    t = stride * jnp.arange(steps)
    return Steps(t, abar[t], abar[jnp.minimum(t + stride, len(abar) - 1)])


def sizes_of(groups: Sequence[GuiderGroup]) -> np.ndarray:
    """How many energies each group has."""
    return np.array([len(group.energies) for group in groups])


def group_sums(energies: Float[Array, "e b"], groups: Sequence[GuiderGroup]) -> Float[Array, "g b"]:
    """The sum of each group's energies."""
    parts = jnp.split(energies, np.cumsum(sizes_of(groups))[:-1])
    return jnp.stack([jnp.sum(part, axis=0) for part in parts])


def compared(
    call: Callable[[Latents, Context], tuple[Latents, Out]],
    energies: Sequence[Energy],
    source: Context,
    target: Context,
    reference: Latents,
    inversion: Out,
) -> Callable[[Latents], tuple[Float[Array, "e b"], tuple[Latents, Latents]]]:
    """A function of a latent: the energies there, beside the `inversion` pass from the `reference`,
    and what the source and the target pass predict."""

    def passes(z: Latents) -> tuple[Array, tuple[Latents, Latents]]:
        both = call(jnp.concatenate([z, z]), jnp.concatenate([source, target]))
        (eps_src, of_src), (eps_trg, of_trg) = (
            jax.tree.map(lambda x, h=h: jnp.split(x, 2)[h], both) for h in (0, 1)
        )
        # Rounding, which differs between calls, must not look like a difference.
        same = jnp.all(z == reference, axis=(1, 2, 3))
        found = [
            jnp.where(same & energy.of_source, 0.0, energy.function(of_src, inversion, of_trg))
            for energy in energies
        ]
        return jnp.stack(found), (eps_src, eps_trg)

    return passes


def guide_and_rescale(
    network: Network,
    z: Latents,
    source: Context,
    target: Context,
    empty: Context,
    abar: Levels,
    w: Float[Array, " b"],
    weights: Float[Array, "n e"],
    bounds: tuple[Array, Array],
    groups: Sequence[GuiderGroup] = NON_STYLE,
    steps: int = 50,
) -> tuple[Path, Seen]:
    """Inversion under the source prompt, and guided generation under the target prompt.

    Published: 50 steps, w = 7.5. 50 calls, and 50 of four times the batch with gradient.

    Args:
        network: returns features and queries_keys.
        empty: the unconditional embedding: the empty prompt's, or as in `negative_prompt` another.
        weights: of each energy in each step, in the order of `groups`.
        bounds: of the ratio of the gradient's norm to that of the guidance term.
    """
    there = invert(network, z, source, upwards(abar, steps))
    empty = jnp.broadcast_to(empty, source.shape)
    energies = [energy for group in groups for energy in group.energies]

    def call(t: Array, z: Latents, context: Context) -> tuple[Latents, Out]:
        t = jnp.broadcast_to(t, z.shape[:1])
        eps, out = network(z, t, jnp.zeros(len(z)), context)
        return eps.astype(jnp.float32), out

    def step(z: Latents, now: Any) -> tuple[Latents, Seen]:
        at, reference, weight = now
        eps_uncond, _ = call(at.t, z, empty)
        eps_inv, out_inv = call(at.t, reference, source)
        passes = compared(partial(call, at.t), energies, source, target, reference, out_inv)
        found, pull_back, (eps_src, eps_trg) = jax.vjp(passes, z, has_aux=True)
        sums = group_sums(weight[:, None] * found, groups)
        counts = jnp.abs(sums) > NEGLIGIBLE
        each = jnp.repeat(counts, sizes_of(groups), axis=0)
        (gradient,) = pull_back(jnp.where(each, weight[:, None], 0.0))
        term = per_image(w) * (eps_trg - eps_uncond)
        sizes = norm(gradient), norm(term)
        ratio, factor = rescale_factor(*sizes, *bounds)
        eps = eps_uncond + term + per_image(factor) * gradient
        after = move(z, eps, at.before, at.after)
        active = jnp.any(counts, axis=0)
        seen = (z, after, eps_uncond, eps_inv, eps_src, eps_trg, eps, gradient, found, sums)
        return after, Seen(*seen, active, sizes[1], sizes[0], ratio, factor)

    down = leading(abar, steps, 0)
    start = there.latents[-1]
    _, seen = lax.scan(step, start, (down, there.latents[:0:-1], weights))
    return there, seen
