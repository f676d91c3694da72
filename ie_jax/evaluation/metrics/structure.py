"""PIE-Bench's structure distance: how different the likeness of a picture's parts to each other is
in another picture (Tumanyan et al. 2022, Ju et al. 2024)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.dinov2 import positions
from ie_jax.evaluation.metrics.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIDE,
    filled,
    need_libraries,
    renamed,
    run,
    scaled,
    to_numpy,
)
from ie_jax.weights.formats import read_tensors

LONGEST = 480
HEADS = 12
LAYER = 11
"""Whose keys are compared."""
NAMES = (
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"cls_token", "embeddings.cls_token"),
    (r"patch_embed\.proj\.(.*)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(.*)", r"layernorm.\1"),
    (r"blocks\.(\d+)\.norm1\.(.*)", r"layers.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(.*)", r"layers.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(.*)", r"layers.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(.*)", r"layers.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(.*)", r"layers.\1.mlp.\2"),
)
"""Of the published file, and in transformers."""


class Structure:
    """DINO ViT-B/8 from its published file."""

    def __init__(self, file: Path) -> None:
        """Raises UserError if it is not such a file, or torch is not installed."""
        need_libraries("the structure distance")
        from transformers import ViTConfig, ViTModel

        tensors = read_tensors(file)
        try:
            width, _, patch, _ = tensors["patch_embed.proj.weight"].shape
            side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5) * patch
            inner = len(tensors["blocks.0.mlp.fc1.bias"])
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"{file} does not hold DINO's ViT: {error} is missing") from error
        config = ViTConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=LAYER + 1,
            num_attention_heads=HEADS,
            image_size=side,
            patch_size=patch,
            layer_norm_eps=1e-6,
            qkv_bias=True,
        )
        self.patch = patch
        model = ViTModel(config, add_pooling_layer=False)
        self.model = filled(model, renamed(thirds(tensors), "", NAMES), file)

    def keys(self, pixels: np.ndarray) -> np.ndarray:
        """The keys of the last block, class token first: float32 (1 + patches, width).

        Args:
            pixels: float32 (3, h, w); what is left over beyond whole patches is not seen.
        """
        rows, columns = (side // self.patch for side in pixels.shape[1:])
        whole = pixels[None, :, : rows * self.patch, : columns * self.patch]

        def keys(pixels: Any) -> Any:
            import torch

            embeddings = self.model.embeddings
            x = embeddings.patch_embeddings.projection(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([embeddings.cls_token, x], dim=1)
            x = x + positions(embeddings.position_embeddings, rows, columns)
            *before, last = self.model.layers
            for layer in before:
                x = layer(x)
            return last.attention.k_proj(last.layernorm_before(x))

        return to_numpy(run(keys, whole))[0]

    def distance(self, one: np.ndarray, other: np.ndarray, antialias: bool = False) -> float:
        """Mean squared difference of the likeness matrices of two pictures, uint8 (h, w, 3).

        Args:
            antialias: resize as torchvision does since 0.17; published numbers are older.
        """
        matrices = [likenesses(self.keys(inputs(x, antialias))) for x in (one, other)]
        return float(np.mean((matrices[0] - matrices[1]) ** 2))


def inputs(picture: np.ndarray, antialias: bool = False) -> np.ndarray:
    """What the published code gives the network: float32 (3, h, w), the short side 224 and the long
    one at most 480. Levels are from 0 to 255 and normalised as if from 0 to 1, a slip that all
    published numbers contain."""
    size = scaled(picture.shape, SIDE)
    if max(size) > LONGEST:
        short = int(LONGEST * min(size) / max(size))
        size = (LONGEST, short) if size[0] > size[1] else (short, LONGEST)

    def resize(pixels: Any) -> Any:
        import torch

        return torch.nn.functional.interpolate(
            pixels, size, mode="bilinear", align_corners=False, antialias=antialias
        )

    resized = to_numpy(run(resize, picture.astype(np.float32).transpose(2, 0, 1)[None]))[0]
    mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_STD))
    return np.asarray((resized - mean) / std)


def likenesses(keys: np.ndarray) -> np.ndarray:
    """Cosines of all keys (n, width) with each other, float32 (n, n)."""
    norms = np.linalg.norm(keys, axis=1)
    return np.asarray(keys @ keys.T / np.maximum(np.outer(norms, norms), 1e-8))


def thirds(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors of the published file, with queries, keys and values apart."""
    found = {}
    for name, x in tensors.items():
        before, qkv, after = name.partition(".qkv.")
        if qkv:
            for part, third in zip("qkv", np.split(x, 3), strict=True):
                found[f"{before}.{part}.{after}"] = third
        else:
            found[name] = x
    return found
