"""Pictures encoded once: posterior of the autoencoder and text embedding, on disk by number."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import safetensors.numpy
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from tqdm import tqdm

from ie_jax.config import build
from ie_jax.data.loader import TELLING, Batch, Read, Tally
from ie_jax.data.pictures import Pictures
from ie_jax.errors import UserError
from ie_jax.files import MOST_JSON, alone_in, appearing_whole, need_file, parse_json, read_bytes
from ie_jax.weights.formats import MOST_WEIGHTS

FORMAT = 2
INDEX = "index.json"
UNFINISHED = "holds no finished latents: run ie-jax-cache-latents to its end"

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
    """`index.json`: written before the files, and again when all are there."""

    config: LatentConfig
    counts: tuple[int, ...] = ()
    """Pictures in each file; empty until all are there."""


def fingerprint(*weights: Any) -> str:
    """A hash of weights: of all names, shapes, types and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(weights):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:32]


def part_path(folder: Path, number: int) -> Path:
    """The file of so many pictures."""
    return folder / f"{number:05}.array_record"


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
    source, length = pictures.source.description, len(pictures)
    config = LatentConfig(
        model, source, length, pictures.size, pictures.captions, dtype, pixels, shard
    )
    tally = Tally(max_broken, min(TELLING, length))

    def batches(span: range) -> Iterator[list[bytes]]:
        for reads in sound(pictures, span, workers, tally, batch_size):
            yield encoded(pictures, reads, batch_size, encode, embed, config)

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone_in(folder):
            begin(folder, config)
            index = LatentIndex(config, fill(folder, config, batches, tally, progress))
            if not sum(index.counts):
                raise UserError(f"{source}: all images are broken")
            write_index(folder, index)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    return index


def begin(folder: Path, config: LatentConfig) -> None:
    """Write down what the folder is going to hold, or see that an earlier run wrote the same.

    Raises:
        UserError: it holds other latents.
    """
    for left in folder.glob(".*.part"):
        left.unlink()  # of a run that was killed
    if not any(folder.glob("*.array_record")):
        return write_index(folder, LatentIndex(config))
    if not (folder / INDEX).exists():
        raise UserError(f"{folder}: holds records without {INDEX}: name another folder")
    found = dataclasses.asdict(read_index(folder).config)
    for key, value in dataclasses.asdict(config).items():
        if found[key] != value:
            raise UserError(
                f"{folder / INDEX}: was made with {key} {found[key]!r}, not {value!r}: name "
                "another folder, or remove this one"
            )


def fill(
    folder: Path,
    config: LatentConfig,
    batches: Callable[[range], Iterator[list[bytes]]],
    tally: Tally,
    progress: bool,
) -> tuple[int, ...]:
    """Write the files that are missing or damaged; returns how many pictures each file holds."""
    starts = range(0, config.length, config.shard)
    spans = [range(i, min(i + config.shard, config.length)) for i in starts]
    counts = [count_in(part_path(folder, k)) for k in range(len(spans))]
    missing = [k for k, count in enumerate(counts) if count is None]
    tally.seen = done = config.length - sum(len(spans[k]) for k in missing)
    tally.broken = done - sum(count or 0 for count in counts)
    with tqdm(
        desc="encode", total=config.length, initial=done, unit="image", disable=not progress
    ) as bar:
        for k in missing:
            records: list[bytes] = []
            for batch in batches(spans[k]):
                records += batch
                bar.update(len(batch))
            write_part(part_path(folder, k), records)
            counts[k] = len(records)
    return tuple(count or 0 for count in counts)


def count_in(path: Path) -> int | None:
    """How many pictures a file holds; None if there is no such file, or it is damaged.

    Raises:
        UserError: it is no ordinary file.
    """
    try:
        need_file(path, MOST_WEIGHTS)
    except OSError:
        return None
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0")
    return reader.num_records() if reader.ok() else None


def sound(
    pictures: Pictures, span: range, workers: int, tally: Tally, batch_size: int
) -> Iterator[list[Read]]:
    """The readable ones of some pictures, in order and in batches, read ahead by threads."""
    import grain  # a second to import

    def read(index: int) -> Read:
        try:
            return Read(*pictures.read(index, np.random.default_rng(index)), ())
        except UserError as error:
            return Read("", None, (str(error),))

    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=4 * workers)
    batch: list[Read] = []
    for picture in grain.MapDataset.source(span).map(read).to_iter_dataset(options):
        tally.count(picture.item is not None, picture.faults)
        if picture.item is not None:
            batch.append(picture)
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
) -> list[bytes]:
    """What is stored of some pictures: of each its arrays, and its name, as a safetensors file."""
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
    return [
        safetensors.numpy.save(
            {"name": np.frombuffer(read.name.encode(errors="replace"), np.uint8)}
            | {key: array[row] for key, array in arrays.items()}
        )
        for row, read in enumerate(reads)
    ]


def write_part(path: Path, records: Sequence[bytes]) -> None:
    """Write a file whole, each picture apart from the others, so that any of them is read alone."""
    try:
        with appearing_whole(path) as file:
            writer = ArrayRecordWriter(file.name, "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
            os.fsync(file.fileno())
    except RuntimeError as error:  # array_record's only kind
        raise UserError(f"{path}: cannot be written: {error}") from error


class Latents:
    """A folder of latents by number: batches of `mean`, `std`, `context`, maybe `pooled` and
    `pixels`."""

    def __init__(self, folder: Path) -> None:
        """Open all files.

        Raises:
            UserError: unfinished, damaged or of an unknown format.
        """
        import grain  # a second to import

        self.index = read_index(folder)
        counts = self.index.counts
        if not counts:
            raise UserError(f"{folder}: {UNFINISHED}")
        paths = [part_path(folder, k) for k in range(len(counts))]
        for path, count in zip(paths, counts, strict=True):
            if count_in(path) != count:
                raise UserError(
                    f"{path}: is missing, damaged or not what {INDEX} says: cache the latents again"
                )
        self.records = grain.sources.ArrayRecordDataSource(paths)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int, rng: np.random.Generator) -> tuple[str, Batch]:
        """Name, and arrays of one picture. Nothing is drawn.

        Raises:
            UserError: the file is damaged.
        """
        try:
            arrays = safetensors.numpy.load(self.records[index])
            return arrays.pop("name").tobytes().decode(), arrays
        except (RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
            raise UserError(f"image {index} of the latents: {error}") from error

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
        raise UserError(f"{folder}: {UNFINISHED}")
    try:
        index = build(LatentIndex, parse_json(read_bytes(path, MOST_JSON)), str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if index.config.format != FORMAT:
        raise UserError(
            f"{path}: has format {index.config.format}, not {FORMAT}: cache again, into another "
            "folder"
        )
    return index


def write_index(folder: Path, index: LatentIndex) -> None:
    """Write `index.json`."""
    with appearing_whole(folder / INDEX) as file:
        file.write(json.dumps(dataclasses.asdict(index), indent=1).encode())
