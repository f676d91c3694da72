"""The CLIP text encoder: token ids to the embeddings that the denoiser attends to."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from ie_jax.models.architecture import TextConfig
from ie_jax.models.attention import attend, probabilities
from ie_jax.models.execution import Precision, dtype
from ie_jax.models.layers import UNSET, Dense, Loaded, layer_norm


def quick_gelu(x: Array) -> Array:
    """x · sigmoid(1.702 x), CLIP's own approximation."""
    return x * nn.sigmoid(1.702 * x)


class CausalSelfAttention(nn.Module):
    """Attention of each token to itself and those before it."""

    heads: int
    precision: Precision

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        def project(name: str, y: Array) -> Array:
            return Dense(x.shape[-1], precision=self.precision, name=name)(y)

        split = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        q, k, v = (project(name, x).reshape(split) for name in ("q_proj", "k_proj", "v_proj"))
        maps = probabilities(q, k, causal=True)
        return project("out_proj", attend(maps, v).reshape(x.shape))


class MLP(nn.Module):
    """The feed-forward part."""

    config: TextConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = Dense(self.config.intermediate_size, precision=self.precision, name="fc1")(x)
        quick = self.config.hidden_act == "quick_gelu"
        h = quick_gelu(h) if quick else nn.gelu(h, approximate=False)
        return Dense(x.shape[-1], precision=self.precision, name="fc2")(h)


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    config: TextConfig
    precision: Precision

    @nn.compact
    def __call__(self, x: Array) -> Array:
        def norm(name: str, y: Array) -> Array:
            return layer_norm(name, self.precision, self.config.layer_norm_eps)(y)

        attention = CausalSelfAttention(
            self.config.num_attention_heads, self.precision, name="self_attn"
        )
        x = x + attention(norm("layer_norm1", x)).astype(x.dtype)
        return x + MLP(self.config, self.precision, name="mlp")(norm("layer_norm2", x))


class Encoded(NamedTuple):
    """A text, embedded."""

    last: Float[Array, "b l d"]
    """After the last layer and the final norm: what SD1.x attends to."""
    penultimate: Float[Array, "b l d"]
    """Before the last layer: what SDXL attends to."""
    pooled: Float[Array, "b p"] | None
    """The end token of `last`, projected; None without a projection."""


class TextEncoder(Loaded):
    """CLIP's text transformer."""

    config: TextConfig
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, ids: Int[Array, "b l"]) -> Encoded:
        """Embed token ids, padded to at most max_position_embeddings (77)."""
        config, precision = self.config, self.precision
        param, compute = dtype(precision.param), dtype(precision.compute)

        def embedding(name: str, rows: int) -> Array:
            return self.param(name, UNSET, (rows, config.hidden_size), param).astype(compute)

        tokens = embedding("token_embedding", config.vocab_size)
        positions = embedding("position_embedding", config.max_position_embeddings)
        x = tokens[ids] + positions[None, : ids.shape[1]]
        before = x
        for i in range(config.num_hidden_layers):
            before, x = x, EncoderLayer(config, precision, name=f"layers_{i}")(x)
        x = layer_norm("final_layer_norm", precision, config.layer_norm_eps)(x)
        pooled = None
        if config.projection_dim:
            # As upstream has it: the end token published as 2 stands for the largest one.
            is_end = ids if config.eos_token_id == 2 else ids == config.eos_token_id
            end = x[jnp.arange(len(ids)), jnp.argmax(is_end, axis=1)]
            project = Dense(config.projection_dim, False, precision, name="text_projection")
            pooled = project(end).astype(dtype(precision.output))
        last, before = (y.astype(dtype(precision.output)) for y in (x, before))
        return Encoded(last, before, pooled)
