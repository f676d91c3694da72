"""What is to be edited when it is more than one image: a folder of pictures, or a list."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ie_jax.config import build, plain
from ie_jax.data.captions import read_objects, text_captions
from ie_jax.data.masks import AUTO
from ie_jax.data.sources import SUFFIXES, beside
from ie_jax.errors import UserError


@dataclass(frozen=True)
class Job:
    """The edits of one image."""

    name: str
    """Of its files in the output folder, without an end; unique in a run."""
    image: str
    source: str
    """What it shows."""
    targets: tuple[str, ...]
    """What each result should show."""
    seed: int
    mask: str | None = None
    """Where it may change: a file, or "auto"; None: everywhere."""

    def facts(self) -> dict[str, Any]:
        """As JSON has it."""
        return plain(self)


@dataclass(frozen=True)
class Line:
    """A line of a list, as its writer gives it."""

    image: str
    """The file; relative to the list's folder."""
    source: str
    target: str | tuple[str, ...]
    """One, or several: several results."""
    seed: int | None = None
    """None: the command's."""
    mask: str | None = None
    """A file, relative to the list's folder, or "auto". None: the command's."""
    name: str | None = None
    """Of the results, without an end. None: the line's number and the image's name."""


def titles(targets: Sequence[str], strengths: Sequence[float]) -> list[str]:
    """What tells the results of an image apart: each target at each strength."""
    if len(strengths) == 1:
        return list(targets)
    return [f"{target} ({strength:g})" for target in targets for strength in strengths]


def jobs_of_folder(
    folder: Path,
    source: str | None,
    targets: Sequence[str],
    seed: int,
    mask: str | None = None,
) -> list[Job]:
    """All pictures of a folder, sorted by name.

    Args:
        source: what all of them show; None: the first line of the text beside each.

    Raises:
        UserError: there are none, or one has no text.
    """
    try:
        found = sorted(x for x in folder.iterdir() if x.suffix.lower() in SUFFIXES and x.is_file())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}") from error
    if not found:
        raise UserError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    stems = [path.stem for path in found]
    return [
        Job(
            # photo.jpg and photo.png are two.
            path.stem if stems.count(path.stem) == 1 else path.name.replace(".", "-"),
            str(path),
            source or told_beside(path),
            tuple(targets),
            seed,
            mask,
        )
        for path in found
    ]


def told_beside(picture: Path) -> str:
    """The prompt in the text beside a picture.

    Raises:
        UserError: there is none.
    """
    text = beside(picture)
    captions = text_captions(text) if text else ()
    if not captions:
        raise UserError(
            f"{picture}: nothing says what it shows: give --source for all, or write a text beside "
            f"it, {picture.stem}.txt"
        )
    return captions[0]


def jobs_of_list(path: Path, seed: int, mask: str | None = None) -> list[Job]:
    """The lines of a `.jsonl` file: {"image": ..., "source": ..., "target": ...} and, where wanted,
    "seed", "mask" and "name"; see `Line`.

    Args:
        seed, mask: of the lines that have none.

    Raises:
        UserError: it cannot be read, a line is not such an object, or two have one name.
    """
    jobs = []
    for number, where, values in read_objects(path, "image, source and target"):
        jobs.append(job_of(build(Line, values, where), where, number, path.parent, seed, mask))
    if not jobs:
        raise UserError(f"{path}: holds no edits")
    refuse_twice(jobs, path)
    return jobs


def job_of(line: Line, where: str, number: int, folder: Path, seed: int, mask: str | None) -> Job:
    """The job of a line.

    Raises:
        UserError: a prompt is empty, or the name is none of a file.
    """
    targets = (line.target,) if isinstance(line.target, str) else line.target
    if not line.source.strip() or not targets or not all(target.strip() for target in targets):
        raise UserError(f"{where}: source and target must be texts and not empty")
    stem = line.image.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
    name = f"{number:05}-{stem}" if line.name is None else line.name
    if name != Path(name).name or name.startswith("."):
        raise UserError(f"{where}: name {name!r} must be that of a file, without folders")
    image = folder / Path(line.image).expanduser()
    if line.mask is not None:
        mask = line.mask if line.mask == AUTO else str(folder / Path(line.mask).expanduser())
    seed = seed if line.seed is None else line.seed
    return Job(name, str(image), line.source, targets, seed, mask)


def refuse_twice(jobs: Iterable[Job], where: Path) -> None:
    """Raise UserError if two jobs have one name, on systems too that do not tell A from a."""
    seen: set[str] = set()
    for job in jobs:
        if job.name.lower() in seen:
            raise UserError(f"{where}: two edits have the name {job.name!r}")
        seen.add(job.name.lower())
