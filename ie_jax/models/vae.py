"""The autoencoder: images to latents and back (AutoencoderKL of SD1.x).

Latents here carry the scaling factor: they are what the denoiser sees.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ie_jax.models.architecture import VAEConfig
from ie_jax.models.execution import Execution, Precision, dtype
from ie_jax.models.layers import Conv, group_norm
from ie_jax.models.unet import Attention, Resampler, ResnetBlock

EPSILON = 1e-6
ASYMMETRIC = ((0, 1), (0, 1))  # upstream pads only below and to the right before it halves


def space_to_depth(x: Float[Array, "b H W i"], side: int) -> Float[Array, "b h w o"]:
    """Each square of `side` x `side` pixels as the channels of one: d = c side², c slowest."""
    b, height, width, c = x.shape
    x = x.reshape(b, height // side, side, width // side, side, c)
    return x.transpose(0, 1, 3, 5, 2, 4).reshape(b, height // side, width // side, -1)


def depth_to_space(x: Float[Array, "b h w o"], side: int) -> Float[Array, "b H W i"]:
    """The inverse of `space_to_depth`."""
    b, height, width, d = x.shape
    x = x.reshape(b, height, width, d // side**2, side, side)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(b, height * side, width * side, -1)


class AttentionBlock(nn.Module):
    """One-head self-attention over the pixels, with residual."""

    groups: int
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        h = group_norm("group_norm", self.groups, EPSILON, self.precision)(x)
        h = h.reshape(x.shape[0], -1, x.shape[-1])
        # to_q and its siblings live beside group_norm upstream, not in a module of their own.
        attention = Attention(1, self.precision, self.execution, use_bias=True)
        nn.share_scope(self, attention)
        h, *_ = attention(h)
        return x + h.reshape(x.shape)


def resnet(execution: Execution) -> type[ResnetBlock]:
    """The block, its inside computed again in backward passes where `execution` says so."""
    return nn.remat(ResnetBlock) if execution.remat_block else ResnetBlock


class MidBlock(nn.Module):
    """ResNet, attention, ResNet."""

    features: int
    groups: int
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        block = (self.features, self.groups, EPSILON, self.precision, self.execution)
        x = resnet(self.execution)(*block, name="resnets_0")(x)
        x = AttentionBlock(self.groups, self.precision, self.execution, name="attentions_0")(x)
        return resnet(self.execution)(*block, name="resnets_1")(x)


class Level(nn.Module):
    """ResNets at one resolution, then a change of resolution."""

    features: int
    layers: int
    down: bool
    resample: bool
    groups: int
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.layers):
            block = resnet(self.execution)(
                self.features,
                self.groups,
                EPSILON,
                self.precision,
                self.execution,
                name=f"resnets_{i}",
            )
            x = block(x)
        resample = partial(Resampler, self.features, self.precision, self.execution)
        if self.resample and self.down:
            x = resample(2, ASYMMETRIC, name="downsamplers_0")(x)
        elif self.resample:
            x = resample(name="upsamplers_0")(x)
        return x


class Encoder(nn.Module):
    """Image to the stacked mean and log-variance, before the quantisation convolution."""

    config: VAEConfig
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(self, x: Array) -> Array:
        config, precision = self.config, self.precision
        widths, groups = config.block_out_channels, config.norm_num_groups
        last = len(widths) - 1
        x = Conv(widths[0], precision=precision, name="conv_in")(x)
        for i, width in enumerate(widths):
            level = (width, config.layers_per_block, True, i < last, groups)
            x = Level(*level, precision, self.execution, name=f"down_blocks_{i}")(x)
        x = MidBlock(widths[-1], groups, precision, self.execution, name="mid_block")(x)
        x = nn.silu(group_norm("conv_norm_out", groups, EPSILON, precision)(x))
        return Conv(2 * config.latent_channels, precision=precision, name="conv_out")(x)


class Decoder(nn.Module):
    """Latent, after the post-quantisation convolution, to image."""

    config: VAEConfig
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(self, z: Array) -> Array:
        config, precision = self.config, self.precision
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        last = len(widths) - 1
        x = Conv(widths[0], precision=precision, name="conv_in")(z)
        x = MidBlock(widths[0], groups, precision, self.execution, name="mid_block")(x)
        for i, width in enumerate(widths):
            level = (width, config.layers_per_block + 1, False, i < last, groups)
            x = Level(*level, precision, self.execution, name=f"up_blocks_{i}")(x)
        x = nn.silu(group_norm("conv_norm_out", groups, EPSILON, precision)(x))
        return Conv(config.out_channels, precision=precision, name="conv_out")(x)


class VAE(nn.Module):
    """Encoder and decoder. Apply with `method="moments"`, `"encode"` or `"decode"`."""

    config: VAEConfig
    precision: Precision = Precision()
    execution: Execution = Execution()

    def setup(self) -> None:
        parts = (self.config, self.precision, self.execution)
        latents = self.config.latent_channels
        pointwise = (True, self.precision, 1, 1, 0)
        self.encoder = Encoder(*parts)
        self.decoder = Decoder(*parts)
        self.quant_conv = Conv(2 * latents, *pointwise)
        self.post_quant_conv = Conv(latents, *pointwise)

    def moments(
        self, x: Float[Array, "b H W 3"]
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w c"]]:
        """Mean and standard deviation (float32) of the posterior, before the scaling factor.

        Args:
            x: image in [-1, 1], sides divisible by the factor (8 in SD1.5).
        """
        x = space_to_depth(x, self.config.patch_size)
        moments = self.quant_conv(self.encoder(x)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, -30.0, 20.0))

    def encode(
        self, x: Float[Array, "b H W 3"], noise: Float[Array, "b h w c"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Image in [-1, 1] to scaled latent: the posterior mean, or with standard normal `noise`
        a sample of the posterior (method 1)."""
        mean, std = self.moments(x)
        z = mean if noise is None else mean + std * noise
        return (z * self.config.scaling_factor).astype(dtype(self.precision.output))

    def decode(self, z: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
        """Scaled latent to image, nominally in [-1, 1], not clamped."""
        x = self.decoder(self.post_quant_conv(z / self.config.scaling_factor))
        return depth_to_space(x, self.config.patch_size).astype(dtype(self.precision.output))

    def __call__(self, x: Float[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """The reconstruction of x through the posterior mean."""
        return self.decode(self.encode(x))
