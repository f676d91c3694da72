"""The front door: from a config to batches."""

from pathlib import Path

from ie_jax.data.config import DataConfig
from ie_jax.data.latents import Latents
from ie_jax.data.loader import Dataset, Loader
from ie_jax.data.pictures import Pictures, Tokenize
from ie_jax.data.scenes import Scenes
from ie_jax.data.sources import Files, Source, Tfds, coco_csv, folder
from ie_jax.errors import UserError

SPLITS = {"coco_csv": "train2014", "tfds": "train"}


def open_data(
    config: DataConfig,
    tokenizer: Tokenize,
    size: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    seed: int = 0,
    training: bool = True,
) -> Loader:
    """This process's part of the batches: `pixels` (uint8) and `ids` (int32), or what `Latents`
    gives.

    Args:
        tokenizer: a `Tokenizer`, say. Not used for latents.
        size: of the model, where the config names none.
        batch_size: of all processes together.
        training: endless and shuffled, without what is held out; or one pass over the latter.

    Raises:
        UserError: the data are missing, empty, unreadable or do not fit the config.
    """
    dataset, indices = divided(config, tokenizer, config.size or size, training)
    return Loader(
        dataset,
        indices,
        batch_size,
        process_index=process_index,
        process_count=process_count,
        seed=seed,
        training=training,
        workers=config.workers,
        max_broken=config.max_broken,
    )


def divided(
    config: DataConfig, tokenizer: Tokenize, size: int, training: bool
) -> tuple[Dataset, range]:
    """The data set of training or validation, and which of its images take part."""
    if not config.path and config.source != "world":
        raise UserError("the data's path is missing: name their folder")
    if not config.validation and not training:
        raise UserError("validation names no images: give a number or a split")
    held_out = isinstance(config.validation, str)
    split = config.validation if held_out and not training else config.split
    dataset: Dataset
    if config.source == "latents":
        dataset = Latents(under(config.path, split))
        made = dataset.index.config.size
        if made != size:
            raise UserError(f"{config.path}: holds latents of {made} pixels, not {size}")
    elif config.source == "world":
        dataset = Scenes(
            config.world_seed, config.world_scenes, config.world_pairs, tokenizer, size
        )
    else:
        source = open_source(config, split)
        if held_out and training:
            source = apart(source, open_source(config, config.validation))
        dataset = Pictures(source, tokenizer, size, config.captions)
    count = len(dataset)
    first = count - (config.validation if isinstance(config.validation, int) else 0)
    if first < 1:
        raise UserError(
            f"{config.path or config.source}: of {count} images none is left to train on: "
            f"validation is {config.validation}"
        )
    return dataset, range(first) if training or held_out else range(first, count)


def open_source(config: DataConfig, split: str | int | None) -> Source:
    """The pictures of a split; None is the kind's usual one."""
    path = Path(config.path).expanduser()
    name = str(split or SPLITS.get(config.source, ""))
    if config.source == "tfds":
        return Tfds(path, name)
    if config.source == "coco_csv":
        return coco_csv(path, name)
    return folder(under(config.path, split))


def under(path: str, split: str | int | None) -> Path:
    """The folder of a split in the folder of the data."""
    return Path(path).expanduser() / str(split or "")


def apart(source: Source, held_out: Source) -> Source:
    """The source without what is held out.

    Raises:
        UserError: nothing is left, or that cannot be told.
    """
    if isinstance(source, Files) and isinstance(held_out, Files):
        left = source.without(held_out)
        if not len(left):
            raise UserError(f"{source.description}: all images are held out for validation")
        return left
    if isinstance(source, Tfds) and isinstance(held_out, Tfds):
        shared = source.base_splits & held_out.base_splits
        if shared:
            raise UserError(
                f"split and validation both take from {', '.join(sorted(shared))}: give validation "
                "as a number to hold out the last images of a split"
            )
    return source
