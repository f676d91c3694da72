"""CLIP: how well a picture fits a text, and two pictures each other (Radford et al. 2021, Hessel et
al. 2021)."""

from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.evaluation.metrics.networks import (
    CLIP_MEAN,
    CLIP_STD,
    SIDE,
    centre,
    cosine,
    prepared,
    pretrained,
    run,
    scaled,
    to_numpy,
)
from ie_jax.models.tokenizer import Tokenizer

TOKENS = 77


class Clip:
    """CLIP from a folder of transformers."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError if the folder does not hold it, or torch is not installed."""
        self.model = pretrained("CLIPModel", folder)
        self.tokenizer = Tokenizer(folder)

    def ids(self, text: str, keep_end: bool = True) -> np.ndarray:
        """Token ids (1, n), n at most 77.

        Args:
            keep_end: the end token stays where a text is cut.
        """
        ids = self.tokenizer.encode(text, TOKENS if keep_end else None)
        return np.asarray([ids[:TOKENS]])

    def text(self, text: str, keep_end: bool = True) -> np.ndarray:
        """The features of a text, float32 (width)."""
        return self.of_ids(self.ids(text, keep_end))

    def of_ids(self, ids: np.ndarray) -> np.ndarray:
        """The same of token ids."""
        return to_numpy(run(self.model.get_text_features, input_ids=ids).pooler_output)[0]

    def picture(self, picture: np.ndarray) -> np.ndarray:
        """The features of a picture, uint8 (h, w, 3); float32 (width)."""
        return self.of_pixels(prepared(picture))

    def of_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """The same of what the network takes, float32 (3, 224, 224)."""
        found = run(self.model.get_image_features, pixel_values=pixels[None])
        return to_numpy(found.pooler_output)[0]

    def fit(self, picture: np.ndarray, text: str) -> float:
        """Cosine of picture and text."""
        return cosine(self.picture(picture), self.text(text))

    def likeness(self, one: np.ndarray, other: np.ndarray) -> float:
        """Cosine of two pictures."""
        return cosine(self.picture(one), self.picture(other))

    def score(self, picture: np.ndarray, text: str) -> float:
        """CLIPScore of PIE-Bench's suite: 100 times the cosine, at least 0. A text of more than 77
        tokens is cut without its end."""
        return max(100 * cosine(self.picture(picture), self.text(text, keep_end=False)), 0.0)

    def fit_unrounded(self, picture: np.ndarray, text: str) -> float:
        """`fit`, of a picture that is not rounded to 256 levels after it is resized, as in the
        code of Inverse-and-Edit."""
        return cosine(self.of_pixels(unrounded(picture)), self.text(text))


def unrounded(picture: np.ndarray) -> np.ndarray:
    """`prepared`, resized by torch as floating numbers, which are neither rounded nor limited."""

    def resize(pixels: Any) -> Any:
        import torch

        size = scaled(picture.shape, SIDE)
        return torch.nn.functional.interpolate(pixels, size, mode="bicubic", antialias=True)

    pixels = picture.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(255)
    resized = to_numpy(run(resize, pixels))[0].transpose(1, 2, 0)
    square = resized[centre(resized.shape, rounded=True)]
    normal: np.ndarray = ((square - CLIP_MEAN) / CLIP_STD).astype(np.float32).transpose(2, 0, 1)
    return normal
