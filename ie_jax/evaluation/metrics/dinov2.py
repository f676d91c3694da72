"""DINOv2: how like two pictures are in content (Oquab et al. 2023)."""

from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.evaluation.metrics.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SIDE,
    cosine,
    prepared,
    pretrained,
    run,
    to_numpy,
)

SHORT = 256
OFFSET = 0.1
"""The published code enlarges the number of patches by it before it interpolates positions."""


class Dinov2:
    """DINOv2 from a folder of transformers."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder does not hold it, or torch is not installed."""
        self.model = pretrained("Dinov2Model", folder)
        embeddings = self.model.embeddings
        # For other sizes than that of the pictures the model would interpolate without the offset.
        side = SIDE // self.model.config.patch_size
        embeddings.position_embeddings.data = positions(embeddings.position_embeddings.data, side)

    def features(self, picture: np.ndarray) -> np.ndarray:
        """The class token of a picture, uint8 (h, w, 3); float32 (width)."""
        return self.of_pixels(prepared(picture, IMAGENET_MEAN, IMAGENET_STD, SHORT))

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The same of what the network takes, float32 (3, 224, 224)."""
        return to_numpy(run(self.model, pixel_values=pixels[None]).pooler_output)[0]

    def likeness(self, one: np.ndarray, other: np.ndarray) -> float:
        """Cosine of two pictures."""
        return cosine(self.features(one), self.features(other))


def positions(known: Any, rows: int, columns: int | None = None) -> Any:
    """Position embeddings (1, 1 + patches, width) of a square interpolated to other patches, as the
    published code does it; the class token's stays."""
    import torch

    columns = rows if columns is None else columns
    side = round((known.shape[1] - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return known
    grid = known[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    factors = ((rows + OFFSET) / side, (columns + OFFSET) / side)
    grid = torch.nn.functional.interpolate(
        grid, scale_factor=factors, mode="bicubic", align_corners=False
    )
    return torch.cat([known[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
