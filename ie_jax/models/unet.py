"""The denoiser: the UNet of SD1.x or SDXL with guidance embedding, as a function of (base, lora,
inputs).

    eps, out = UNet(config, precision, execution, collect).apply(
        {"params": base, "lora": lora}, z, t, w, context
    )

Module names repeat the upstream ones with `.N` written `_N`, so that weight conversion is a
renaming and intermediates are found under the names the literature uses.
"""

import math
from functools import partial
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int, Num

from ie_jax.models.architecture import UNetConfig
from ie_jax.models.attention import (
    Control,
    Heads,
    Keys,
    Place,
    Site,
    attend,
    attention,
    probabilities,
)
from ie_jax.models.execution import BLOCK, Execution, Precision, dtype
from ie_jax.models.layers import Conv, Dense, group_norm, layer_norm, upsample_nearest

Collect = Literal["features", "queries_keys", "maps"]
Out = dict[str, Any]


@struct.dataclass
class Conditions:
    """What SDXL's UNet is told."""

    text: Float[Array, "b l d"]
    """The embeddings that it attends to."""
    pooled: Float[Array, "b p"]
    """The embedding of the whole text."""
    sizes: Float[Array, "b 6"]
    """Pixels: height and width of the original image, top and left of the crop, height and width
    that are wanted (upstream's `time_ids`)."""


Context = Float[Array, "b l d"]
AnyContext = Context | Conditions
"""Text embeddings; with what is told beside them where the network is SDXL's."""

"""What a call was asked to return beside eps:

- features: {"up" | "down" | "mid" | "last" | "norm": (b, h, w, c)}: the second ResNet of up block 1
  and of down block 1, the middle block, the last up block, and the norm after it
- queries_keys: per self-attention layer, in upstream order (down, middle, up), (q, k), each
  (b, tokens, heads, d): what the maps are made of
- maps: per self-attention layer, the softmax probabilities (b, heads, tokens, tokens), float32

With a control, `control` is the list of what that returned, without None, in order of execution.
"""


def sinusoidal_embedding(
    t: Num[Array, " b"], features: int, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Float[Array, "b f"]:
    """Sines and cosines of t at geometrically falling frequencies, float32."""
    half = features // 2
    # Arguments reach 19000, where one ulp of a frequency shows in the sine: the exponents are
    # rounded to float32 as in the reference, the exponential is not rounded twice.
    rate = np.float32(math.log(10000)) / np.float32(half - freq_shift)
    frequencies = np.exp(np.float64(-rate * np.arange(half, dtype=np.float32)))
    angle = t.astype(jnp.float32)[:, None] * frequencies.astype(np.float32)[None]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)


def guidance_embedding(w: Float[Array, " b"], features: int) -> Float[Array, "b f"]:
    """The embedding of the guidance scale: 1000 w under the sinusoids, sines first (method 1)."""
    return sinusoidal_embedding(1000.0 * w, features, flip_sin_to_cos=False, freq_shift=1.0)


class TimeEmbedding(nn.Module):
    """The MLP over an embedding of time, to which that of the guidance is added first."""

    features: int
    precision: Precision

    @nn.compact
    def __call__(self, t: Array, w: Array | None = None) -> Array:
        if w is not None:
            t += Dense(t.shape[-1], False, self.precision, name="cond_proj")(w)
        h = nn.silu(Dense(self.features, precision=self.precision, name="linear_1")(t))
        return Dense(self.features, precision=self.precision, name="linear_2")(h)


class ResnetBlock(nn.Module):
    """norm, silu, conv, time; norm, silu, conv; shortcut."""

    features: int
    groups: int
    epsilon: float
    precision: Precision
    execution: Execution

    @nn.compact
    def __call__(self, x: Array, time: Array | None = None) -> Array:
        def conv(name: str, y: Array) -> Array:
            form = self.execution.convolution
            return Conv(self.features, precision=self.precision, form=form, name=name)(y)

        h = nn.silu(group_norm("norm1", self.groups, self.epsilon, self.precision)(x))
        h = conv("conv1", h)
        if time is not None:
            shift = Dense(self.features, precision=self.precision, name="time_emb_proj")
            h += shift(nn.silu(time))[:, None, None]
        h = nn.silu(group_norm("norm2", self.groups, self.epsilon, self.precision)(h))
        h = conv("conv2", h)
        if x.shape[-1] != self.features:
            shortcut = Conv(self.features, True, self.precision, 1, 1, 0, name="conv_shortcut")
            x = shortcut(x)
        return x.astype(h.dtype) + h


class Attention(nn.Module):
    """Multi-head attention of x to context (to itself where context is None)."""

    heads: int
    precision: Precision
    execution: Execution
    use_bias: bool = False
    want_maps: bool = False
    control: Control | None = None
    site: Site | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b q c"], context: Float[Array, "b k d"] | None = None
    ) -> tuple[Float[Array, "b q c"], Heads, Keys, Float[Array, "b heads q k"] | None, Any]:
        """Returns the output, the queries, the keys, if wanted the maps, what the control saw."""
        features = x.shape[-1]
        context = x if context is None else context

        def split(name: str, y: Array) -> Array:
            y = Dense(features, self.use_bias, self.precision, name=name)(y)
            return y.reshape(*y.shape[:2], self.heads, features // self.heads)

        q, k, v = split("to_q", x), split("to_k", context), split("to_v", context)
        maps = seen = None
        if self.control is not None:
            plain = partial(attention, execution=self.execution)
            y, seen = self.control(self.site, q, k, v, plain)
        elif self.want_maps:
            maps = probabilities(q, k)
            y = attend(maps, v)
        else:
            y = attention(q, k, v, self.execution)
        y = Dense(features, precision=self.precision, name="to_out_0")(y.reshape(x.shape))
        return y, q, k, maps, seen


class GEGLU(nn.Module):
    """The gated first layer of the feed-forward part."""

    features: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = Dense(2 * self.features, precision=self.precision, name="proj")(x)
        h, gate = jnp.split(h, 2, axis=-1)
        return h * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back."""

    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = GEGLU(4 * x.shape[-1], self.precision, name="net_0")(x)
        return Dense(x.shape[-1], precision=self.precision, name="net_2")(h)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward."""

    heads: int
    precision: Precision
    execution: Execution
    want_maps: bool
    control: Control | None
    site: Site

    @nn.compact
    def __call__(self, x: Array, context: Array) -> tuple[Array, Any]:
        def attn(name: str, want_maps: bool, offset: int) -> Attention:
            site = self.site._replace(number=self.site.number + offset)
            return Attention(
                self.heads,
                self.precision,
                self.execution,
                want_maps=want_maps,
                control=self.control,
                site=site,
                name=name,
            )

        y, q, k, maps, seen = attn("attn1", self.want_maps, 0)(
            layer_norm("norm1", self.precision)(x)
        )
        x = x + y
        y, *_, seen_text = attn("attn2", False, 1)(layer_norm("norm2", self.precision)(x), context)
        x = x + y
        x = x + FeedForward(self.precision, name="ff")(layer_norm("norm3", self.precision)(x))
        return x, ((q, k), maps, [seen, seen_text])


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of a feature map, with residual."""

    heads: int
    layers: int
    linear: bool
    """Whether the projections around the blocks are dense and not pointwise convolutions."""
    groups: int
    precision: Precision
    execution: Execution
    want_maps: bool
    control: Control | None
    site: Site
    """Of its first self-attention."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], context: Array) -> tuple[Array, list[Any]]:
        b, height, width, features = x.shape

        def project(name: str, y: Array) -> Array:
            if self.linear:
                return Dense(features, precision=self.precision, name=name)(y)
            return Conv(features, True, self.precision, 1, 1, 0, name=name)(y)

        h = project("proj_in", group_norm("norm", self.groups, 1e-6, self.precision)(x))
        h = h.reshape(b, height * width, features)
        taps = []
        for i in range(self.layers):
            block = TransformerBlock(
                self.heads,
                self.precision,
                self.execution,
                self.want_maps,
                self.control,
                self.site._replace(number=self.site.number + 2 * i),
                name=f"transformer_blocks_{i}",
            )
            h, tap = block(h, context)
            taps.append(tap)
        return x + project("proj_out", h.reshape(x.shape)), taps


class Resampler(nn.Module):
    """The convolution that halves or, after nearest upsampling, keeps the resolution."""

    features: int
    precision: Precision
    execution: Execution
    stride: int = 1
    padding: Any = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        if self.stride == 1:
            x = upsample_nearest(x)
        how = (3, self.stride, self.padding, self.execution.convolution)
        return Conv(self.features, True, self.precision, *how, name="conv")(x)


class UNetBlock(nn.Module):
    """ResNets, each followed by a transformer where it has layers, then a change of resolution.

    A down block pushes every output on `skips`; an up block takes one off per ResNet.
    """

    kind: Place
    features: int
    heads: int
    layers: int
    """Of each transformer; 0: there are none."""
    resample: bool
    config: UNetConfig
    precision: Precision
    execution: Execution
    want_maps: bool
    control: Control | None
    site: int
    """The number of its first attention layer."""

    @nn.compact
    def __call__(
        self, x: Array, skips: tuple[Array, ...], time: Array, context: Array
    ) -> tuple[Array, tuple[Array, ...], list[Any], Array | None]:
        """Returns the output, the skips, a tap per self-attention, the second ResNet's output."""
        groups, epsilon = self.config.norm_num_groups, self.config.norm_eps
        remat = nn.remat if self.execution.remat_block else lambda module: module
        taps: list[Any] = []
        second = None

        def resnet(i: int, y: Array) -> Array:
            block = remat(ResnetBlock)(
                self.features,
                groups,
                epsilon,
                self.precision,
                self.execution,
                name=f"resnets_{i}",
            )
            return checkpoint_name(block(y, time), BLOCK)

        def transformer(i: int, y: Array) -> Array:
            y, tap = remat(Transformer2D)(
                self.heads,
                self.layers,
                self.config.linear_projection,
                groups,
                self.precision,
                self.execution,
                self.want_maps,
                self.control,
                Site(self.site + 2 * len(taps), self.kind),
                name=f"attentions_{i}",
            )(y, context)
            taps.extend(tap)
            return checkpoint_name(y, BLOCK)

        if self.kind == "mid":
            x = resnet(1, transformer(0, resnet(0, x)))
        else:
            layers = self.config.layers_per_block + (self.kind == "up")
            for i in range(layers):
                if self.kind == "up":
                    *rest, skip = skips
                    skips, x = tuple(rest), jnp.concatenate([x, skip], axis=-1)
                x = resnet(i, x)
                second = x if i == 1 else second
                x = transformer(i, x) if self.layers else x
                skips = (*skips, x) if self.kind == "down" else skips
        if self.resample:
            stride = 2 if self.kind == "down" else 1
            name = f"{self.kind}samplers_0"
            x = Resampler(self.features, self.precision, self.execution, stride, name=name)(x)
            x = checkpoint_name(x, BLOCK)
            skips = (*skips, x) if self.kind == "down" else skips
        return x, skips, taps, second


class UNet(nn.Module):
    """eps(z, t, w, c), method 1.

    Height and width of z must divide by 2 to the number of down blocks less one.
    """

    config: UNetConfig
    precision: Precision = Precision()
    execution: Execution = Execution()
    collect: tuple[Collect, ...] = ()
    control: Control | None = None

    @nn.compact
    def __call__(
        self,
        z: Float[Array, "b h w c"],
        t: Int[Array, " b"],
        w: Float[Array, " b"] | None,
        context: AnyContext,
    ) -> tuple[Float[Array, "b h w c"], Out]:
        """Predict the noise in latents z (NHWC) at timesteps t (0 to 999), guidance scale w.

        Args:
            context: `Conditions` if, and only if, the config has `size_features`.

        Returns:
            eps with the shape of z, and what `collect` asks for (see `Out`).
        """
        config, precision = self.config, self.precision
        depth = len(config.block_out_channels)
        down_layers = [
            n if a else 0
            for n, a in zip(config.transformer_layers, config.down_attention, strict=True)
        ]
        taps: list[Any] = []
        time, context = self.told(t, w, context)
        context = context.astype(dtype(precision.compute))
        first = config.block_out_channels[0]
        x = checkpoint_name(Conv(first, precision=precision, name="conv_in")(z), BLOCK)
        skips: tuple[Array, ...] = (x,)
        features: dict[str, Array | None] = {}
        for i in range(depth):
            down = self.block("down", i, down_layers[i], i < depth - 1, len(taps))
            x, skips, tap, second = down(x, skips, time, context)
            taps += tap
            if i == 1:
                features["down"] = second
        mid = self.block("mid", depth - 1, config.transformer_layers[-1], False, len(taps))
        x, skips, tap, _ = mid(x, skips, time, context)
        taps += tap
        features["mid"] = x
        for i in range(depth):
            level = depth - 1 - i
            up = self.block("up", level, down_layers[level], i < depth - 1, len(taps))
            x, skips, tap, second = up(x, skips, time, context)
            taps += tap
            if i == 1:
                features["up"] = second

        features["last"] = x
        x = group_norm("conv_norm_out", config.norm_num_groups, config.norm_eps, precision)(x)
        features["norm"] = x
        eps = Conv(config.out_channels, precision=precision, name="conv_out")(nn.silu(x))
        return eps.astype(dtype(precision.output)), self.seen(features, taps)

    @nn.nowrap
    def block(
        self, kind: Place, level: int, layers: int, resample: bool, transformers: int
    ) -> UNetBlock:
        """A block of a level, 0 the finest, behind so many transformer layers."""
        config = self.config
        number = len(config.block_out_channels) - 1 - level if kind == "up" else level
        return UNetBlock(
            kind,
            config.block_out_channels[level],
            config.heads[level],
            layers,
            resample,
            config,
            self.precision,
            self.execution,
            "maps" in self.collect,
            self.control,
            2 * transformers,
            name="mid_block" if kind == "mid" else f"{kind}_blocks_{number}",
        )

    @nn.nowrap
    def told(
        self, t: Int[Array, " b"], w: Float[Array, " b"] | None, context: AnyContext
    ) -> tuple[Array, Context]:
        """The embedding of timestep, guidance and SDXL's sizes, and the text."""
        config = self.config

        def sinusoids(x: Array, features: int) -> Array:
            return sinusoidal_embedding(x, features, config.flip_sin_to_cos, config.freq_shift)

        guidance = None
        if config.time_cond_proj_dim and w is not None:
            guidance = guidance_embedding(w, config.time_cond_proj_dim)
        embedding = partial(TimeEmbedding, config.time_embedding_dim, self.precision)
        first = sinusoids(t, config.block_out_channels[0])
        time = embedding(name="time_embedding")(first, guidance)
        if isinstance(context, Conditions) != bool(config.size_features):
            raise TypeError("this UNet takes another kind of context: Conditions are SDXL's")
        if not isinstance(context, Conditions):
            return time, context
        sizes = sinusoids(context.sizes.ravel(), config.size_features)
        both = jnp.concatenate([context.pooled, sizes.reshape(len(t), -1)], axis=-1)
        return time + embedding(name="add_embedding")(both), context.text

    @nn.nowrap
    def seen(self, features: dict[str, Array | None], taps: list[Any]) -> Out:
        """What `collect` and `control` ask for."""
        out: Out = {}
        if "features" in self.collect:
            out["features"] = {k: v for k, v in features.items() if v is not None}
        if "queries_keys" in self.collect:
            out["queries_keys"] = [qk for qk, _, _ in taps]
        if "maps" in self.collect:
            out["maps"] = [maps for _, maps, _ in taps]
        if self.control is not None:
            out["control"] = [x for _, _, seen in taps for x in seen if x is not None]
        return out
