"""Layers that the networks share: dense and convolution with a low-rank path, norms."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ie_jax.models.convolution import Padding, convolution
from ie_jax.models.execution import Convolution, Precision, dtype, exact
from ie_jax.models.lora import lora_scale

UNSET = nn.initializers.zeros
"""Weights are loaded or drawn (`ie_jax.models.shapes.draw`), never initialised by a module."""


class Loaded(nn.Module):
    """A module whose weights come from outside. Flax would trace the initialiser of each of them in
    each call, to compare shapes, which is half of the time of tracing a network."""

    @nn.nowrap
    def param(  # type: ignore[override]
        self, name: str, init_fn: Any, shape: Sequence[int], *args: Any, **options: Any
    ) -> Array:
        """The weight as it is given; if it is missing or has another shape, Flax's error."""
        found: Array | None = self.get_variable("params", name)
        if found is not None and found.shape == tuple(shape):
            return found
        own: Array = super().param(name, init_fn, shape, *args, **options)
        return own


class GroupNorm(Loaded, nn.GroupNorm):
    """Flax's."""


class LayerNorm(Loaded, nn.LayerNorm):
    """Flax's."""


class LowRank(Loaded):
    """A linear layer W x + b, plus scale · B(A x) where the `lora` collection holds A and B.

    Without that collection the layer is the base layer: the presence of LoRA is a matter of the
    variables passed in, not of the module.
    """

    features: int
    use_bias: bool = True
    precision: Precision = Precision()

    def linear(self, x: Array, kernel: Array) -> Array:
        """The layer's own product with `kernel`."""
        raise NotImplementedError

    def pointwise(self, x: Array, kernel: Array) -> Array:
        """The same kind of product for B, which sees one position at a time."""
        return self.linear(x, kernel)

    def project(self, x: Array, kernel_shape: tuple[int, ...]) -> Array:
        """W x + b, and the low-rank path."""
        policy = self.precision
        param, compute = dtype(policy.param), dtype(policy.compute)
        kernel = self.param("kernel", UNSET, kernel_shape, param)
        x = x.astype(compute)
        y = self.linear(x, kernel.astype(compute))
        if self.has_variable("lora", "down"):
            down: Array = self.get_variable("lora", "down")
            up: Array = self.get_variable("lora", "up")
            low = self.linear(x, down.astype(compute))
            y += lora_scale(down.shape[-1]) * self.pointwise(low, up.astype(compute))
        if self.use_bias:
            bias = self.param("bias", UNSET, (self.features,), param)
            y += jnp.broadcast_to(bias.astype(compute), y.shape)
        return y


class Dense(LowRank):
    """Dense layer on the last axis. kernel (in, out)."""

    def linear(self, x: Array, kernel: Array) -> Array:
        return jnp.matmul(x, kernel, precision=exact(x.dtype))

    @nn.compact
    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        return self.project(x, (x.shape[-1], self.features))


class Conv(LowRank):
    """2-D convolution, NHWC. kernel (height, width, in, out)."""

    kernel: int = 3
    stride: int = 1
    padding: int | Padding = 1
    form: Convolution = "xla"

    def linear(self, x: Array, kernel: Array) -> Array:
        low = self.padding
        padding = ((low, low), (low, low)) if isinstance(low, int) else low
        return convolution(x, kernel, (self.stride,) * 2, padding, self.form)

    def pointwise(self, x: Array, kernel: Array) -> Array:
        return jnp.matmul(x, kernel[0, 0], precision=exact(x.dtype))

    @nn.compact
    def __call__(self, x: Float[Array, "b H W i"]) -> Float[Array, "b h w o"]:
        return self.project(x, (self.kernel, self.kernel, x.shape[-1], self.features))


def group_norm(name: str, groups: int, epsilon: float, precision: Precision) -> GroupNorm:
    """Group norm in float32, two-pass variance as in the reference implementation."""
    return GroupNorm(
        num_groups=groups,
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=jnp.float32,
        param_dtype=dtype(precision.param),
        name=name,
    )


def layer_norm(name: str, precision: Precision, epsilon: float = 1e-5) -> LayerNorm:
    """Layer norm in float32, two-pass variance."""
    return LayerNorm(
        epsilon=epsilon,
        use_fast_variance=False,
        dtype=jnp.float32,
        param_dtype=dtype(precision.param),
        name=name,
    )


def upsample_nearest(x: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Every pixel becomes a 2 x 2 square."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
