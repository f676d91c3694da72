"""Scenes of the embedded world as a data set to train on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from ie_jax.data.loader import Batch
from ie_jax.data.pictures import Tokenize
from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import ATTRIBUTES, SIZE, Scene, draw_scene, labels
from ie_jax.errors import UserError


@dataclass(frozen=True)
class Scenes:
    """Scenes by number, drawn when they are read: batches of `pixels`, `ids` and `labels`."""

    seed: int
    count: int
    pairs: float
    """Share of the scenes that have room for two objects."""
    tokenize: Tokenize
    size: int
    """Side of the pictures; must be the world's."""

    def __post_init__(self) -> None:
        if self.size != SIZE:
            raise UserError(f"pictures of the world have {SIZE} pixels, not {self.size}")

    def __len__(self) -> int:
        return self.count

    @cached_property
    def ids(self) -> Callable[[str], np.ndarray]:
        """Token ids of a caption, of which there are a few thousand in all."""
        return lru_cache(maxsize=None)(lambda text: self.tokenize([text])[0])

    def read(self, index: int, rng: np.random.Generator) -> tuple[str, tuple[np.ndarray, Scene]]:
        """Name, and picture with scene. Nothing is drawn from `rng`."""
        # Another generator than the scene's, so that what it shows does not depend on the draw.
        drawn = np.random.default_rng((index, self.seed)).random()
        scene = draw_scene(self.seed, index, 2 if drawn < self.pairs else 1)
        return f"scene {self.seed}/{index}", (render(scene), scene)

    def batch(self, items: Sequence[tuple[np.ndarray, Scene]]) -> Batch:
        """`pixels` uint8 (b, size, size, 3), `ids` int32 (b, n), and `labels` int32 (b, 7), the
        numbers of `ATTRIBUTES`' values."""
        numbers = [labels(scene) for _, scene in items]
        return {
            "pixels": np.stack([pixels for pixels, _ in items]),
            "ids": np.stack([self.ids(caption(scene)) for _, scene in items]),
            "labels": np.array([[n[name] for name in ATTRIBUTES] for n in numbers], np.int32),
        }
