"""Convolution, in the forms that are fastest on a CPU or as XLA has it.

XLA's CPU compiler has one fast kernel for convolutions, direct, for NHWC by HWIO. Two things cost:

- Windows of 3 x 3 over many channels are faster as plain matrix products, in one of two forms that
  the size decides (see `fast`).
- JAX's own gradients have other layouts. Outside of loops the compiler mends that; inside they
  become naive loops, ten times slower. Here they are written as NHWC by HWIO to begin with.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.models.execution import Convolution, exact

Pair = tuple[int, int]
Padding = Sequence[Pair]
MANY_CHANNELS = 96
"""Matrix products pay where input and output have at least so many."""
IM2COL_PIXELS = 16 * 16
"""Up to so many the window's pixels are laid side by side."""
WINOGRAD_PIXELS = 256 * 256
"""Up to so many tiles are transformed; with more, they no longer fit the cache."""


def direct(
    x: Array, kernel: Array, stride: Pair, padding: Padding, dilation: Pair = (1, 1)
) -> Array:
    """XLA's convolution. `dilation` is the input's: the distance between its pixels."""
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        padding,
        lhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=exact(x.dtype),
    )


def product(x: Float[Array, "... i"], kernel: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """A matrix product over the channels."""
    return jnp.matmul(x, kernel, precision=exact(x.dtype))


def im2col(x: Float[Array, "b H W i"], kernel: Float[Array, "3 3 i o"]) -> Float[Array, "b h w o"]:
    """A 3 x 3 convolution, padded by 1, as one product with the nine pixels of each window."""
    h, w = x.shape[1:3]
    around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [around[:, i : i + h, j : j + w] for i in range(3) for j in range(3)]
    return product(jnp.concatenate(windows, axis=-1), kernel.reshape(-1, kernel.shape[-1]))


def winograd(
    x: Float[Array, "b H W i"], kernel: Float[Array, "3 3 i o"]
) -> Float[Array, "b h w o"]:
    """A 3 x 3 convolution, padded by 1, of even height and width, by 16 products in place of 36.

    F(2 x 2, 3 x 3) of Lavin & Gray 2015: tiles of 4 x 4 pixels give 2 x 2 outputs each.
    """
    b, h, w, _ = x.shape
    around = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def tiles(x: Array, axis: int, outputs: int) -> list[Array]:
        """B^T d: the four combinations of every second four neighbours along an axis."""
        d = [lax.slice_in_dim(x, i, i + outputs - 1, 2, axis) for i in range(4)]
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    def windows(g: Array) -> list[Array]:
        """G g: the same of a kernel's three."""
        return [g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]]

    def outputs(m: Sequence[Array]) -> list[Array]:
        """A^T m: the two outputs of four products."""
        return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]

    kernels = [windows(rows) for rows in windows(kernel)]
    products = [
        [product(tile, u) for tile, u in zip(tiles(rows, 2, w), us, strict=True)]
        for rows, us in zip(tiles(around, 1, h), kernels, strict=True)
    ]
    columns = [outputs(row) for row in products]
    y = [outputs([row[j] for row in columns]) for j in (0, 1)]
    pixels = jnp.stack([jnp.stack([y[0][i], y[1][i]], axis=3) for i in (0, 1)], axis=2)
    return pixels.reshape(b, h, w, -1)


def fast(x: Array, kernel: Array, stride: Pair, padding: Padding) -> Array:
    """The form that is the fastest on a CPU for these sizes."""
    (h, w), channels = x.shape[1:3], kernel.shape[2:]
    same = kernel.shape[:2] == (3, 3) and stride == (1, 1) and tuple(padding) == ((1, 1), (1, 1))
    if same and min(channels) >= MANY_CHANNELS:
        if h * w <= IM2COL_PIXELS:
            return im2col(x, kernel)
        if h * w <= WINOGRAD_PIXELS and h % 2 == w % 2 == 0:
            return winograd(x, kernel)
    return direct(x, kernel, stride, padding)


def convolution(
    x: Float[Array, "b H W i"],
    kernel: Float[Array, "kh kw i o"],
    stride: Pair,
    padding: Padding,
    form: Convolution = "xla",
) -> Float[Array, "b h w o"]:
    """Convolution of images with a kernel.

    Args:
        form: cpu: the fastest on a CPU, for reverse-mode differentiation. Otherwise XLA's own.
    """
    if form == "cpu":
        return cpu_convolution(x, kernel, stride, tuple(padding))
    return direct(x, kernel, stride, padding)


cpu_convolution = jax.custom_vjp(fast, nondiff_argnums=(2, 3))


def forward(
    x: Array, kernel: Array, stride: Pair, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    """The result, and what the gradient reads."""
    return fast(x, kernel, stride, padding), (x, kernel)


def backward(
    stride: Pair, padding: Padding, read: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    """The gradients of input and kernel as convolutions NHWC by HWIO."""
    x, kernel = read
    sides, windows, outputs = x.shape[1:3], kernel.shape[:2], slope.shape[1:3]
    # Pixels from the first to the last that an output was made of, less the window.
    reach = [(out - 1) * step + 1 for out, step in zip(outputs, stride, strict=True)]
    around, within = [], []
    for side, window, reached, (low, _) in zip(sides, windows, reach, padding, strict=True):
        around.append((window - 1 - low, side + low - reached))
        within.append((low, window - 1 + reached - side - low))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    if stride == (1, 1):
        of_x = fast(slope, turned, stride, tuple(around))
    else:
        of_x = direct(slope, turned, (1, 1), around, stride)
    # The kernel's gradient sums over images: they are the channels, and channels the images.
    of_kernel = lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        slope.transpose(1, 2, 0, 3),
        (1, 1),
        within,
        rhs_dilation=stride,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=exact(x.dtype),
    )
    return of_x, of_kernel.transpose(1, 2, 0, 3)


cpu_convolution.defvjp(forward, backward)
