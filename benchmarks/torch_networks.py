"""diffusers' and transformers' networks with the weights of our trees.

So PyTorch's programs and ours start from the same numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from torch import Tensor

from ie_jax.models.architecture import SIZES, TextConfig, UNetConfig, VAEConfig
from ie_jax.weights.convert import find, flatten
from ie_jax.weights.names import TEXT_ENCODER, UNET, VAE, Rule

for library in (diffusers, transformers):
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()

Tree = Mapping[str, Any]


def leaf(path: str, x: np.ndarray) -> Tensor:
    """A leaf of our trees in PyTorch's layout."""
    if path.rpartition("/")[2] in ("kernel", "down", "up"):
        x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
    return torch.from_numpy(np.ascontiguousarray(x, np.float32))


def upstream_state(
    table: Sequence[Rule], shapes: Mapping[str, Tensor], tree: Tree
) -> dict[str, Tensor]:
    """A tree as a state dict of these names and shapes: the inverse of conversion."""
    flat, state = flatten(tree), {}
    for name, like in shapes.items():
        path = find(table, name)[1]
        if path is not None:
            state[name] = leaf(path, np.asarray(flat[path])).reshape(like.shape)
    return state


def unet_settings(config: UNetConfig) -> dict[str, Any]:
    """diffusers' config of a UNet."""
    settings = asdict(config)
    attention = settings.pop("down_attention")
    down = [f"{'CrossAttn' * a}DownBlock2D" for a in attention]
    up = [f"{'CrossAttn' * a}UpBlock2D" for a in reversed(attention)]
    blocks = {"down_block_types": down, "up_block_types": up}
    renamed = {
        "attention_head_dim": settings.pop("heads"),
        "transformer_layers_per_block": settings.pop("transformer_layers"),
        "use_linear_projection": settings.pop("linear_projection"),
    }
    if sizes := settings.pop("size_features"):
        renamed |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": sizes,
            "projection_class_embeddings_input_dim": settings.pop("pooled_features")
            + SIZES * sizes,
        }
    return settings | blocks | renamed


def vae_settings(config: VAEConfig) -> dict[str, Any]:
    """diffusers' config of an autoencoder."""
    depth = len(config.block_out_channels)
    return asdict(config) | {
        "down_block_types": ["DownEncoderBlock2D"] * depth,
        "up_block_types": ["UpDecoderBlock2D"] * depth,
    }


def channels_last(x: Any) -> Any:
    """A network or tensor in the layout that a GPU's matrix units want. On a CPU as it was."""
    if isinstance(x, Tensor):
        fits = x.is_cuda and x.ndim == 4
        return x.contiguous(memory_format=torch.channels_last) if fits else x
    cuda = any(y.is_cuda for y in x.parameters())
    return x.to(memory_format=torch.channels_last) if cuda else x


def empty_unet(config: UNetConfig) -> Any:
    """The UNet without weights."""
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel.from_config(unet_settings(config))


def unet_state(unet: Any, tree: Tree) -> dict[str, Tensor]:
    """A UNet's weights under upstream's names."""
    return upstream_state(UNET, unet.state_dict(), tree)


def make_vae(config: VAEConfig, tree: Tree) -> Any:
    """The autoencoder."""
    vae = diffusers.AutoencoderKL.from_config(vae_settings(config))
    vae.load_state_dict(upstream_state(VAE, vae.state_dict(), tree))
    return vae


def make_text_encoder(config: TextConfig, tree: Tree) -> Any:
    """The text encoder."""
    settings = {name: x for name, x in asdict(config).items() if x is not None}
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**settings))
    text.load_state_dict(upstream_state(TEXT_ENCODER, text.state_dict(), tree))
    return text


def guidance_embedding(w: Tensor, features: int) -> Tensor:
    """Sines, then cosines of 1000 w at geometrically falling frequencies."""
    half = features // 2
    rate = np.log(10000.0) / (half - 1)
    frequencies = torch.exp(-rate * torch.arange(half, dtype=torch.float32, device=w.device))
    angle = 1000.0 * w[:, None] * frequencies
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
