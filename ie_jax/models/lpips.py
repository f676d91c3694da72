"""LPIPS v0.1 with VGG16, Zhang et al. 2018 (arXiv 1801.03924): a learned distance between images.

Everything is a function of its parameters. They tell the network's depth and widths by themselves:
`conv<block>_<layer>` with `kernel` (3, 3, in, out) and `bias` (out,), and a `lin<i>` with `weight`
(out,) for each block; names are those of the VGG paper, a block ends before each pooling.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.models.convolution import convolution
from ie_jax.models.execution import Convolution
from ie_jax.models.pixels import Image

Params = Mapping[str, Any]

FLOAT32 = jnp.dtype("float32")
WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)
# From [-1, 1] to ImageNet's mean 0 and deviation 1, in the rounding of the published metric.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10


def blocks(params: Params) -> Iterator[list[str]]:
    """The names of the convolutions, block by block."""
    block = 1
    while f"conv{block}_1" in params:
        layers = sum(name.startswith(f"conv{block}_") for name in params)
        yield [f"conv{block}_{layer}" for layer in range(1, layers + 1)]
        block += 1


def unit(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Each pixel's channels divided by their length. Zeros stay zeros, with a finite gradient."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)
    return x / (length + EPSILON)


def activations(
    params: Params, x: Image, compute: jnp.dtype = FLOAT32, form: Convolution = "xla"
) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The activations at the end of each block, float32.

    Args:
        x: in [-1, 1]; sides of at least 2 ** (blocks - 1).
        compute: number type of the convolutions.
        form: how they are computed, see `Execution.convolution`.
    """
    x = (x.astype(jnp.float32) - jnp.asarray([[[SHIFT]]])) / jnp.asarray([[[SCALE]]])
    x = x.astype(compute)
    maps: list[Array] = []
    for layers in blocks(params):
        if maps:
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        for layer in layers:
            kernel, bias = params[layer]["kernel"], params[layer]["bias"].astype(compute)
            x = convolution(x, kernel.astype(compute), (1, 1), ((1, 1), (1, 1)), form)
            x = jax.nn.relu(x + jnp.broadcast_to(bias, x.shape))
        maps.append(x.astype(jnp.float32))
    return tuple(maps)


def features(
    params: Params, x: Image, compute: jnp.dtype = FLOAT32, form: Convolution = "xla"
) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The `activations`, of unit length over the channels."""
    return tuple(map(unit, activations(params, x, compute, form)))


def per_layer(
    params: Params, x: Image, y: Image, compute: jnp.dtype = FLOAT32, form: Convolution = "xla"
) -> Float[Array, "layers b"]:
    """The term of each block: weighted squared difference, summed over channels, averaged over
    pixels."""

    def term(layer: int, one: Array, other: Array) -> Array:
        weight = params[f"lin{layer}"]["weight"].astype(jnp.float32)
        weighted = jnp.square(one - other) * jnp.broadcast_to(weight, one.shape)
        return jnp.mean(jnp.sum(weighted, axis=-1), axis=(1, 2))

    pairs = zip(*(features(params, z, compute, form) for z in (x, y)), strict=True)
    return jnp.stack([term(layer, *pair) for layer, pair in enumerate(pairs)])


def lpips(
    params: Params, x: Image, y: Image, compute: jnp.dtype = FLOAT32, form: Convolution = "xla"
) -> Float[Array, " b"]:
    """The distance of two image batches in [-1, 1], at least 0, one number per pair.

    Args:
        compute: number type of the convolutions; the distance itself is float32.
        form: how they are computed, see `Execution.convolution`.
    """
    return jnp.sum(per_layer(params, x, y, compute, form), axis=0)


def lpips_shapes(
    widths: Sequence[int] = WIDTHS, depths: Sequence[int] = DEPTHS
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The parameters of a network with `depths[i]` convolutions of `widths[i]` channels in block i,
    as shapes."""

    def shape(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, jnp.float32)

    tree, channels = {}, 3
    for block, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for layer in range(1, depth + 1):
            kernel = shape(3, 3, channels, width)
            tree[f"conv{block}_{layer}"] = {"kernel": kernel, "bias": shape(width)}
            channels = width
        tree[f"lin{block - 1}"] = {"weight": shape(width)}
    return tree
