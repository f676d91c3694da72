"""LPIPS v0.1, Zhang et al. 2018 (arXiv 1801.03924): a learned distance between images, by VGG16,
AlexNet or SqueezeNet 1.1.

Everything is a function of its parameters, whose names tell the network and its depth. A layer has
`kernel` (height, width, in, out) and `bias` (out,), names are those of the networks' papers:

    VGG16       conv<block>_<layer>; a block ends before each pooling
    AlexNet     conv1 to conv5, in torchvision's widths
    SqueezeNet  conv1, and fire2 to fire9 with squeeze, expand1x1 and expand3x3

and a `lin<i>` with `weight` (out,) for each of the activations that are compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.models.convolution import convolution
from ie_jax.models.execution import Convolution
from ie_jax.models.pixels import Image

Params = Mapping[str, Any]
Layer = Callable[..., Array]
"""A convolution and its ReLU: (params, x, stride, padding) to the activation."""

FLOAT32 = jnp.dtype("float32")
WIDTHS = (64, 128, 256, 512, 512)
DEPTHS = (2, 2, 3, 3, 3)
# From [-1, 1] to ImageNet's mean 0 and deviation 1, in the rounding of the published metric.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10
ALEX = ((11, 64), (5, 192), (3, 384), (3, 256), (3, 256))
"""Window and width of AlexNet's convolutions."""
FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
"""Width of a fire module's squeezing layer, and of each of its two expanding ones."""


def blocks(params: Params) -> Iterator[list[str]]:
    """The names of VGG's convolutions, block by block."""
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
    """The activations that are compared, float32.

    Args:
        x: in [-1, 1]; sides of at least 2 ** (blocks - 1) for VGG, of 31 for the others.
        compute: number type of the convolutions.
        form: how they are computed, see `Execution.convolution`.
    """

    def layer(params: Params, x: Array, stride: int = 1, padding: int = 1) -> Array:
        kernel, bias = params["kernel"].astype(compute), params["bias"].astype(compute)
        x = convolution(x, kernel, (stride, stride), ((padding, padding),) * 2, form)
        return jax.nn.relu(x + jnp.broadcast_to(bias, x.shape))

    x = (x.astype(jnp.float32) - jnp.asarray([[[SHIFT]]])) / jnp.asarray([[[SCALE]]])
    maps = vgg if "conv1_1" in params else squeeze if "fire2" in params else alex
    return tuple(x.astype(jnp.float32) for x in maps(params, x.astype(compute), layer))


def pooled(x: Array, window: int) -> Array:
    """The largest of every second window."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, window, window, 1), (1, 2, 2, 1), "VALID")


def vgg(params: Params, x: Array, layer: Layer) -> Iterator[Array]:
    """The ends of VGG's blocks."""
    for number, layers in enumerate(blocks(params)):
        x = pooled(x, 2) if number else x
        for name in layers:
            x = layer(params[name], x)
        yield x


def alex(params: Params, x: Array, layer: Layer) -> Iterator[Array]:
    """AlexNet's convolutions."""
    for number, (stride, padding) in enumerate(((4, 2), (1, 2), (1, 1), (1, 1), (1, 1)), 1):
        x = pooled(x, 3) if number in (2, 3) else x
        x = layer(params[f"conv{number}"], x, stride, padding)
        yield x


def squeeze(params: Params, x: Array, layer: Layer) -> Iterator[Array]:
    """SqueezeNet's first layer, and fire modules 3, 5, 6, 7, 8 and 9."""
    x = layer(params["conv1"], x, 2, 0)
    yield x
    for number in range(2, 10):
        if number in (2, 4, 6):
            # Of an even side torchvision's last window has one pixel less: ceil_mode.
            even = tuple((0, side % 2 == 0) for side in x.shape[1:3])
            x = jnp.pad(x, ((0, 0), *even, (0, 0)), constant_values=-jnp.inf)
            x = pooled(x, 3)
        fire = params[f"fire{number}"]
        x = layer(fire["squeeze"], x, padding=0)
        wide = layer(fire["expand1x1"], x, padding=0), layer(fire["expand3x3"], x)
        x = jnp.concatenate(wide, axis=-1)
        if number in (3, 5, 6, 7, 8, 9):
            yield x


def features(
    params: Params, x: Image, compute: jnp.dtype = FLOAT32, form: Convolution = "xla"
) -> tuple[Float[Array, "b _ _ _"], ...]:
    """The `activations`, of unit length over the channels."""
    return tuple(map(unit, activations(params, x, compute, form)))


def per_layer(
    params: Params, x: Image, y: Image, compute: jnp.dtype = FLOAT32, form: Convolution = "xla"
) -> Float[Array, "layers b"]:
    """The term of each activation: weighted squared difference, summed over channels, averaged over
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


def shape(*sides: int) -> jax.ShapeDtypeStruct:
    """Of float32 numbers."""
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def lpips_shapes(
    widths: Sequence[int] = WIDTHS, depths: Sequence[int] = DEPTHS
) -> dict[str, dict[str, jax.ShapeDtypeStruct]]:
    """The parameters of a VGG network with `depths[i]` convolutions of `widths[i]` channels in
    block i, as shapes."""
    tree, channels = {}, 3
    for block, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
        for layer in range(1, depth + 1):
            tree[f"conv{block}_{layer}"] = layer_shapes(3, channels, width)
            channels = width
        tree[f"lin{block - 1}"] = {"weight": shape(width)}
    return tree


def layer_shapes(window: int, channels: int, width: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters of a convolution."""
    return {"kernel": shape(window, window, channels, width), "bias": shape(width)}


def alex_shapes() -> dict[str, Any]:
    """The parameters with AlexNet."""
    tree, channels = {}, 3
    for number, (window, width) in enumerate(ALEX):
        tree[f"conv{number + 1}"] = layer_shapes(window, channels, width)
        tree[f"lin{number}"] = {"weight": shape(width)}
        channels = width
    return tree


def squeeze_shapes() -> dict[str, Any]:
    """The parameters with SqueezeNet 1.1."""
    tree: dict[str, Any] = {"conv1": layer_shapes(3, 3, 64)}
    channels = 64
    for number, (narrow, wide) in enumerate(FIRES, 2):
        tree[f"fire{number}"] = {
            "squeeze": layer_shapes(1, channels, narrow),
            "expand1x1": layer_shapes(1, narrow, wide),
            "expand3x3": layer_shapes(3, narrow, wide),
        }
        channels = 2 * wide
    heads = (64, *(2 * FIRES[number - 2][1] for number in (3, 5, 6, 7, 8, 9)))
    return tree | {f"lin{i}": {"weight": shape(width)} for i, width in enumerate(heads)}
