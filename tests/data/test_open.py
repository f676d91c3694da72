"""The front door: each kind of source, what is held out, and configs that make no sense."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ie_jax.config import build
from ie_jax.data.config import DataConfig
from ie_jax.data.latents import Latents, cache_latents
from ie_jax.data.loader import BrokenImage, Loader
from ie_jax.data.open import open_data
from ie_jax.data.pictures import Pictures
from ie_jax.data.sources import folder
from ie_jax.errors import UserError
from tests.data.pictures import number_of, tokenize, write_folder
from tests.data.test_sources import prepare


def opened(config: DataConfig, training: bool = True, batch_size: int = 4) -> Loader:
    return open_data(config, tokenize, 8, batch_size, training=training)


def numbers(config: DataConfig, training: bool = True) -> list[int]:
    """The pictures of an epoch, sorted."""
    loader = opened(config, training, batch_size=1)
    batches = islice(loader, len(loader.indices))
    return sorted(
        int(number_of(b["pixels"])[0] if "pixels" in b else b["mean"].flat[0]) for b in batches
    )


def release(path: Path, split: str, start: int, count: int) -> None:
    write_folder(path / split, count, start=start)
    rows = [f"{k},{n:04}.png,{n} 0" for k, n in enumerate(range(start, start + count))]
    (path / f"{split}.csv").write_text("\n".join([",file_name,caption", *rows]))


def latents(path: Path, start: int, count: int) -> None:
    pictures = Pictures(folder(write_folder(path / f"in{start}", count, start=start)), tokenize, 8)

    def encode(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean = number_of(pixels)[:, None, None, None]
        return mean, mean

    cache_latents(
        pictures,
        path / ("val" if start else ""),
        encode,
        lambda ids: {"context": ids[..., None]},
        model="m",
        progress=False,
    )


def make(kind: str, path: Path) -> tuple[dict[str, Any], str]:
    """Data with 10 images of training and 3 of validation (100 to 102); how to name the latter."""
    if kind == "folder":
        write_folder(path / "train", 10)
        write_folder(path / "val", 3, start=100)
        return {"split": "train"}, "val"
    if kind == "coco_csv":
        release(path, "train2014", 0, 10)
        release(path, "val2014", 100, 3)
        return {}, "val2014"
    if kind == "latents":
        latents(path, 0, 10)
        latents(path, 100, 3)
        return {}, "val"
    prepare(path, {"train": 10, "val": 3})
    return {}, "val"


@pytest.mark.parametrize("kind", ["folder", "coco_csv", "tfds", "latents"])
def test_every_source_with_its_held_out_images(kind: Any, tmp_path: Path) -> None:
    options, split = make(kind, tmp_path)
    given: dict[str, Any] = {"source": kind, "path": str(tmp_path), **options}
    assert numbers(DataConfig(**given)) == list(range(10))
    for training, expected in ((True, [*range(10)]), (False, [100, 101, 102])):
        assert numbers(DataConfig(**given, validation=split), training) == expected

    counted = DataConfig(**given, validation=3)
    train, held_out = numbers(counted), numbers(counted, training=False)
    assert sorted(train + held_out) == list(range(10)) and len(held_out) == 3
    if kind != "tfds":  # which stores in an order of its own
        assert held_out == [7, 8, 9]


def test_validation_inside_the_training_folder_is_never_trained_on(tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    write_folder(tmp_path / "val", 2, start=50)
    config = DataConfig(path=str(tmp_path), validation="val")
    assert numbers(config) == [0, 1, 2, 3]
    assert numbers(config, training=False) == [50, 51]


def test_validation_may_be_a_folder_elsewhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 4)
    write_folder(tmp_path / "b", 2, start=50)
    config = DataConfig(path=str(tmp_path / "a"), validation=str(tmp_path / "b"))
    assert numbers(config, training=False) == [50, 51]


def test_validation_that_is_the_training_data_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 4)
    with pytest.raises(UserError, match="all images are held out"):
        opened(DataConfig(path=str(tmp_path), split="a", validation="a"))


def test_overlapping_splits_of_tfds_are_refused(tmp_path: Path) -> None:
    prepare(tmp_path, {"train": 4})
    config = DataConfig(source="tfds", path=str(tmp_path), validation="train[:1]")
    with pytest.raises(UserError, match="both take from train"):
        opened(config)


def test_the_config_decides(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, captions=4)
    (tmp_path / "0001.png").write_bytes(b"")
    config = DataConfig(path=str(tmp_path), size=16, captions="random", workers=2, max_broken=0.5)
    with pytest.warns(BrokenImage):
        batches = [*islice(opened(config), 8)]
    assert batches[0]["pixels"].shape == (4, 16, 16, 3)
    assert {int(k) for batch in batches for k in batch["ids"][:, 1]} == {0, 1, 2, 3}


def test_processes_seed_and_size_are_passed_on(tmp_path: Path) -> None:
    write_folder(tmp_path, 8)
    config = DataConfig(path=str(tmp_path))

    def first(**options: Any) -> list[int]:
        loader = open_data(config, tokenize, 8, 8, **options)
        return number_of(next(loader)["pixels"]).tolist()

    whole = first(seed=3)
    halves = [first(process_index=i, process_count=2, seed=3) for i in range(2)]
    assert halves[0] + halves[1] == whole != first(seed=4)


def test_latents_of_another_size_are_refused(tmp_path: Path) -> None:
    latents(tmp_path, 0, 2)
    config = DataConfig(source="latents", path=str(tmp_path), size=16)
    with pytest.raises(UserError, match="latents of 8 pixels, not 16"):
        opened(config)


def test_the_model_of_latents_can_be_asked_for(tmp_path: Path) -> None:
    latents(tmp_path, 0, 2)
    dataset = opened(DataConfig(source="latents", path=str(tmp_path))).dataset
    assert isinstance(dataset, Latents) and dataset.index.config.model == "m"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": -1}, "validation -1"),
        ({"size": 0}, "size 0"),
        ({"size": 4096}, "size 4096"),
        ({"workers": -1}, "workers -1"),
        ({"max_broken": 1.5}, "max_broken 1.5"),
        ({"max_broken": float("nan")}, "max_broken nan"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DataConfig(**options)


def test_a_config_is_read_strictly(tmp_path: Path) -> None:
    assert build(DataConfig, {"validation": 5, "path": "x"}, "f").validation == 5
    assert build(DataConfig, {"validation": "val", "path": "x"}, "f").validation == "val"
    for wrong in ({"validation": 0.5}, {"source": "webdataset"}, {"paths": "x"}):
        with pytest.raises(UserError):
            build(DataConfig, wrong, "f")


@pytest.mark.parametrize(
    ("options", "training", "message"),
    [
        ({"path": ""}, True, "path is missing"),
        ({}, False, "validation names no images"),
        ({"validation": 3}, True, "of 3 images none is left"),
        ({"validation": 4}, False, "of 3 images none is left"),
        ({"split": "nope"}, True, "nope: there is no such folder"),
        ({"validation": "nope"}, True, "nope: there is no such folder"),
        ({"source": "coco_csv"}, True, "train2014: there is no such folder"),
        ({"source": "latents"}, True, "holds no finished latents"),
    ],
)
def test_what_cannot_be_opened_is_refused(
    options: dict[str, Any], training: bool, message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, 3)
    with pytest.raises(UserError, match=message) as caught:
        opened(DataConfig(**{"path": str(tmp_path), **options}), training)
    assert "\n" not in str(caught.value)
