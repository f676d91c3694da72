"""Pictures encoded once: posterior of the autoencoder and text embedding, on disk by number."""

import bisect
import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors
from tqdm import tqdm

from ie_jax.config import build
from ie_jax.data.loader import TELLING, Batch, Read, Tally
from ie_jax.data.pictures import Pictures
from ie_jax.errors import UserError
from ie_jax.files import MOST_JSON, alone_in, appearing_whole, parse_json, read_bytes
from ie_jax.models.tokenizer import is_text
from ie_jax.weights import formats

FORMAT = 1
INDEX = "index.json"

Encode = Callable[[np.ndarray], tuple[Any, Any]]
"""Pixels, uint8 (b, H, W, 3), to mean and standard deviation (b, h, w, c) of the posterior, before
the scaling factor."""
Embed = Callable[[np.ndarray], Mapping[str, Any]]
"""Token ids to what is kept of them: `context`, embeddings (b, n, d), of two text encoders `pooled`
(b, p), too."""


@dataclass(frozen=True)
class LatentConfig:
    """What a folder of latents holds."""

    model: str
    """`fingerprint` of the weights that encoded."""
    source: str
    """The pictures, as their source describes itself."""
    length: int
    """How many pictures that were, with the broken ones."""
    size: int
    """Side of the squares in pixels."""
    captions: str
    dtype: Literal["float16", "float32"]
    pixels: bool
    """Whether the pictures are there, too."""
    shard: int
    """Pictures per file; in each, the broken ones are left out."""
    format: int = FORMAT


@dataclass(frozen=True)
class LatentIndex:
    """`index.json`, written when all files are."""

    config: LatentConfig
    counts: tuple[int, ...]
    """Pictures in each file."""


def fingerprint(*weights: Any) -> str:
    """A hash of weights: of all names, shapes, types and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"{number:05}.safetensors"


def cache_latents(
    pictures: Pictures,
    folder: Path,
    encode: Encode,
    embed: Embed,
    *,
    model: str,
    dtype: Literal["float16", "float32"] = "float16",
    pixels: bool = False,
    batch_size: int = 8,
    shard: int = 256,
    workers: int = 8,
    max_broken: float = 0.01,
    progress: bool = True,
) -> LatentIndex:
    """Encode all pictures into a folder. Files that are there already are not made again.

    Args:
        encode, embed: called with `batch_size` pictures each time.
        model: `fingerprint` of their weights.
        dtype: of mean, standard deviation and embedding.
        pixels: keep the pictures as well.
        shard: pictures per file.
        workers: threads that read pictures.

    Warns:
        BrokenImage: some pictures are broken and left out.

    Raises:
        UserError: too many pictures are broken, the folder holds other latents, or it cannot be
            written.
    """
    config = LatentConfig(
        model,
        pictures.source.description,
        len(pictures),
        pictures.size,
        pictures.captions,
        dtype,
        pixels,
        shard,
    )
    spans = [range(i, min(i + shard, len(pictures))) for i in range(0, len(pictures), shard)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            for left in folder.glob(".*.part"):
                left.unlink()  # of a run that was killed
            counts = [finished(shard_path(folder, k), config) for k in range(len(spans))]
            missing = [k for k, count in enumerate(counts) if count is None]
            reads = read_all(pictures, [i for k in missing for i in spans[k]], workers)
            done = len(pictures) - sum(len(spans[k]) for k in missing)
            left_out = done - sum(count for count in counts if count is not None)
            tally = Tally(max_broken, min(TELLING, len(pictures)), seen=done, broken=left_out)
            with tqdm(
                desc="encode", total=len(pictures), initial=done, unit="image", disable=not progress
            ) as bar:
                for k in missing:
                    names: list[str] = []
                    parts: list[Batch] = []
                    for batch in sound(itertools.islice(reads, len(spans[k])), tally, batch_size):
                        names += [read.name for read in batch]
                        parts.append(encoded(pictures, batch, batch_size, encode, embed, config))
                        bar.update(len(batch))
                    write_shard(shard_path(folder, k), config, names, parts)
                    counts[k] = len(names)
            index = LatentIndex(config, tuple(count or 0 for count in counts))
            if not sum(index.counts):
                raise UserError(f"{config.source}: all images are broken")
            with appearing_whole(folder / INDEX) as file:
                file.write(json.dumps(dataclasses.asdict(index), indent=1).encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    return index


def finished(path: Path, config: LatentConfig) -> int | None:
    """How many pictures a file holds; None if there is no such file, or it is damaged.

    Raises:
        UserError: it belongs to other latents.
    """
    try:
        facts = facts_of(opened(path))
    except UserError:
        return None
    wanted = dataclasses.asdict(config)
    found = facts.get("config", {})
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: was made with {key} {found.get(key)!r}, not {value!r}: name another "
                "folder, or remove this one"
            )
    return len(facts["names"])


def facts_of(file: Any) -> dict[str, Any]:
    """`config` and `names` of an open file, both empty if it is none of this module's.

    Raises:
        UserError: it is damaged.
    """
    try:
        told = (file.metadata() or {}).get("facts")
        if told is None:
            return {"config": {}, "names": []}
        facts = {"config": {}, "names": []} | parse_json(told)
        rows = {file.get_slice(key).get_shape()[0] for key in file.keys()}  # noqa: SIM118
        sound = isinstance(facts["config"], dict) and all(map(is_text, facts["names"]))
    except (TypeError, ValueError, IndexError, safetensors.SafetensorError):
        sound = False
    if not sound or rows not in ({len(facts["names"])}, set()):
        raise UserError("a file of the latents is damaged: cache them again")
    return facts


def opened(path: Path) -> Any:
    """A file of a shard, mapped into memory."""
    try:
        return formats.opened(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: is missing or damaged ({error}): cache the latents again") from (
            error
        )


def kind_of(file: Any) -> tuple[Any, ...]:
    """Names, number types and shapes of the arrays of one picture."""
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    return tuple(sorted((key, x.get_dtype(), *x.get_shape()[1:]) for key, x in slices.items()))


def read_all(pictures: Pictures, indices: Sequence[int], workers: int) -> Iterator[Read]:
    """The pictures in order, read ahead by threads."""
    import grain  # a second to import

    def read(index: int) -> Read:
        try:
            return Read(*pictures.read(index, np.random.default_rng(index)), ())
        except UserError as error:
            return Read("", None, (str(error),))

    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    source = grain.MapDataset.source(indices)
    return iter(source.map(read).to_iter_dataset(options)) if indices else iter(())


def sound(reads: Iterator[Read], tally: Tally, batch_size: int) -> Iterator[list[Read]]:
    """The readable ones, in batches."""
    batch: list[Read] = []
    for read in reads:
        tally.count(read.item is not None, read.faults)
        if read.item is not None:
            batch.append(read)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def encoded(
    pictures: Pictures,
    reads: Sequence[Read],
    batch_size: int,
    encode: Encode,
    embed: Embed,
    config: LatentConfig,
) -> Batch:
    """What is stored of some pictures."""
    # Filled up to the one shape for which the encoders are compiled.
    filled = [*reads, *[reads[-1]] * (batch_size - len(reads))]
    batch = pictures.batch([read.item for read in filled])
    mean, std = encode(batch["pixels"])
    values = {"mean": mean, "std": std, **embed(batch["ids"])}
    with np.errstate(over="ignore"):
        arrays = {name: np.asarray(value).astype(config.dtype) for name, value in values.items()}
    for name, array in arrays.items():
        if not np.isfinite(array[: len(reads)]).all():
            raise UserError(
                f"{name} of one of {', '.join(read.name for read in reads[:3])}, ... does not fit "
                f"{config.dtype}: take float32"
            )
    if config.pixels:
        arrays["pixels"] = batch["pixels"]
    return {name: array[: len(reads)] for name, array in arrays.items()}


def write_shard(
    path: Path, config: LatentConfig, names: Sequence[str], parts: Sequence[Batch]
) -> None:
    """Write a file whole. Without a sound picture it holds no arrays."""
    keys = parts[0] if parts else ()
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in keys}
    facts = json.dumps({"config": dataclasses.asdict(config), "names": list(names)})
    if len(facts) > MOST_JSON:
        raise UserError(f"{path}: the names of its images are too long: take a smaller --shard")
    with appearing_whole(path) as file:
        formats.write_tensors(file, arrays, {"facts": facts})
        file.flush()
        os.fsync(file.fileno())


class Latents:
    """A folder of latents by number: batches of `mean`, `std`, `context`, maybe `pooled` and
    `pixels`."""

    def __init__(self, folder: Path) -> None:
        """Map all files into memory.

        Raises:
            UserError: unfinished, damaged or of an unknown format.
        """
        self.index = read_index(folder)
        self.files = [opened(shard_path(folder, k)) for k in range(len(self.index.counts))]
        self.names = [facts_of(file)["names"] for file in self.files]
        counts = tuple(map(len, self.names))
        kinds = {kind_of(file) for file, count in zip(self.files, counts, strict=True) if count}
        if counts != self.index.counts or len(kinds) != 1:
            raise UserError(f"{folder}: {INDEX} does not fit the files: cache the latents again")
        self.ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def read(self, index: int, rng: np.random.Generator) -> tuple[str, Batch]:
        """Name, and arrays of one picture. Nothing is drawn.

        Raises:
            UserError: the file is damaged.
        """
        k = bisect.bisect(self.ends, index)
        row = index - (self.ends[k - 1] if k else 0)
        file = self.files[k]
        try:
            arrays = {key: file.get_slice(key)[row] for key in file.keys()}  # noqa: SIM118
        except (safetensors.SafetensorError, ValueError, IndexError) as error:
            raise UserError(f"image {index} of the latents: {error}") from error
        return self.names[k][row], arrays

    def batch(self, items: Sequence[Batch]) -> Batch:
        """`mean` and `std` (b, h, w, c), `context` (b, n, d), as they are stored; `pixels` uint8
        (b, H, W, 3) where they are."""
        return {key: np.stack([item[key] for item in items]) for key in items[0]}


def read_index(folder: Path) -> LatentIndex:
    """The index of a folder of latents.

    Raises:
        UserError: there is none, or it is not one that this version writes.
    """
    path = folder / INDEX
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not path.is_file():
        raise UserError(f"{folder}: holds no finished latents: run ie-jax-cache-latents to its end")
    try:
        index = build(LatentIndex, parse_json(read_bytes(path, MOST_JSON)), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if index.config.format != FORMAT:
        raise UserError(f"{path}: has format {index.config.format}, not {FORMAT}: cache again")
    return index
