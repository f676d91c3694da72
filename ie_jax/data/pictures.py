"""Pictures with captions as the networks take them: squares of one size, and token ids."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ie_jax.data.images import ignore_pillow, preprocess, read_rgb
from ie_jax.data.loader import Batch
from ie_jax.data.sources import Source
from ie_jax.models.tokenizer import PromptCut

Tokenize = Callable[[Sequence[str]], np.ndarray]
"""Texts to token ids, int32 (b, n); (b, 2, n) for two text encoders."""
Captions = Literal["first", "random"]


@dataclass(frozen=True)
class Pictures:
    """Prepared pictures of a source by number: batches of `pixels` and `ids`."""

    source: Source
    tokenize: Tokenize
    size: int
    """Side of the squares: the shorter side is brought to it and the rest cut, as published."""
    captions: Captions = "first"
    """Which caption stands for a picture: its first, or one drawn each time."""

    def __post_init__(self) -> None:
        ignore_pillow()

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int, rng: np.random.Generator) -> tuple[str, tuple[np.ndarray, str]]:
        """Name, and pixels (uint8 (size, size, 3)) with a caption.

        Raises:
            UserError: this picture is broken.
        """
        example = self.source[index]
        several = len(example.captions)
        chosen = rng.integers(several) if self.captions == "random" else 0
        image = read_rgb(example.image, example.name)
        return example.name, (preprocess(image, self.size), example.captions[chosen])

    def batch(self, items: Sequence[tuple[np.ndarray, str]]) -> Batch:
        """`pixels` uint8 (b, size, size, 3) and `ids`, see `Tokenize`. Long captions are cut."""
        with warnings.catch_warnings(action="ignore", category=PromptCut):
            ids = self.tokenize([caption for _, caption in items])
        return {"pixels": np.stack([pixels for pixels, _ in items]), "ids": ids}
