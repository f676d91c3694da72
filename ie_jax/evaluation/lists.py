"""One's own images: the lines of `edit.py --list`, with a mask and a truth where they are known."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base

from ie_jax.config import build
from ie_jax.data.captions import read_objects
from ie_jax.editing import jobs
from ie_jax.errors import UserError
from ie_jax.evaluation.runner import Case


@dataclass(frozen=True)
class Line(jobs.Line):
    """A line of a list, as its writer gives it."""

    kind: str = ""
    """Of the edit, for tables by kind."""
    mask: str | None = None
    """A picture of the image's size, white where it is to be edited. It is for the metrics: no
    method is told of it."""
    truth: str | None = None
    """A picture of the image's size: what the result should be."""


def read_cases(path: Path, seed: int) -> list[Case]:
    """The edits of a `.jsonl` file, an object a line, see `Line`; an edit for each target.

    Raises:
        UserError: it cannot be read, a line is not such an object, a picture is missing, or a mask
            or truth has another size than its image.
    """
    found = [
        case
        for number, where, values in read_objects(path, "image, source and target")
        for case in cases_of(build(Line, values, where), where, number, path.parent, seed)
    ]
    if not found:
        raise UserError(f"{path}: holds no edits")
    jobs.refuse_twice([case.job for case in found], path)
    return found


def cases_of(line: Line, where: str, number: int, folder: Path, seed: int) -> Iterator[Case]:
    """The edits of a line."""
    job = jobs.job_of(replace(line, mask=None), where, number, folder, seed, None)
    known = {name: getattr(line, name) for name in ("mask", "truth")}
    paths = {name: folder / Path(x).expanduser() for name, x in known.items() if x is not None}
    if paths and len(job.targets) > 1:
        raise UserError(f"{where}: a line with mask or truth takes one target")
    check_pictures({"image": Path(job.image), **paths}, where)
    texts = {name: str(path) for name, path in paths.items()}
    for i, target in enumerate(job.targets, 1):
        name = job.name if len(job.targets) == 1 else f"{job.name}-{i}"
        yield Case(replace(job, name=name, targets=(target,)), line.kind, **texts)


def check_pictures(paths: dict[str, Path], where: str) -> None:
    """Raise UserError if a picture is missing, or the sizes of those that can be read differ."""
    for what, path in paths.items():
        if not path.is_file():
            raise UserError(f"{where}: there is no {what} {path}")
    sizes = {what: size for what, path in paths.items() if (size := size_of(path))}
    for what, size in sizes.items():
        if size != sizes.get("image", size):
            image = "x".join(map(str, sizes["image"]))
            raise UserError(
                f"{where}: the {what} has {'x'.join(map(str, size))} pixels, the image {image}"
            )


def size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a picture, upright; only its head is read. None if it cannot be."""
    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(Base.Orientation, 1) >= 5
            width, height = picture.size
            return (height, width) if turned else (width, height)
    except Exception:  # what is wrong is told where the picture itself is read
        return None
