"""What each control of the page does."""

import json
import math
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ie_jax.data.masks import mask_picture
from ie_jax.editing.command import versions
from ie_jax.editing.images import encoded, found_masks, numbered
from ie_jax.errors import UserError
from ie_jax.studio.samples import Sample
from ie_jax.studio.words import MASK, command_line, config_of, differing, output_name
from ie_jax.studio.work import (
    EVERYWHERE,
    FOUND,
    PAINTED,
    TELL,
    Photo,
    Result,
    Settings,
    Studio,
)

SHOWN = 512
"""Pictures are shown with at least so many pixels a side."""
KEPT = 20
"""Edits that a visit remembers."""
AGE = 3600
"""Seconds after which what a visitor left is deleted."""
WHERE = {"everywhere": EVERYWHERE, "where the edit is found": FOUND, "where I paint": PAINTED}
PROGRESS = gr.Progress()


@dataclass(frozen=True)
class Entry:
    """An edit that was made."""

    photo: Photo
    settings: Settings
    result: Result
    folder: Path
    """Of its files."""


@dataclass
class Visit:
    """What one person did. Nobody else sees it."""

    photo: Photo | None = None
    uploads: set[Path] = field(default_factory=set)
    history: list[Entry] = field(default_factory=list)
    used: float = 0.0
    """When it was seen last."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(dir=cache())))
    """Of all that is made for it."""

    def new_folder(self) -> Path:
        """A folder of this visit, with a name that nobody guesses."""
        return Path(tempfile.mkdtemp(dir=self.folder))


def cache() -> str:
    """The folder of everything uploaded or made; it is deleted when the server ends."""
    return gr.utils.get_upload_folder()


def in_words(function: Callable[..., Any]) -> Callable[..., Any]:
    """A handler whose errors of the user's are shown on the page."""

    @wraps(function)
    def handler(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from None

    return handler


def numbers(written: str, count: int) -> tuple[float, ...]:
    """Numbers as a person writes them, with commas, slashes or spaces between them.

    Raises:
        UserError: they are none, not finite, or not so many.
    """
    try:
        found = tuple(map(float, re.findall(r"[^\s,/]+", written)))
    except ValueError:
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise UserError(f"guidance must be {count} numbers, one for each step, not {written!r}")
    return found


def text(values: Sequence[float]) -> str:
    """Numbers as `numbers` reads them."""
    return ", ".join(str(x).removesuffix(".0") for x in values)


def enlarged(image: np.ndarray) -> np.ndarray:
    """A picture large enough to look at, in whole multiples of its pixels."""
    factor = -(-SHOWN // min(image.shape[:2]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def painted(canvas: Any, size: tuple[int, int]) -> np.ndarray | None:
    """What was painted over a photo of (h, w): bool (h, w). None: nothing was painted."""
    layers = (canvas or {}).get("layers") or []
    if not layers:
        return None
    alpha = np.max([np.asarray(layer.convert("RGBA"))[..., 3] for layer in layers], axis=0)
    shrunk = Image.fromarray(alpha).resize(size[::-1], Image.Resampling.BOX)
    return np.asarray(shrunk) >= 128


def shown(image: np.ndarray, folder: Path, name: str) -> str:
    """The file of a picture to look at, uint8 (h, w, 3 or 4)."""
    path = folder / f"{name}.png"
    Image.fromarray(enlarged(image)).save(path, compress_level=1)
    return str(path)


class Page:
    """Handlers of the page's events, for one studio."""

    def __init__(self, studio: Studio, samples: Sequence[Sample]) -> None:
        self.studio, self.samples = studio, samples
        self.visits: dict[str, Visit] = {}
        """By session."""

    # --- who is here ---

    def visit(self, request: gr.Request) -> Visit:
        """The visit whose request this is. Those that were not seen for long are forgotten."""
        if not request.session_hash:
            raise UserError("a request without a session: open the page in a browser")
        for session, visit in list(self.visits.items()):
            if time.monotonic() - visit.used > AGE:
                self.forget(session)
        visit = self.visits.setdefault(request.session_hash, Visit())
        visit.used = time.monotonic()
        return visit

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.forget(str(request.session_hash))

    def forget(self, session: str) -> None:
        """Delete all of a visit, but what another one uploaded as well."""
        visit = self.visits.pop(session, None)
        if visit is None:
            return
        shutil.rmtree(visit.folder, ignore_errors=True)
        for path in visit.uploads.difference(*(x.uploads for x in list(self.visits.values()))):
            path.unlink(missing_ok=True)

    # --- photo and prompts ---

    def open(self, path: str | None, request: gr.Request) -> Any:
        """A photo was given, or taken away. Returns it, and the canvas with it."""
        if path is None:
            return None, None
        visit = self.visit(request)
        visit.uploads.add(Path(path))
        try:
            return path, self.canvas(visit, self.studio.load(Path(path)))
        except UserError as error:
            gr.Warning(str(error), duration=None, title="This photo cannot be used")
            return None, None

    def sample(self, index: int, request: gr.Request) -> Any:
        """A sample was picked. Returns photo, source, target, canvas."""
        sample = self.samples[index]
        pixels = self.studio.load(Path(sample.path))
        return (
            *(sample.path, sample.source, sample.target),
            self.canvas(self.visit(request), pixels),
        )

    def canvas(self, visit: Visit, pixels: np.ndarray, area: np.ndarray | None = None) -> Any:
        """A photo to paint on, with what was painted: bool (h, w)."""
        folder = visit.new_folder()
        photo, layers = shown(pixels, folder, "canvas"), []
        if area is not None:
            strokes = mask_picture(area)  # white where painted, else transparent
            layers = [shown(np.dstack([strokes, strokes[..., :1]]), folder, "painted")]
        return {"background": photo, "layers": layers, "composite": None}

    def words(self, source: str, targets: str) -> str:
        """What differs between the prompts."""
        lines = [line.strip() for line in targets.splitlines() if line.strip()]
        return "<br>".join(differing(source, line) for line in lines) if source.strip() else ""

    @in_words
    def invert(
        self, path: str, source: str, seed: int, request: gr.Request, progress: Any = PROGRESS
    ) -> str:
        """The photo to noise, once."""
        self.photo(self.visit(request), path, source, seed, progress)
        return "Inverted. Now say what the result should show."

    def photo(self, visit: Visit, path: str, source: str, seed: int, progress: Any) -> Photo:
        """The visit's photo, inverted if it is new."""
        if not path:
            raise UserError("there is no photo: upload or paste one, or pick a sample")
        if not source.strip():
            raise UserError("say in words what the photo shows")
        TELL.set(lambda line: progress(None, desc=line))
        wanted, known = (Path(path), source.strip(), int(seed or 0)), visit.photo
        if known is None or (known.path, known.source, known.seed) != wanted:
            known = visit.photo = self.studio.invert(*wanted)
        return known

    # --- edits ---

    @in_words
    def edit(
        self,
        path: str,
        source: str,
        seed: int,
        targets: str,
        strength: float,
        where: str,
        canvas: Any,
        layout: float,
        details: float,
        bound: float,
        guidance: str,
        request: gr.Request,
        progress: Any = PROGRESS,
    ) -> Any:
        """All targets under the settings of the controls; see `results` for what is returned."""
        visit = self.visit(request)
        lines = tuple(line.strip() for line in targets.splitlines() if line.strip())
        w = numbers(guidance, self.studio.plain.schedule.steps)
        photo = self.photo(visit, path, source, seed, progress)
        if not lines:
            raise UserError("say in words what the result should show")
        area = painted(canvas, photo.pixels.shape[:2]) if WHERE[where] == PAINTED else None
        place = EVERYWHERE if area is not None and area.all() else WHERE[where]
        settings = Settings(lines, strength, w, layout, details, bound, place, area)
        result = self.studio.edit(photo, settings)
        if not visit.folder.exists():
            raise UserError("the page was closed")
        visit.history.append(Entry(photo, settings, result, visit.new_folder()))
        for old in visit.history[:-KEPT]:
            shutil.rmtree(old.folder, ignore_errors=True)
        del visit.history[:-KEPT]
        self.write(visit.history[-1])
        return self.results(visit)

    def again(self, request: gr.Request, progress: Any = PROGRESS, *values: Any) -> Any:
        """The edit again under controls that were moved; nothing, where one would press Edit."""
        where, canvas = values[5:7]
        to_paint = WHERE[where] == PAINTED and not (canvas or {}).get("layers")
        if not self.visit(request).history or to_paint:
            return gr.skip()
        return self.edit(*values, request, progress)

    @in_words
    def undo(self, request: gr.Request) -> Any:
        """The edit before the last one, and its controls."""
        visit = self.visit(request)
        if len(visit.history) < 2:
            raise UserError("there is no edit to go back to")
        shutil.rmtree(visit.history.pop().folder, ignore_errors=True)
        return self.restored(visit)

    def recall(self, request: gr.Request, chosen: gr.SelectData) -> Any:
        """An edit of the history, newest first, and its controls."""
        visit = self.visit(request)
        visit.history.append(visit.history.pop(-1 - int(chosen.index)))
        return self.restored(visit)

    def compare(self, request: gr.Request, chosen: gr.SelectData) -> Any:
        """One of several results beside the photo."""
        entry = self.visit(request).history[-1]
        return look(entry, "before"), look(entry, str(chosen.index))

    # --- what is shown of an edit ---

    def results(self, visit: Visit) -> Any:
        """Line, before and after, all results, found masks, all below, files, command, history."""
        entry = visit.history[-1]
        settings, count = entry.settings, len(entry.result.images)
        calls = self.studio.plain.schedule.steps * (3 if settings.guided else 1)
        named = list(enumerate(settings.targets))
        masks = [(look(entry, f"mask-{i}"), target) for i, target in named]
        found = settings.where == FOUND
        return (
            f"{calls} network calls each, {entry.result.seconds:.2f} s in all",
            (look(entry, "before"), look(entry, "0")),
            gr.Gallery([(look(entry, str(i)), x) for i, x in named], visible=count > 1),
            gr.Gallery(masks if found else None, visible=found),
            gr.Column(visible=True),
            sorted(str(path) for path in entry.folder.iterdir() if path.is_file()),
            command_line(self.studio, entry.photo, settings),
            [(look(x, "0"), x.settings.targets[0]) for x in visit.history[::-1]],
        )

    def restored(self, visit: Visit) -> Any:
        """`results` of the last edit, then all controls as they were."""
        entry = visit.history[-1]
        photo, settings = entry.photo, entry.settings
        visit.photo = photo
        names = {value: name for name, value in WHERE.items()}
        return (
            *self.results(visit),
            *(str(photo.path), photo.source, photo.seed),
            *("\n".join(settings.targets), settings.strength, names[settings.where]),
            self.canvas(visit, photo.pixels, settings.painted),
            *(settings.layout, settings.details, settings.bound, text(settings.guidance)),
        )

    def write(self, entry: Entry) -> None:
        """The files of an edit: pictures, masks and settings; and pictures to look at, below."""
        photo, settings, result = entry.photo, entry.settings, entry.result
        name = Path(output_name(photo.path))
        paths = numbered(name, len(result.images))
        files = dict(zip(paths, result.images, strict=True))
        if settings.where == FOUND:
            files |= found_masks(paths, np.stack(result.masks))
        elif settings.where == PAINTED:
            files[Path(MASK)] = mask_picture(result.masks[0])
        record = {
            "command": command_line(self.studio, photo, settings),
            "photo": photo.path.name,
            "source": photo.source,
            "targets": settings.targets,
            "config": asdict(config_of(self.studio, photo, settings)),
            "seconds": round(result.seconds, 3),
            "versions": versions(),
        }
        for path, image in files.items():
            (entry.folder / path).write_bytes(encoded(image, path))
        (entry.folder / name.with_suffix(".json")).write_text(json.dumps(record, indent=2))
        below = entry.folder / "shown"
        below.mkdir()
        shown(photo.pixels, below, "before")
        for i, image in enumerate(result.images):
            shown(image, below, str(i))
        for i, mask in enumerate(result.masks):
            shown(mask_picture(mask), below, f"mask-{i}")


def look(entry: Entry, name: str) -> str:
    """The file of a picture to look at."""
    return str(entry.folder / "shown" / f"{name}.png")
