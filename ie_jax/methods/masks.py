"""Where an edit may change an image.

Outside a mask the latent at each boundary is the inversion's own latent at that boundary, and in
the end the pixels are the source's, exactly. A mask is drawn by a person, or found: from how far
the edit has left the inversion, which takes no network call. With both, an edit may change what
lies in both.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import lax
from jaxtyping import Array, Float

from ie_jax.diffusion.consistency import Latents
from ie_jax.methods.guidance import for_all_edits
from ie_jax.models.pixels import Image, Pixels

BLUR = 1 / 64
"""Of a picture's height: over so much the difference of two pictures is averaged."""
CELLS, PIXELS = 0.5, 0.6
"""How much of a high difference counts as a change (`high`): of latents; of pixels, whose
differences are taken by their square roots, since many changes are faint."""


@struct.dataclass
class Mask:
    """All leaves are arrays: no change of them recompiles. Leading axes broadcast against (images,
    edits)."""

    drawn: Float[Array, "*be H W"]
    """1 where pixels may change, 0 where not."""
    found: Float[Array, "*be"]
    """1: only where the edit is found to change something. 0: in all that is drawn."""
    feather: Float[Array, "*be"]
    """Pixels outside the mask over which the edit fades into the source."""


def per_edit(mask: Mask, b: int, e: int) -> Mask:
    """The mask of each edit, leaves (be, ...), from one whose leaves broadcast to (b, e, ...)."""
    shape = mask.drawn.shape[-2:]
    found, feather = (for_all_edits(x, (b, e)) for x in (mask.found, mask.feather))
    return Mask(for_all_edits(mask.drawn, (b, e), *shape), found, feather)


def blurred(x: Float[Array, "b h w"], reach: Float[Array, " b"]) -> Float[Array, "b h w"]:
    """Means under a triangle that falls to 0 just beyond `reach`, of what lies in the picture."""

    def weights(size: int) -> Float[Array, "b n m"]:
        at = jnp.arange(size)
        distance = jnp.abs(at[:, None] - at[None])[None]
        falling = jnp.maximum(1 - distance / (reach[:, None, None] + 1), 0)
        return falling / falling.sum(axis=2, keepdims=True)

    rows, columns = (weights(size) for size in x.shape[1:])
    exact = lax.Precision.HIGHEST
    return jnp.einsum("bin,bjm,bnm->bij", rows, columns, x, precision=exact)


def softened(mask: Float[Array, "b h w"], reach: Float[Array, " b"]) -> Float[Array, "b h w"]:
    """A mask that falls from 1 at its edge to 0 at `reach` outside."""
    return jnp.maximum(mask, jnp.clip(2 * blurred(mask, reach), 0.0, 1.0))


def grown(mask: Float[Array, "b h w"], cells: int = 1) -> Float[Array, "b h w"]:
    """A mask with all neighbours of its cells."""
    window = (2 * cells + 1,) * 2
    return nn.max_pool(mask[..., None], window, padding="SAME")[..., 0]


def threshold(x: Float[Array, "b n"]) -> Float[Array, " b"]:
    """What parts each row into low and high so that the two differ most (Otsu 1979)."""
    x = jnp.sort(x, axis=1)
    count, total = x.shape[1], jnp.cumsum(x, axis=1)
    low = jnp.arange(1, count)[None]
    means = total[:, :-1] / low, (total[:, -1:] - total[:, :-1]) / (count - low)
    between = low / count * (1 - low / count) * (means[1] - means[0]) ** 2
    at = jnp.argmax(between, axis=1)[:, None]
    return jnp.take_along_axis((x[:, :-1] + x[:, 1:]) / 2, at, axis=1)[:, 0]


def high(x: Float[Array, "b h w"], share: float) -> Float[Array, "b h w"]:
    """1 where a map has at least a share of what its high part has in the mean. So a map that is
    high everywhere is not parted by its noise."""
    part = x > threshold(x.reshape(len(x), -1))[:, None, None]
    mean = jnp.sum(x * part, axis=(1, 2)) / jnp.maximum(jnp.sum(part, axis=(1, 2)), 1)
    return (x > share * mean[:, None, None]).astype(jnp.float32)


def changed_cells(seen: Float[Array, "b h w"]) -> Float[Array, "b h w"]:
    """1 in the latent's cells that an edit changes, and their neighbours; see `keep_outside`."""
    return grown(high(seen, CELLS))


def apart(x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]) -> Float[Array, "b h w"]:
    """How far two maps of vectors lie apart in each place."""
    return jnp.sqrt(jnp.mean((x - y) ** 2, axis=3))


def keep_outside(
    z: Latents, kept: Latents, mask: Mask, seen: Float[Array, "b h w"]
) -> tuple[Latents, Float[Array, "b h w"]]:
    """The latents of a boundary with those of the inversion outside the mask.

    Args:
        z, kept: the edit's latents and the inversion's.
        mask: leaves (b, ...).
        seen: how far both lay apart at the boundaries before, summed.

    Returns:
        the latents, and `seen` with this boundary.
    """
    away = apart(z, kept)
    seen = seen + away / (away.mean(axis=(1, 2), keepdims=True) + 1e-6)
    pixels, cells = mask.drawn.shape[1:], z.shape[1:3]
    window = (pixels[0] // cells[0], pixels[1] // cells[1])
    drawn = nn.max_pool(mask.drawn[..., None], window, window)[..., 0]
    found = jnp.where(mask.found[:, None, None] > 0, changed_cells(seen), 1.0)
    share = softened(drawn * found, jnp.ones(len(z)))[..., None]
    return share * z + (1 - share) * kept, seen


def keep_pixels(
    image: Pixels | Image, source: Pixels | Image, mask: Mask, seen: Float[Array, "b h w"]
) -> tuple[Pixels | Image, Float[Array, "b H W"]]:
    """A decoded edit with the source's pixels outside the mask.

    Args:
        image, source: both bytes or both in [-1, 1].
        seen: see `keep_outside`, of the last boundary.

    Returns:
        the image, and the mask: 1 where the edit was left free to change pixels.
    """
    b, height, width, _ = image.shape
    edited, own = (x.astype(jnp.float32) for x in (image, source))
    changed = blurred(apart(edited, own), jnp.full(b, height * BLUR))
    near = jax.image.resize(changed_cells(seen), (b, height, width), "nearest")
    found = near * high(jnp.sqrt(changed), PIXELS)
    area = mask.drawn * jnp.where(mask.found[:, None, None] > 0, found, 1.0)
    share = softened(area, mask.feather)[..., None]
    mixed = share * edited + (1 - share) * own
    return (jnp.round(mixed) if image.dtype == jnp.uint8 else mixed).astype(image.dtype), area
