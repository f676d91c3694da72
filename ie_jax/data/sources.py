"""Where pictures with captions come from: folders, the original release's layout, and TFDS."""

import os
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ie_jax.data.captions import Row, joined, read_table, text_captions
from ie_jax.errors import UserError

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".heif", ".gif"),
    *(".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
}
BESIDE = (".txt", ".caption", ".TXT", ".CAPTION")
"""Ends of the names of texts beside pictures: kohya's tools write the second, cameras the third."""
TABLES = ("metadata.jsonl", "metadata.csv")
CAPTION_FEATURES = ("captions", "caption", "text")


@dataclass(frozen=True)
class Example:
    """A picture that is not decoded yet, and what it shows."""

    name: str
    """For messages."""
    image: Path | bytes
    """The file, or what it holds."""
    captions: tuple[str, ...]
    """At least one."""


class Source(Protocol):
    """Pictures by number."""

    description: str
    """Kind and place, for messages and records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Raises UserError if this one is broken, which says nothing of the others."""
        ...


class Files:
    """Pictures in files, with the captions that a table or a text beside each gives."""

    def __init__(self, rows: Sequence[Row], description: str) -> None:
        """Rows whose files are paths."""
        self.rows, self.description = rows, description

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        row = self.rows[index]
        path = Path(row.file)
        if not row.file:
            raise UserError(f"{row.where}: names no file")
        captions = row.captions
        if captions is None:
            captions = text_captions(Path(row.where))
        if not captions:
            raise UserError(f"{row.where}: has no caption")
        return Example(row.file, path, captions)

    @property
    def files(self) -> set[str]:
        """The pictures' paths, absolute."""
        return {os.path.abspath(row.file) for row in self.rows if row.file}

    def without(self, others: "Files") -> "Files":
        """Those that the others do not hold, too."""
        taken = others.files
        kept = [row for row in self.rows if os.path.abspath(row.file) not in taken]
        return Files(kept, self.description)


def beside(picture: Path) -> Path | None:
    """The text with a picture's captions, if there is one."""
    names = (picture.with_suffix(suffix) for suffix in BESIDE)
    return next((path for path in names if path.is_file()), None)


def folder(path: Path) -> Files:
    """Pictures of a folder and all folders in it, sorted by name.

    Captions come from `metadata.jsonl` or `metadata.csv` (file names are relative to the table's
    own folder), wherever there are some, or else from a `.txt` or `.caption` beside each picture.

    Warns:
        UserWarning: pictures without a caption are left out.

    Raises:
        UserError: no folder, no pictures, no captions, or an unreadable table.
    """
    pictures, tables = walk(path)
    if tables:
        found = (placed(row, table.parent, path) for table in tables for row in read_table(table))
        rows = joined(found)  # two tables may list one picture
    elif pictures:
        rows = [Row(str(text), str(p), None) for p in pictures if (text := beside(p))]
    else:
        raise UserError(f"{path}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    if not rows:
        raise UserError(
            f"{path}: no picture has a caption: write a {TABLES[0]} with file_name and text, or a "
            f"{BESIDE[0]} or {BESIDE[1]} file beside each picture"
        )
    source = Files(rows, f"folder {path}")
    need_one_file(source)
    warn_uncaptioned(source, pictures)
    return source


def coco_csv(path: Path, split: str) -> Files:
    """The original release's layout: the pictures in `<split>/`, beside it `<split>.csv`.

    Raises:
        UserError: one of both is missing, empty or unreadable, or they have no file in common.
    """
    pictures, _ = walk(path / split)
    table = path / f"{split}.csv"
    if not table.is_file():
        raise UserError(f"{table} is missing: it should hold the captions of {path / split}")
    named = (Row(row.where, Path(row.file).name, row.captions) for row in read_table(table))
    rows = joined(placed(row, path / split, path) for row in named)
    source = Files(rows, f"coco_csv {path} {split}")
    if not rows:
        raise UserError(f"{table}: holds no captions")
    need_one_file(source)
    warn_uncaptioned(source, pictures)
    return source


def walk(path: Path) -> tuple[list[Path], list[Path]]:
    """All pictures and all metadata tables below a folder, sorted; hidden ones left out. Links to
    folders are followed, each folder once."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder")
    pictures, tables = [], []
    seen = {os.path.realpath(path)}

    def new(folder: str) -> bool:
        known = (real := os.path.realpath(folder)) in seen
        seen.add(real)
        return not known

    for parent, folders, files in os.walk(path, onerror=unreadable, followlinks=True):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if new(os.path.join(parent, name))]
        found = [Path(parent, name) for name in sorted(files) if not name.startswith(".")]
        pictures += [file for file in found if file.suffix.lower() in SUFFIXES]
        tables += [file for file in found if file.name in TABLES]
    return pictures, tables


def unreadable(error: OSError) -> None:
    """A folder that cannot be listed is an error, not an empty one."""
    raise UserError(f"{error.filename}: cannot be read: {error.strerror}") from error


def placed(row: Row, parent: Path, data: Path) -> Row:
    """The row with its file's path from the table's folder on.

    Tables from Windows have backslashes, those from a Mac may have accents as letters of their own:
    such names are taken where the file lies under them.

    Raises:
        UserError: the file would lie outside of the data folder.
    """
    if not row.file:
        return row
    slashes = row.file.replace("\\", "/")
    forms = (row.file, slashes, *(unicodedata.normalize(x, slashes) for x in ("NFC", "NFD")))
    paths = [os.path.normpath(parent / name) for name in dict.fromkeys(forms)]
    path = next(filter(os.path.exists, paths), paths[0])
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(data)):
        raise UserError(f"{row.where}: {row.file} lies outside of {data}")
    return Row(row.where, path, row.captions)


def need_one_file(source: Files) -> None:
    """Raise UserError if there are captions but not one of the pictures that they belong to."""
    if not any(map(os.path.exists, source.files)):
        row = source.rows[0]
        raise UserError(
            f"{source.description}: has captions but none of their {len(source)} pictures: "
            f"{row.where} asks for {row.file or 'no file'}"
        )


def warn_uncaptioned(source: Files, pictures: Sequence[Path]) -> None:
    """Say how many pictures take no part."""
    captioned = source.files
    left = [str(picture) for picture in pictures if os.path.abspath(picture) not in captioned]
    if left:
        warnings.warn(
            f"{source.description}: {len(left)} of {len(pictures)} pictures have no caption and "
            f"are left out, such as {left[0]}",
            stacklevel=4,
        )


class Tfds:
    """A prepared TensorFlow data set in array_record files, read without TensorFlow."""

    def __init__(self, path: Path, split: str) -> None:
        """Open a split.

        Args:
            path: the folder of a version (it holds dataset_info.json), or the data folder in which
                coco_captions/2014 was prepared.
            split: as TFDS names them: train, val, or a part such as train[:1000].

        Raises:
            UserError: nothing prepared there, no such split, no pictures with captions, other
                files than array_record, or TFDS is not installed.
        """
        try:
            import tensorflow_datasets as tfds  # optional
        except ImportError as error:
            raise UserError(
                "source tfds needs packages that are not installed: pip install 'ie_jax[tfds]'"
            ) from error
        version = version_folder(path)
        self.description = f"tfds {version} {split}"
        try:
            builder = tfds.builder_from_directory(version)
            features = sorted(builder.info.features)
            decoders = {"image": tfds.decode.SkipDecoding()} if "image" in features else None
            self.records = builder.as_data_source(split, decoders=decoders)
        except Exception as error:  # of many types, some of them assertions
            raise UserError(f"{version}: cannot read split {split!r}: {error}") from error
        self.split = split
        self.feature = next((name for name in CAPTION_FEATURES if name in features), "")
        if "image" not in features or not self.feature:
            raise UserError(
                f"{version}: has the features {', '.join(features)}: image and captions (or "
                "caption, text) are needed"
            )

    @property
    def base_splits(self) -> set[str]:
        """The whole splits of which this is a part: train of train[:1000]."""
        return {part.partition("[")[0].strip() for part in self.split.split("+")}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        name = f"{self.split} image {index}"
        try:
            record = self.records[index]
        except Exception as error:  # on damaged files the reader raises nearly anything
            raise UserError(f"{name}: cannot be read: {error}") from error
        if "image/filename" in record:
            name = text(record["image/filename"], name)
        captions = tuple(text(c, name).strip() for c in caption_list(record[self.feature]))
        if not any(captions):
            raise UserError(f"{name}: has no caption")
        return Example(name, record["image"], tuple(filter(None, captions)))


def version_folder(path: Path) -> Path:
    """The folder of a prepared data set's (newest) version."""
    if (path / "dataset_info.json").is_file():
        return path
    found = [info.parent for info in path.glob("coco_captions/2014/*/dataset_info.json")]
    if not found:
        raise UserError(
            f"{path}: holds no prepared data set: name the folder with its dataset_info.json, or "
            "the one with coco_captions/2014"
        )
    return max(found, key=lambda version: tuple(map(number, version.name.split("."))))


def number(digits: str) -> int:
    """A part of a version; -1 for what is no number."""
    return int(digits) if digits.isdecimal() else -1


def caption_list(value: Any) -> Sequence[Any]:
    """The captions of a record: one text, a sequence, or a sequence of {text, ...}."""
    if isinstance(value, dict):
        value = value["text"]
    return [value] if isinstance(value, bytes | str) else value


def text(value: Any, name: str) -> str:
    """UTF-8 bytes as text."""
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: its text is not UTF-8") from error
