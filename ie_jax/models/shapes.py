"""The weight tree of each network as shapes, and random weights of such shapes."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ie_jax.models.architecture import SIZES, TextConfig, UNetConfig, VAEConfig
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.models.unet import Conditions, UNet
from ie_jax.models.vae import VAE


def array(*shape: int) -> jax.ShapeDtypeStruct:
    """An input of floating numbers."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape: int) -> jax.ShapeDtypeStruct:
    """An input of timesteps or token ids."""
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def param_shapes(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """The `params` tree of a module, leaves as `jax.ShapeDtypeStruct`; nothing is computed."""
    # A copy: the one tree is kept, and callers may change theirs.
    return jax.tree.map(lambda shape: shape, traced(module, inputs))


@cache
def traced(module: nn.Module, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Tracing takes a second; a run asks for the shapes of one network several times."""
    key = jax.eval_shape(jax.random.key, 0)
    params: dict[str, Any] = jax.eval_shape(module.init, key, *inputs)["params"]
    return params


def unet_shapes(config: UNetConfig) -> dict[str, Any]:
    """The base weights of a UNet."""
    side = 2 ** (len(config.block_out_channels) - 1)
    latents = array(1, side, side, config.in_channels)
    return param_shapes(UNet(config), latents, integers(1), array(1), context_shape(config))


def context_shape(config: UNetConfig, tokens: int = 1) -> Any:
    """What a UNet is told of one text."""
    text: Any = array(1, tokens, config.cross_attention_dim)
    if not config.size_features:
        return text
    beside: Any = (array(1, config.pooled_features), array(1, SIZES))
    return Conditions(text, *beside)


def vae_shapes(config: VAEConfig) -> dict[str, Any]:
    """The weights of an autoencoder."""
    channels = config.in_channels // config.patch_size**2
    return param_shapes(VAE(config), array(1, config.factor, config.factor, channels))


def text_encoder_shapes(config: TextConfig) -> dict[str, Any]:
    """The weights of a text encoder."""
    return param_shapes(TextEncoder(config), integers(1, 1))


def draw(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Random weights: kernels normal with variance 1 / fan-in, embeddings of size 0.02, norms 1,
    biases 0, LoRA's `up` zero, so that a fresh LoRA changes nothing. numpy arrays, of the shapes'
    number types."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("bias", "up"):
            return np.zeros(shape.shape, shape.dtype)
        if name == "scale":
            return np.ones(shape.shape, shape.dtype)
        fan_in = np.prod(shape.shape[:-1]) if name in ("kernel", "down") else 2500
        normal = rng.standard_normal(shape.shape, np.float32)
        return np.asarray(normal / np.sqrt(fan_in), shape.dtype)

    drawn: dict[str, Any] = jax.tree.map_with_path(leaf, dict(shapes))
    return drawn
