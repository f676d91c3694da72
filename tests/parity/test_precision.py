"""bfloat16 against float32: the error is that of the number type, about 2^-8 per layer."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ie_jax.models.architecture import text_config, unet_config, vae_config
from ie_jax.models.execution import Precision
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.models.unet import Conditions, UNet
from ie_jax.models.vae import VAE
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.parity.oracle import SHALLOW, UNETS, T, W, normal, relative, shallow
from tests.parity.test_text_encoder import CONFIGS

TEXT, AUTOENCODER = text_config(RANDOM_CONFIGS["text_encoder"]), vae_config(RANDOM_CONFIGS["vae"])
WITH_PROJECTION = text_config(CONFIGS["gelu"])
SDXL = unet_config(UNETS["sdxl in small"])
INPUTS: dict[str, tuple[Any, ...]] = {
    "vae": (np.tanh(normal(3, 1, 16, 16, 3)),),
    "text encoder": (np.arange(14, dtype=np.int32).reshape(2, 7),),
    "second text encoder": (np.arange(14, dtype=np.int32).reshape(2, 7),),
    "sdxl's unet": (
        *(normal(1, 2, 8, 8, 4), T, W),
        Conditions(
            jnp.asarray(normal(2, 2, 5, SDXL.cross_attention_dim)),
            jnp.asarray(normal(3, 2, SDXL.pooled_features)),
            jnp.asarray([[64, 96, 0, 8, 64, 64]] * 2, jnp.float32),
        ),
    ),
}
BOUND = 3e-2


NETWORKS: dict[str, Callable[[Precision], nn.Module]] = {
    "vae": partial(VAE, AUTOENCODER),
    "text encoder": partial(TextEncoder, TEXT),
    "second text encoder": partial(TextEncoder, WITH_PROJECTION),
    "sdxl's unet": partial(UNet, SDXL),
}
SHAPES = {
    "unet": lambda: unet_shapes(unet_config(SHALLOW)),
    "vae": lambda: vae_shapes(AUTOENCODER),
    "text encoder": lambda: text_encoder_shapes(TEXT),
    "second text encoder": lambda: text_encoder_shapes(WITH_PROJECTION),
    "sdxl's unet": lambda: unet_shapes(SDXL),
}


@pytest.mark.parametrize("name", SHAPES)
def test_bfloat16_stays_near_float32(name: str) -> None:
    params = draw(SHAPES[name](), seed=0)
    low = Precision(param="bfloat16", compute="bfloat16", output="bfloat16")

    def call(precision: Precision, params: Any) -> jax.Array:
        if name == "unet":
            return shallow({"params": params}, precision)
        result = jax.jit(NETWORKS[name](precision).apply)({"params": params}, *INPUTS[name])
        return result[0] if isinstance(result, tuple) else result

    expected = call(Precision(), params)
    found = call(low, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params))
    assert (expected.dtype, found.dtype) == (jnp.float32, jnp.bfloat16)
    assert 1e-4 < relative(found, expected) <= BOUND
