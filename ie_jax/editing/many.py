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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from ie_jax.cli import print_line
from ie_jax.data.masks import AUTO
from ie_jax.data.panels import side_by_side
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import encoded, found_masks, mask_path, numbered
from ie_jax.editing.jobs import Job, titles
from ie_jax.errors import UserError
from ie_jax.methods.inverse_and_edit import Edit
from ie_jax.products import check_free, is_finished, leave

READERS = 4
"""Threads that read images while the devices compute."""
Load = Callable[[str], np.ndarray]
"""Reads a picture by its path for the networks: uint8 (h, w, 3)."""
Loaded = tuple[Job, np.ndarray, Any]
"""A job, its image, and its mask as `Editor.edit` takes it."""
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
    several targets or strengths) and NAME.json of each, and NAME-mask.png where it was found.

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
    strengths = editor.config.strength
    todo = unfinished(jobs, folder, config, strengths, panels, overwrite)
    before = len(jobs) - len(todo)
    tally = Tally(finished_before=before)
    bar = tqdm(total=len(jobs), initial=before, desc=name, unit="image", disable=quiet)

    def passed_over(job: Job, reason: object) -> None:
        tally.broken.append(job.name)
        bar.clear()
        print_line("passed over", f"{job.name}: {reason}", sys.stderr)
        bar.update()

    with bar:
        read = ahead(partial(loaded, editor, load or editor.load), todo, READERS + batch_size)
        groups = batches(read, batch_size, passed_over)
        for batch, edit, taken in edited(editor, groups, batch_size):
            for i, (job, pixels, _) in enumerate(batch):
                if not np.asarray(edit.finite[i]).all():
                    passed_over(job, NOT_FINITE)
                    continue
                contents = pictures_of(folder, job, pixels, edit, i, strengths, panels)
                leave(contents, record_of(folder, job), {**told(job, config), **notes, **taken})
                tally.done += 1
                bar.update()
    return tally


def unfinished(
    jobs: Sequence[Job],
    folder: Path,
    config: Mapping[str, Any],
    strengths: Sequence[float],
    panels: bool,
    overwrite: bool,
) -> list[Job]:
    """The jobs that are still to be done.

    Raises:
        UserError: a result would replace a person's file.
    """
    todo = [job for job in jobs if not is_finished(record_of(folder, job), told(job, config))]
    for job in todo:
        results = output_paths(folder, job, len(strengths))
        masks = [mask_path(path) for path in results] if job.mask == AUTO else []
        paths = [*results, *masks, *([panel_path(folder, job)] if panels else [])]
        check_free(paths, record_of(folder, job), [Path(job.image)], overwrite)
    return todo


def pictures_of(
    folder: Path,
    job: Job,
    pixels: np.ndarray,
    edit: Edit,
    number: int,
    strengths: Sequence[float],
    panels: bool,
) -> dict[Path, bytes]:
    """All picture files that are written of a job whose image has this number in a batch."""
    paths = output_paths(folder, job, len(strengths))
    results = list(np.asarray(edit.pixels[number]))
    files = dict(zip(paths, results, strict=True))
    if job.mask == AUTO and edit.mask is not None:
        files |= found_masks(paths, np.asarray(edit.mask[number]))
    if panels:
        named = zip(titles(job.targets, strengths), results, strict=True)
        files[panel_path(folder, job)] = side_by_side([("source", pixels), *named])
    return {path: encoded(image, path) for path, image in files.items()}


def told(job: Job, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the record of a job says: by it a later run knows that it is finished."""
    return {"edit": job.facts(), "config": config}


def record_of(folder: Path, job: Job) -> Path:
    """The record of a job."""
    return folder / f"{job.name}.json"


def output_paths(folder: Path, job: Job, strengths: int = 1) -> list[Path]:
    """One picture, or numbered pictures, one for each target at each strength."""
    return numbered(folder / f"{job.name}.png", len(job.targets) * strengths)


def panel_path(folder: Path, job: Job) -> Path:
    """The picture of source and results side by side."""
    return folder / f"{job.name}-side-by-side.png"


def loaded(editor: Editor, load: Load, job: Job) -> Loaded | tuple[Job, UserError, None]:
    """A job with its image and mask, or with what is wrong with them."""
    try:
        pixels = load(job.image)
        return job, pixels, editor.load_mask(job.mask, job.image, pixels)
    except UserError as error:
        return job, error, None


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
    read: Iterable[Loaded | tuple[Job, UserError, None]],
    size: int,
    passed_over: Callable[[Job, object], None],
) -> Iterator[list[Loaded]]:
    """Jobs whose images have one shape, with as many targets each, all with a mask or all without,
    `size` at a time and at the end the rest."""
    waiting: dict[Any, list[Loaded]] = {}
    for job, pixels, mask in read:
        if isinstance(pixels, UserError):
            passed_over(job, pixels)
            continue
        group = waiting.setdefault((pixels.shape, len(job.targets), mask is None), [])
        group.append((job, pixels, mask))
        if len(group) == size:
            yield group.copy()
            group.clear()
    yield from (group for group in waiting.values() if group)


def edited(
    editor: Editor, groups: Iterable[list[Loaded]], size: int
) -> Iterator[tuple[list[Loaded], Edit, dict[str, float]]]:
    """Batches of at most `size`, their edits, and what an image of them took."""
    taken: dict[str, float] = {"network_calls": editor.network_calls}
    for number, batch in enumerate(groups):
        start = time.perf_counter()
        # Filled up to the one size for which the program is compiled.
        filled = [*batch, *itertools.repeat(batch[-1], size - len(batch))]
        edit = editor.apply(
            [pixels for _, pixels, _ in filled],
            [job.source for job, *_ in filled],
            [list(job.targets) for job, *_ in filled],
            [job.seed for job, *_ in filled],
            [mask for *_, mask in filled],
        )
        if number:
            taken["seconds"] = round((time.perf_counter() - start) / len(batch), 4)
        yield batch, edit, taken
