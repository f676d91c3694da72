"""Scenes as a data set."""

import numpy as np
import pytest

from ie_jax.data.config import DataConfig
from ie_jax.data.open import open_data
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import (
    ATTRIBUTES,
    SIZE,
    TRAINING_SEEDS,
    draw_scene,
)
from ie_jax.errors import UserError


def tokens(texts: list[str]) -> np.ndarray:
    return np.array([[len(word) for word in text.split()[:2]] for text in texts], np.int32)


def test_batches_of_scenes() -> None:
    config = DataConfig(source="world", world_scenes=32, validation=8, workers=0)
    batch = next(open_data(config, tokens, SIZE, 4))  # type: ignore[arg-type]
    assert batch["pixels"].shape == (4, SIZE, SIZE, 3)
    assert batch["ids"].shape == (4, 2)
    assert batch["labels"].shape == (4, len(ATTRIBUTES))
    held_out = list(open_data(config, tokens, SIZE, 4, training=False))  # type: ignore[arg-type]
    drawn = [render(draw_scene(0, 24, places)) for places in (1, 2)]
    assert any((held_out[0]["pixels"][0] == picture).all() for picture in drawn)
    assert len(held_out) == 2


@pytest.mark.parametrize("pairs", [0.0, 1.0])
def test_the_share_of_scenes_for_two_objects(pairs: float) -> None:
    config = DataConfig(source="world", world_scenes=8, validation=4, world_pairs=pairs, workers=0)
    (batch,) = open_data(config, tokens, SIZE, 4, training=False)  # type: ignore[arg-type]
    drawn = np.stack([render(draw_scene(0, i, 1 + int(pairs))) for i in range(4, 8)])
    np.testing.assert_array_equal(batch["pixels"], drawn)
    with pytest.raises(UserError, match=r"world_pairs 1.5 must be from 0 to 1"):
        DataConfig(world_pairs=1.5)


def test_training_and_evaluation_have_their_own_seeds() -> None:
    with pytest.raises(UserError, match="the others are for evaluation"):
        DataConfig(source="world", world_seed=TRAINING_SEEDS.stop)


def test_other_sizes_are_refused() -> None:
    config = DataConfig(source="world", size=32)
    with pytest.raises(UserError, match="have 64 pixels, not 32"):
        open_data(config, tokens, SIZE, 4)  # type: ignore[arg-type]
