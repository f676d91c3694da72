"""The networks together: what they are, how they are run, and each as a function of its weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ie_jax.models.architecture import TextConfig, UNetConfig, VAEConfig
from ie_jax.models.attention import Control
from ie_jax.models.execution import WEIGHTS, Execution, Precision, saved_in_a_call
from ie_jax.models.lora import merge, of_one_rank
from ie_jax.models.text_encoder import Encoded, TextEncoder
from ie_jax.models.unet import AnyContext, Collect, Conditions, Out, UNet
from ie_jax.models.vae import VAE

Latents = Float[Array, "b h w c"]
Network = Callable[[Latents, Array, Array, AnyContext], tuple[Latents, Out]]
"""(z, t, w, context) -> (eps, out), with weights already given."""


ControlledNetwork = Callable[..., tuple[Latents, Out]]
"""(z, t, w, context, control=None) -> (eps, out): a network whose attention may be changed."""


@struct.dataclass
class Tokens:
    """Prompts for SDXL: what either tokenizer makes of them, and what pictures they are told of."""

    first: Int[Array, "... l"]
    second: Int[Array, "... l"]
    sizes: Float[Array, "... 6"]
    """See `Conditions`."""


def whole_picture(height: int, width: int, count: int) -> Float[np.ndarray, "b 6"]:
    """`Conditions.sizes` of pictures from which nothing was cut."""
    return np.tile(np.array([height, width, 0, 0, height, width], np.float32), (count, 1))


Prompts = Int[Array, "... l"] | Tokens
"""Token ids; with what is told beside them where the networks are SDXL's."""


@dataclass(frozen=True)
class Architecture:
    """What the networks are, and the noise schedule that they were trained for."""

    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig
    betas: tuple[float, float, int] = (0.00085, 0.012, 1000)
    """First and last beta of the scaled linear schedule, and the number of timesteps."""
    text_2: TextConfig | None = None
    """SDXL's second text encoder."""

    @property
    def image_size(self) -> int:
        """Pixels of a side of the images that the networks were trained on."""
        return self.unet.sample_size * self.vae.factor

    @property
    def latent_factor(self) -> int:
        """What an image side must divide by, so that every level of both networks fits."""
        return self.vae.factor * 2 ** (len(self.unet.block_out_channels) - 1)


@dataclass(frozen=True)
class Networks:
    """What is fixed when a program that uses the networks is compiled."""

    architecture: Architecture
    precision: Precision = Precision()
    vae_precision: Precision = Precision()
    execution: Execution = Execution()
    """Resolved (see `Execution.resolve`)."""
    lora: Literal["merge", "low_rank"] = "merge"
    """merge: each program adds a LoRA to the base before its steps. low_rank: each layer adds the
    low-rank path, which holds no second copy of the weights but computes more."""


def vae_precision(architecture: Architecture, wanted: Precision) -> Precision:
    """SDXL's autoencoder overflows in float16: it is float32, whatever is wanted."""
    return Precision() if architecture.text_2 else wanted


@partial(jax.jit, static_argnums=0)
def apply_unet(
    unet: UNet, variables: Any, z: Latents, t: Array, w: Array | None, context: AnyContext
) -> tuple[Latents, Out]:
    """A call of the UNet. Jitted, so that a program with many calls traces one of each shape."""
    result: tuple[Latents, Out] = unet.apply(variables, z, t, w, context)  # type: ignore[assignment]
    return result


def denoiser(
    networks: Networks, base: Any, lora: Any = None, collect: tuple[Collect, ...] = ()
) -> Network:
    """The base with a LoRA, or alone where `lora` is None."""
    call = one_denoiser(networks, base, lora, collect)
    return jax.checkpoint(call) if networks.execution.remat_call else call


def one_denoiser(
    networks: Networks, base: Any, lora: Any = None, collect: tuple[Collect, ...] = ()
) -> ControlledNetwork:
    """`denoiser`, whose calls are not computed again as a whole, and which take a control."""
    unet = UNet(networks.architecture.unet, networks.precision, networks.execution, collect)
    if lora is None:
        variables = {"params": base}
    elif networks.lora == "merge":
        variables = {"params": checkpoint_name(merge(base, lora), WEIGHTS)}
    else:
        variables = {"params": base, "lora": lora}

    def call(
        z: Latents, t: Array, w: Array | None, context: AnyContext, control: Control | None = None
    ) -> tuple[Latents, Out]:
        if control is None:
            return apply_unet(unet, variables, z, t, w, context)
        controlled: tuple[Latents, Out] = unet.clone(control=control).apply(  # type: ignore[assignment]
            variables, z, t, w, context
        )
        return controlled

    return call


def any_denoiser(
    networks: Networks, base: Any, loras: Sequence[Any], context: AnyContext
) -> Callable[[Array, Latents, Array, Array], Latents]:
    """(model, z, t, w) -> eps of the base with the LoRA of that number, None standing for none.

    Programs that call several models in one scan hold one copy of the network for all of them.
    """
    some = iter(of_one_rank([lora for lora in loras if lora is not None]))
    given = [None if lora is None else next(some) for lora in loras]
    none = jax.tree.map(jnp.zeros_like, next(lora for lora in given if lora is not None))
    given = [none if lora is None else lora for lora in given]

    def call(model: Array, z: Latents, t: Array, w: Array) -> Latents:
        picked = jax.tree.map(lambda *x: lax.select_n(model, *x), *given)
        picked = checkpoint_name(picked, WEIGHTS)
        return one_denoiser(networks, base, picked)(z, t, w, context)[0]

    return jax.checkpoint(call, policy=saved_in_a_call(networks.execution), prevent_cse=False)


def encode_text(
    networks: Networks, params: Any, ids: Int[Array, "*be l"]
) -> Float[Array, "*be l d"]:
    """Token ids to embeddings."""
    rows = ids.reshape(-1, ids.shape[-1])
    flat = apply_text_encoder(networks.architecture.text, networks.precision, params, rows).last
    return flat.reshape(*ids.shape, flat.shape[-1])


def apply_text_encoder(
    config: TextConfig, precision: Precision, params: Any, ids: Int[Array, "b l"]
) -> Encoded:
    """One text encoder."""
    encoded: Encoded = TextEncoder(config, precision).apply({"params": params}, ids)  # type: ignore[assignment]
    return encoded


def encode_two(networks: Networks, params: tuple[Any, Any], tokens: Tokens) -> Conditions:
    """Token ids to what SDXL's UNet is told.

    Args:
        params: the weights of either text encoder.
    """
    second = networks.architecture.text_2
    if second is None or second.projection_dim is None:
        raise ValueError("this model lacks a second text encoder with projection")
    configs = (networks.architecture.text, second)
    one, two = (
        apply_text_encoder(config, networks.precision, weights, ids.reshape(-1, ids.shape[-1]))
        for config, weights, ids in zip(configs, params, (tokens.first, tokens.second), strict=True)
    )
    pooled: Any = two.pooled
    text = jnp.concatenate([one.penultimate, two.penultimate], -1)
    each = tokens.sizes.shape[:-1]
    text, pooled = (x.reshape(*each, *x.shape[1:]) for x in (text, pooled))
    return Conditions(text, pooled, tokens.sizes)


def encode_captions(
    networks: Networks, params: Any, ids: Int[Array, "b *k l"], sizes: Float[Array, "b 6"]
) -> AnyContext:
    """Captions to what the UNet is told.

    Args:
        params: the weights of the text encoder; of SDXL's two, both.
        ids: (b, l); with two text encoders (b, 2, l), of either tokenizer.
        sizes: see `Conditions`; SDXL alone reads them.
    """
    if networks.architecture.text_2 is None:
        return encode_text(networks, params, ids)
    return encode_two(networks, params, Tokens(ids[:, 0], ids[:, 1], sizes))


def vae(networks: Networks) -> VAE:
    """The autoencoder, to be applied to its weights."""
    return VAE(networks.architecture.vae, networks.vae_precision, networks.execution)
