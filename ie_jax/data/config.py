"""The schema of what to train on."""

from dataclasses import dataclass
from typing import Literal

from ie_jax.data.images import MAX_SIDE
from ie_jax.data.world.scenes import TRAINING_SEEDS
from ie_jax.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Images with captions: where they are and how they are read."""

    source: Literal["folder", "coco_csv", "tfds", "latents", "world"] = "folder"
    """folder: pictures with metadata.jsonl or .txt files. coco_csv: train2014/ beside
    train2014.csv. tfds: prepared array_record files. latents: what ie-jax-cache-latents wrote.
    world: scenes of the embedded world, drawn as they are needed."""
    path: str = ""
    """The folder of the data; none for the world."""
    world_seed: int = 0
    """Of the world's scenes, below 1000: evaluation draws from the others."""
    world_scenes: int = 1_000_000
    """How many scenes of the world there are, those held out among them."""
    world_pairs: float = 0.4
    """Share of the world's scenes that have room for two objects."""
    split: str | None = None
    """A part of them: a folder in `path`, or a split of TFDS. None: all; train2014; train."""
    validation: int | str = 0
    """Held out: the last so many images, or another split by name."""
    size: int | None = None
    """Side of the squares in pixels. None: as the model was trained (512 for SD1.5)."""
    captions: Literal["first", "random"] = "first"
    """Of several captions: the first, or one drawn each epoch."""
    workers: int = 8
    """Threads that read ahead, in each process."""
    max_broken: float = 0.01
    """Stop when a larger share of the images is broken, but not for one of a few, unless this is 0.
    Fewer are skipped and named."""

    def __post_init__(self) -> None:
        if isinstance(self.validation, int) and self.validation < 0:
            raise UserError(f"validation {self.validation} must not be negative")
        if self.size is not None and not 1 <= self.size <= MAX_SIDE:
            raise UserError(f"size {self.size} must be from 1 to {MAX_SIDE}")
        if not 0 <= self.workers <= 256:
            raise UserError(f"workers {self.workers} must be from 0 to 256")
        if not 0 <= self.max_broken <= 1:
            raise UserError(f"max_broken {self.max_broken} must be from 0 to 1")
        if self.world_seed not in TRAINING_SEEDS:
            raise UserError(
                f"world_seed {self.world_seed} must be from 0 to {TRAINING_SEEDS[-1]}: the others "
                "are for evaluation"
            )
        if not 0 <= self.world_pairs <= 1:
            raise UserError(f"world_pairs {self.world_pairs} must be from 0 to 1")
        if self.world_scenes < 1:
            raise UserError(f"world_scenes {self.world_scenes} must be 1 or more")
