"""Many images in one run: in batches over all devices, each written when it is done.

A run that was interrupted goes on where it was when it is started again: what has its files and its
record is finished.
"""

import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ie_jax.cli import print_line
from ie_jax.data.panels import side_by_side
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import encoded
from ie_jax.editing.jobs import Job
from ie_jax.errors import UserError
from ie_jax.products import check_free, is_finished, leave

READERS = 4
"""Threads that read images while the devices compute."""
Load = Callable[[str], np.ndarray]
"""Reads a picture by its path for the networks: uint8 (h, w, 3)."""
T = TypeVar("T")
R = TypeVar("R")
NOT_FINITE = "came out as NaN or infinity: lower the guidance or the guiders, or use float32"


@dataclass
class Tally:
    """What became of the jobs."""

    done: int = 0
    finished_before: int = 0
    broken: list[str] = field(default_factory=list)
    """Names of those that were passed over."""


def edit_many(
    editor: Editor,
    jobs: Sequence[Job],
    folder: Path,
    batch_size: int,
    config: Mapping[str, Any],
    notes: Mapping[str, Any],
    *,
    overwrite: bool = False,
    panels: bool = False,
    quiet: bool = False,
    load: Load | None = None,
    name: str = "edit",
) -> Tally:
    """Edit all images of `jobs` that are not finished, and write NAME.png (or NAME-1.png, ... for
    several targets) and NAME.json of each.

    An image that cannot be read, or whose result is not finite, is named and passed over.

    Args:
        folder: takes the results; exists.
        batch_size: images at once, a multiple of the editor's devices.
        config: the settings, as JSON has them, kept in each record. A result of others is made
            again.
        notes: what else each record says, beside `network_calls` and `seconds`, an image's part of
            its batch; not of the first, in which the program is compiled.
        overwrite: replace files that are not of this program.
        panels: also write NAME-side-by-side.png.
        load: reads a picture; None: the editor does.
        name: of the bar of progress.

    Raises:
        UserError: a result would replace a person's file, or cannot be written.
    """
    tally = Tally()
    todo = [job for job in jobs if not is_finished(record_of(folder, job), told(job, config))]
    tally.finished_before = len(jobs) - len(todo)
    for job in todo:
        paths = [*output_paths(folder, job), *([panel_path(folder, job)] if panels else [])]
        check_free(paths, record_of(folder, job), [Path(job.image)], overwrite)
    bar = tqdm(
        total=len(jobs), initial=tally.finished_before, desc=name, unit="image", disable=quiet
    )

    def passed_over(job: Job, reason: object) -> None:
        tally.broken.append(job.name)
        bar.clear()
        print_line("passed over", f"{job.name}: {reason}", sys.stderr)
        bar.update()

    with bar:
        compiled, taken = False, dict[str, float](network_calls=editor.network_calls)
        read = ahead(lambda job: loaded(load or editor.load, job), todo, READERS + batch_size)
        for batch in batches(read, batch_size, passed_over):
            start = time.perf_counter()
            images, finite = edited(editor, batch, batch_size)
            if compiled:
                taken["seconds"] = round((time.perf_counter() - start) / len(batch), 4)
            compiled = True
            for (job, pixels), results, sound in zip(batch, images, finite, strict=False):
                if not sound.all():
                    passed_over(job, NOT_FINITE)
                    continue
                files = dict(zip(output_paths(folder, job), results, strict=True))
                if panels:
                    named = [("source", pixels), *zip(job.targets, results, strict=True)]
                    files[panel_path(folder, job)] = side_by_side(named)
                contents = {path: encoded(image, path) for path, image in files.items()}
                leave(contents, record_of(folder, job), {**told(job, config), **notes, **taken})
                tally.done += 1
                bar.update()
    return tally


def told(job: Job, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of a job says: by it a later run knows that it is finished."""
    return {"edit": job.facts(), "config": config}


def record_of(folder: Path, job: Job) -> Path:
    """The record of a job."""
    return folder / f"{job.name}.json"


def output_paths(folder: Path, job: Job) -> list[Path]:
    """One picture, or one numbered picture per target."""
    if len(job.targets) == 1:
        return [folder / f"{job.name}.png"]
    return [folder / f"{job.name}-{i}.png" for i in range(1, len(job.targets) + 1)]


def panel_path(folder: Path, job: Job) -> Path:
    """The picture of source and results side by side."""
    return folder / f"{job.name}-side-by-side.png"


def loaded(load: Load, job: Job) -> tuple[Job, np.ndarray | UserError]:
    """A job with its image, or with what is wrong with that."""
    try:
        return job, load(job.image)
    except UserError as error:
        return job, error


def ahead(function: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """`function` of each item in their order, so many of them computed ahead by threads."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(READERS) as threads:
        for item in items:
            waiting.append(threads.submit(function, item))
            if len(waiting) > count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def batches(
    read: Iterable[tuple[Job, np.ndarray | UserError]],
    size: int,
    passed_over: Callable[[Job, object], None],
) -> Iterator[list[tuple[Job, np.ndarray]]]:
    """Jobs whose images have one shape and which have as many targets each, `size` at a time and
    at the end the rest."""
    waiting: dict[Any, list[tuple[Job, np.ndarray]]] = {}
    for job, pixels in read:
        if isinstance(pixels, UserError):
            passed_over(job, pixels)
            continue
        group = waiting.setdefault((pixels.shape, len(job.targets)), [])
        group.append((job, pixels))
        if len(group) == size:
            yield group.copy()
            group.clear()
    yield from (group for group in waiting.values() if group)


def edited(
    editor: Editor, batch: Sequence[tuple[Job, np.ndarray]], size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Results, uint8 (b, e, h, w, 3), and whether they are finite, bool (b, e)."""
    # Filled up to the one size for which the program is compiled.
    filled = [*batch, *itertools.repeat(batch[-1], size - len(batch))]
    edit = editor.apply(
        [pixels for _, pixels in filled],
        [job.source for job, _ in filled],
        [list(job.targets) for job, _ in filled],
        [job.seed for job, _ in filled],
    )
    return np.asarray(edit.pixels), np.asarray(edit.finite)
