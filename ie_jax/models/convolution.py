"""Convolution whose gradient XLA's CPU compiler runs as fast in a loop as outside of one.

That compiler brings a convolution into the form its fast kernels take, NHWC by HWIO, only outside
of loops; inside, JAX's own gradients become naive loops, ten times slower. Here, on a CPU, they are
written in that form to begin with.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ie_jax.models.execution import exact

Pair = tuple[int, int]
Padding = Sequence[Pair]


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


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolution(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "kh kw i o"],
    stride: Pair,
    padding: Padding,
) -> Float[Array, "b h2 w2 o"]:
    """Convolution of images with a kernel, for reverse-mode differentiation."""
    return direct(x, kernel, stride, padding)


def forward(
    x: Array, kernel: Array, stride: Pair, padding: Padding
) -> tuple[Array, tuple[Array, Array]]:
    """The result, and what the gradient reads."""
    return direct(x, kernel, stride, padding), (x, kernel)


def backward(
    stride: Pair, padding: Padding, read: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    """The gradients of input and kernel."""
    as_jax = partial(jax_gradients, stride, padding)
    on_cpu = partial(cpu_gradients, stride, padding)
    gradients: tuple[Array, Array] = lax.platform_dependent(
        *read, slope, cpu=on_cpu, default=as_jax
    )
    return gradients


def jax_gradients(
    stride: Pair, padding: Padding, x: Array, kernel: Array, slope: Array
) -> tuple[Array, Array]:
    """As JAX derives them."""
    _, pull_back = jax.vjp(lambda x, kernel: direct(x, kernel, stride, padding), x, kernel)
    gradients: tuple[Array, Array] = pull_back(slope)
    return gradients


def cpu_gradients(
    stride: Pair, padding: Padding, x: Array, kernel: Array, slope: Array
) -> tuple[Array, Array]:
    """The same as convolutions NHWC by HWIO."""
    sides, windows, outputs = x.shape[1:3], kernel.shape[:2], slope.shape[1:3]
    # Pixels from the first to the last that an output was made of, less the window.
    reach = [(out - 1) * step + 1 for out, step in zip(outputs, stride, strict=True)]
    around, within = [], []
    for side, window, reached, (low, _) in zip(sides, windows, reach, padding, strict=True):
        around.append((window - 1 - low, side + low - reached))
        within.append((low, window - 1 + reached - side - low))
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
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


convolution.defvjp(forward, backward)
