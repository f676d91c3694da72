"""Batches from a data set: shuffled anew each epoch, read ahead by threads, resumable anywhere.

Position p of the endless stream of images holds one image, whatever the number of processes,
threads or restarts. Global batch k is the positions [k b, (k + 1) b), of which process i of n takes
the i-th of n equal parts. So where a run stands is one number.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np

from ie_jax.errors import UserError

Batch = dict[str, np.ndarray]

SHOWN = 10
"""So many broken images are named."""
TELLING = 1000
"""Of fewer images (or one epoch, if that is less) no share is taken."""
ATTEMPTS = 100
"""So many images in a row may be broken, before there must be something wrong with all."""


class BrokenImage(UserWarning):
    """An image that cannot be used was skipped."""


class Dataset(Protocol):
    """Images by number, prepared."""

    def __len__(self) -> int: ...

    def read(self, index: int, rng: np.random.Generator) -> tuple[str, Any]:
        """Name and item. Called by several threads. Raises UserError if this image is broken."""
        ...

    def batch(self, items: Sequence[Any]) -> Batch:
        """Arrays with a leading axis of items."""
        ...


@dataclass
class Tally:
    """Counts broken images, names the first, and stops at too many."""

    limit: float
    """The share that may be broken."""
    telling: int = TELLING
    """Images to see before the share is taken."""
    seen: int = 0
    broken: int = 0
    faults: list[str] = field(default_factory=list)
    """What is wrong with the first few, each once."""

    def count(self, sound: int, faults: Sequence[str]) -> None:
        """Count images.

        Warns:
            BrokenImage: for each of the first few.

        Raises:
            UserError: too large a share is broken.
        """
        self.seen += sound + len(faults)
        self.broken += len(faults)
        for fault in faults:
            if fault in self.faults or len(self.faults) == SHOWN:
                continue
            self.faults.append(fault)
            last = "; further ones are not named" if len(self.faults) == SHOWN else ""
            warnings.warn(f"skipped a broken image: {fault}{last}", BrokenImage, stacklevel=3)
        # One image is no share of a few, however often they come.
        few = math.ceil(self.seen / self.telling) if self.limit else 0
        if self.seen >= self.telling and self.broken > max(self.limit * self.seen, few):
            first = "; ".join(self.faults[:3]) or "those that earlier runs named"
            raise UserError(
                f"{self.broken} of {self.seen} images are broken, more than max_broken "
                f"{self.limit:g}: {first}"
            )


@dataclass(frozen=True)
class Read:
    """An image, or the first sound one drawn in its place."""

    name: str
    item: Any
    """None: none was found."""
    faults: tuple[str, ...]
    """What was wrong with the images before it."""


class Reader:
    """Reads the image of a position, replacing a broken one by a random other."""

    def __init__(self, dataset: Dataset, indices: Sequence[int], seed: int) -> None:
        self.dataset, self.indices, self.seed = dataset, indices, seed

    def __call__(self, place: tuple[int, int]) -> Read:
        """Position in the stream and number of the image, as one of `indices`, to the image."""
        position, first = place
        rng = np.random.default_rng((self.seed, position))
        faults: list[str] = []
        for number in self.candidates(first, rng):
            try:
                name, item = self.dataset.read(self.indices[number], rng)
                return Read(name, item, tuple(faults))
            except UserError as error:
                faults.append(str(error))
        return Read("", None, tuple(faults))

    def candidates(self, first: int, rng: np.random.Generator) -> Iterator[int]:
        """The image itself, then others."""
        yield first
        count = len(self.indices)
        others = rng.choice(count, min(count, ATTEMPTS), replace=False)
        yield from (int(other) for other in others if other != first)


class Places:
    """This process's part of the stream from a batch on: (position, number of the image)."""

    def __init__(
        self, order: Sequence[int], start: int, batch: int, process: int, processes: int
    ) -> None:
        self.order, self.start, self.batch = order, start, batch
        self.part, self.process = batch // processes, process

    def __len__(self) -> int:
        return (len(self.order) // self.batch - self.start) * self.part

    def __getitem__(self, place: int) -> tuple[int, int]:
        number, row = divmod(place, self.part)
        position = (self.start + number) * self.batch + self.process * self.part + row
        return position, int(self.order[position])


class Loader:
    """An iterator over this process's part of each global batch.

    Training never ends. Validation is one pass in order, anew for each `for`; its last batch is
    filled up from the start, so that all have one shape.
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int],
        batch_size: int,
        *,
        process_index: int = 0,
        process_count: int = 1,
        seed: int = 0,
        training: bool = True,
        workers: int = 8,
        max_broken: float = 0.01,
    ) -> None:
        """Nothing is read yet.

        Args:
            indices: the images of `dataset` that take part.
            batch_size: of all processes together.
            seed: of the order and of what is drawn for each image.
            workers: threads that read ahead, two batches far. 0: none.
            max_broken: the share of broken images at which to stop.

        Raises:
            UserError: no images, or a batch that the processes cannot share equally.
        """
        if not indices:
            raise UserError("no images to read")
        if batch_size < 1 or batch_size % process_count:
            raise UserError(
                f"batch size {batch_size} must be a positive multiple of the {process_count} "
                "processes"
            )
        if not 0 <= seed < 2**32:
            raise UserError(f"seed {seed} must be from 0 to 4294967295")
        self.dataset, self.indices, self.batch_size = dataset, indices, batch_size
        self.process = process_index, process_count
        self.seed, self.training, self.workers = seed, training, workers
        self.names: tuple[str, ...] = ()
        """Names of the images of the last batch."""
        self.batches = 0
        """Batches given so far."""
        self.tally = Tally(max_broken, min(TELLING, len(indices)))
        self.reads: Any = None

    @property
    def order(self) -> Sequence[int]:
        """The number of the image at each position."""
        import grain  # a second to import, and machines that only see batches may lack it

        count = len(self.indices)
        numbers = grain.MapDataset.range(count)
        if self.training:
            endless: Sequence[int] = numbers.shuffle(seed=self.seed).repeat()
            return endless
        filled = -(-count // self.batch_size) * self.batch_size
        once: Sequence[int] = numbers.repeat(-(-filled // count))[:filled]
        return once

    def start(self) -> Any:
        """An iterator of `Read`s from where the last batch ended."""
        import grain

        places = Places(self.order, self.batches, self.batch_size, *self.process)
        reader = Reader(self.dataset, self.indices, self.seed)
        ahead = 2 * places.part if self.workers else 0
        options = grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=ahead)
        return iter(grain.MapDataset.source(places).map(reader).to_iter_dataset(options))

    def __iter__(self) -> Self:
        if not self.training:
            self.rewind(0)
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Warns:
            BrokenImage: some broken ones were skipped.

        Raises:
            UserError: too many are broken.
        """
        if self.reads is None:
            self.reads = self.start()
        reads: list[Read] = []
        for _ in range(self.batch_size // self.process[1]):
            reads.append(next(self.reads))
            read = reads[-1]
            # Those tried in its place have a turn of their own.
            self.tally.count(not read.faults, read.faults[:1])
            if read.item is None:
                raise UserError(
                    f"all of {len(read.faults)} images tried are broken: "
                    f"{'; '.join(read.faults[:3])}"
                )
        self.batches += 1
        self.names = tuple(read.name for read in reads)
        return self.dataset.batch([read.item for read in reads])

    def rewind(self, batches: int) -> None:
        """Go on after so many batches."""
        self.close()
        self.batches = batches

    def close(self) -> None:
        """End the threads; the next batch would start them again."""
        if self.reads is not None:
            self.reads.close()
            self.reads = None

    def get_state(self) -> dict[str, Any]:
        """Where this stands, as JSON has it. Any number of processes can go on from it; the counts
        of broken images are those of this process."""
        return {
            "images": self.batches * self.batch_size,
            "count": len(self.indices),
            "seed": self.seed,
            "seen": self.tally.seen,
            "broken": self.tally.broken,
            "faults": list(self.tally.faults),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state: all further batches are as if there had been no interruption.

        A state taken with another batch size goes on at the last whole batch.

        Raises:
            UserError: the state is of other data or of another seed.
        """
        for key, here in (("count", len(self.indices)), ("seed", self.seed)):
            if state.get(key) != here:
                raise UserError(
                    f"cannot resume: the {key} of the data was {state.get(key)} when saved and is "
                    f"{here} now: give the same data and seed"
                )
        self.rewind(state["images"] // self.batch_size)
        self.tally.seen, self.tally.broken = state["seen"], state["broken"]
        self.tally.faults = list(state["faults"])
