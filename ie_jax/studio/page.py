"""What is seen of the studio, and what each control does."""

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from ie_jax.editing.command import versions
from ie_jax.editing.images import encoded, numbered
from ie_jax.errors import UserError
from ie_jax.studio.samples import Sample
from ie_jax.studio.words import MASK, command_line, differing, output_name
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
from ie_jax.weights.facts import WORLD

SHOWN = 512
"""Pictures are shown with at least so many pixels a side."""
KEPT = 20
"""Edits that a visit remembers."""
AGE = 3600
"""Seconds after which a visitor's files are deleted."""
WHERE = {"everywhere": EVERYWHERE, "where the edit is found": FOUND, "where I paint": PAINTED}
PROGRESS = gr.Progress()
STYLE = """
del { opacity: .5 } mark { background: #fde68a; color: #111; padding: 0 .2em; border-radius: .2em }
#photo img { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated }
footer { display: none !important }
"""


@dataclass(frozen=True)
class Entry:
    """An edit that was made."""

    photo: Photo
    settings: Settings
    result: Result


@dataclass
class Visit:
    """What one person did. Nobody else sees it."""

    photo: Photo | None = None
    history: list[Entry] = field(default_factory=list)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(dir=cache())))
    """Of the files to download."""


class PhotoFile(gr.Image):
    """A photo as the file that it is: it is read as the command reads it."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """The file's path."""
        return None if payload is None else payload.path


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


def numbers(written: str) -> tuple[float, ...]:
    """Numbers as a person writes them, with commas, slashes or spaces between them.

    Raises:
        UserError: they are none.
    """
    try:
        return tuple(map(float, re.split(r"[\s,/]+", written.strip())))
    except ValueError:
        raise UserError(f"guidance must be numbers, one for each step, not {written!r}") from None


def text(values: Sequence[float]) -> str:
    """Numbers as `numbers` reads them."""
    return ", ".join(f"{x:g}" for x in values)


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


class Page:
    """Handlers of the page's events, for one studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    @in_words
    def invert(
        self, visit: Visit | None, path: str, source: str, seed: int, progress: Any = PROGRESS
    ) -> Any:
        """The photo to noise, once. Returns the visit, the canvas to paint on, and a line."""
        visit = visit or Visit()
        photo = self.photo(visit, path, source, seed, progress)
        return visit, enlarged(photo.pixels), "inverted: now say what the result should show"

    def photo(self, visit: Visit, path: str, source: str, seed: int, progress: Any) -> Photo:
        """The visit's photo, inverted if it is new."""
        if not path:
            raise UserError("there is no photo: upload or paste one, or pick a sample")
        if not source.strip():
            raise UserError("say in words what the photo shows")
        known = visit.photo
        if known is None or (known.path, known.source, known.seed) != (Path(path), source, seed):
            TELL.set(lambda line: progress(0, desc=line))
            visit.photo = self.studio.invert(Path(path), source, int(seed))
        assert visit.photo is not None
        return visit.photo

    @in_words
    def edit(
        self,
        visit: Visit | None,
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
        progress: Any = PROGRESS,
    ) -> Any:
        """All targets under the settings of the controls; see `shown` for what is returned."""
        visit = visit or Visit()
        lines = tuple(line.strip() for line in targets.splitlines() if line.strip())
        if not lines:
            raise UserError("say in words what the result should show")
        photo = self.photo(visit, path, source, seed, progress)
        settings = Settings(
            *(lines, strength, numbers(guidance), layout, details, bound, WHERE[where]),
            painted(canvas, photo.pixels.shape[:2]) if WHERE[where] == PAINTED else None,
        )
        TELL.set(lambda line: progress(0, desc=line))
        visit.history.append(Entry(photo, settings, self.studio.edit(photo, settings)))
        del visit.history[:-KEPT]
        return self.shown(visit)

    @in_words
    def undo(self, visit: Visit | None) -> Any:
        """The edit before the last one, and its controls."""
        if visit is None or len(visit.history) < 2:
            raise UserError("there is no edit to go back to")
        visit.history.pop()
        last = visit.history[-1].settings
        names = {value: name for name, value in WHERE.items()}
        return (
            *self.shown(visit),
            "\n".join(last.targets),
            last.strength,
            names[last.where],
            *(last.layout, last.details, last.bound, text(last.guidance)),
        )

    def shown(self, visit: Visit) -> Any:
        """Visit, line, differing words, before and after, all results, mask, files, command,
        history."""
        entry = visit.history[-1]
        photo, settings, result = entry.photo, entry.settings, entry.result
        images = [enlarged(image) for image in result.images]
        titled = list(zip(images, settings.targets, strict=True))
        masks = [np.where(mask, 255, 0).astype(np.uint8) for mask in result.masks]
        calls = self.studio.plain.schedule.steps * (3 if settings.guided else 1)
        return (
            visit,
            f"{calls} network calls a result, {result.seconds:.2f} s",
            "<br>".join(differing(photo.source, target) for target in settings.targets),
            (enlarged(photo.pixels), images[0]),
            gr.Gallery(titled, visible=len(titled) > 1),
            gr.Image(enlarged(masks[0]) if masks else None, visible=settings.where != EVERYWHERE),
            self.files(visit, entry),
            command_line(self.studio, photo, settings),
            [(enlarged(x.result.images[0]), x.settings.targets[0]) for x in visit.history[::-1]],
        )

    def files(self, visit: Visit, entry: Entry) -> list[str]:
        """Pictures, mask and settings, written for download."""
        result = entry.result
        name = Path(output_name(entry.photo.path))
        paths = [str(path) for path in numbered(name, len(result.images))]
        files = dict(zip(paths, result.images, strict=True))
        if result.masks:
            white = np.where(result.masks[0], 255, 0).astype(np.uint8)
            files[MASK] = np.repeat(white[..., None], 3, axis=2)
        contents = {x: encoded(image, x) for x, image in files.items()}
        facts = {
            "model": self.studio.config.model,
            "photo": entry.photo.path.name,
            "source": entry.photo.source,
            "seed": entry.photo.seed,
            **{name: value for name, value in asdict(entry.settings).items() if name != "painted"},
            "command": command_line(self.studio, entry.photo, entry.settings),
            "versions": versions(),
        }
        contents[str(name.with_suffix(".json"))] = json.dumps(facts, indent=2).encode()
        for path, content in contents.items():
            (visit.folder / path).write_bytes(content)
        return [str(visit.folder / path) for path in contents]


def build(studio: Studio, samples: Sequence[Sample]) -> gr.Blocks:
    """The page.

    Args:
        samples: photos to pick from.
    """
    page = Page(studio)
    with gr.Blocks(
        title="Inverse-and-Edit", analytics_enabled=False, delete_cache=(AGE // 6, AGE)
    ) as blocks:
        visit = gr.State(None, time_to_live=AGE)
        gr.Markdown(f"# Inverse-and-Edit\n{introduction(studio)}")
        with gr.Row():
            with gr.Column():
                photo, source, targets, words, invert, edit = photo_and_prompts(samples)
            with gr.Column():
                compare = gr.ImageSlider(
                    label="Before and after",
                    interactive=False,
                    format="png",
                    elem_id="compare",
                )
                line = gr.Markdown(elem_id="line")
                strength = gr.Slider(0, 1, 1, step=0.05, label="Strength", elem_id="strength")
                where, canvas, mask = place_to_change()
                layout, details, bound, guidance, seed = finer(studio)
        several = gr.Gallery(
            label="All results", visible=False, interactive=False, elem_id="several"
        )
        undo = gr.Button("Undo", elem_id="undo")
        history = gr.Gallery(label="History", interactive=False, height=180, elem_id="history")
        files = gr.File(label="Download", interactive=False, elem_id="files")
        command = gr.Textbox(
            label="The command that makes the same",
            interactive=False,
            buttons=["copy"],
            elem_id="command",
        )

        begin = [visit, photo, source, seed]
        controls = [targets, strength, where, layout, details, bound, guidance]
        given = [*begin, *controls[:3], canvas, *controls[3:]]
        results = [visit, line, words, compare, several, mask, files, command, history]
        # One at a time, in order, whoever asks.
        queued: Any = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress_on": compare,
        }
        moved = [
            *(slider.release for slider in (strength, layout, details, bound)),
            *(guidance.submit, seed.submit, canvas.apply),
        ]
        invert.click(page.invert, begin, [visit, canvas, line], **queued)
        edit.click(page.edit, given, results, **queued)
        gr.on(moved, page.edit, given, results, trigger_mode="always_last", **queued)
        undo.click(page.undo, visit, [*results, *controls], **queued)
        where.change(lambda name: gr.ImageEditor(visible=WHERE[name] == PAINTED), where, canvas)
    return blocks


def photo_and_prompts(samples: Sequence[Sample]) -> tuple[Any, ...]:
    """What is edited, and into what."""
    photo = PhotoFile(
        label="Photo", sources=["upload", "clipboard"], image_mode=None, height=300, elem_id="photo"
    )
    source = gr.Textbox(label="What the photo shows", elem_id="source")
    invert = gr.Button("Invert", elem_id="invert")
    targets = gr.Textbox(
        label="What the result should show", info="a line for each result", elem_id="targets"
    )
    words = gr.HTML(elem_id="words")
    edit = gr.Button("Edit", variant="primary", elem_id="edit")
    gr.Examples(
        [[x.path, x.source, x.target] for x in samples],
        [photo, source, targets],
        label="Samples",
        elem_id="samples",
    )
    return photo, source, targets, words, invert, edit


def place_to_change() -> tuple[Any, ...]:
    """Where the photo may change."""
    where = gr.Radio(list(WHERE), value=next(iter(WHERE)), label="It may change", elem_id="where")
    canvas = gr.ImageEditor(
        label="Paint over what may change",
        type="pil",
        sources=[],
        transforms=[],
        layers=False,
        brush=gr.Brush(default_size=40, colors=["#ffffff"], color_mode="fixed"),
        visible=False,
        elem_id="canvas",
    )
    mask = gr.Image(label="The mask", visible=False, interactive=False, elem_id="mask")
    return where, canvas, mask


def finer(studio: Studio) -> tuple[Any, ...]:
    """What holds the edit to the photo, how strongly the prompt pulls, and the seed."""
    with gr.Accordion("Hold it to the photo; guidance; seed", open=False, elem_id="finer"):
        layout = gr.Slider(0, 2, 0, step=0.1, label="Hold the layout", elem_id="layout")
        details = gr.Slider(0, 2, 0, step=0.1, label="Hold the details", elem_id="details")
        bound = gr.Slider(0, 2, studio.bound, step=0.05, label="Largest pull of both")
        guidance = gr.Textbox(text(studio.guidance), label="Guidance w of each step")
        seed = gr.Number(0, label="Seed of the inversion", precision=0, minimum=0)
    return layout, details, bound, guidance, seed


def introduction(studio: Studio) -> str:
    """What a person should know first."""
    told = "The photo is inverted once; each edit after that is quick."
    if studio.facts.data == WORLD:
        told += " **This small model knows drawn scenes only, not photos: pick a sample.**"
    return told
