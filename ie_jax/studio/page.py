"""What is seen of the studio."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ie_jax.studio.handlers import AGE, WHERE, Page, text
from ie_jax.studio.samples import Sample
from ie_jax.studio.work import FOUND, PAINTED, Studio
from ie_jax.weights.facts import WORLD

STYLE = """
del { opacity: .5 } mark { background: #fde68a; color: #111; padding: 0 .2em; border-radius: .2em }
#photo img, #compare img, .pictures img { object-fit: contain; image-rendering: pixelated }
#photo img { width: 100%; height: 100% }
#samples button, #samples img { width: 72px; height: 72px }
.pictures .grid-wrap { min-height: 0; overflow: hidden !important }
.pictures .grid-container {
    grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)) !important; padding-top: 2em }
#finer { overflow: hidden !important }
footer, #files .label-clear-button, #files [aria-label^="Remove"] { display: none !important }
/* On a phone the result comes after the button, before the finer controls. */
@media (max-width: 640px) {
    #given, #made { display: contents }
    #controls { order: 1 } #below { order: 2 }
}
"""


def build(studio: Studio, samples: Sequence[Sample]) -> gr.Blocks:
    """The page.

    Args:
        samples: photos to pick from.
    """
    page = Page(studio, samples)
    with gr.Blocks(
        title="Inverse-and-Edit", analytics_enabled=False, delete_cache=(AGE // 60, AGE)
    ) as blocks:
        gr.Markdown(f"# Inverse-and-Edit\n{introduction(studio)}")
        with gr.Row():
            with gr.Column(elem_id="given"):
                photo, examples, source, targets, words, edit, invert = photo_and_prompts(samples)
                with gr.Column(elem_id="controls"):
                    strength, where, canvas = strength_and_place(studio)
                    layout, details, bound, guidance, seed = finer(studio)
            with gr.Column(elem_id="made"):
                compare, line, several, masks = results_to_see()
                with gr.Column(visible=False, elem_id="below") as below:
                    undo, history, files, command = what_was_made()

        begin = [photo, source, seed]
        controls = [targets, strength, where, canvas, layout, details, bound, guidance]
        results = [line, compare, several, masks, below, files, command, history]
        # One at a time, in order, whoever asks.
        queued: Any = {
            "concurrency_id": "model",
            "concurrency_limit": 1,
            "show_progress_on": compare,
        }
        quick: Any = {"concurrency_limit": None, "show_progress": "hidden"}
        moved = [
            *(slider.release for slider in (strength, layout, details, bound)),
            *(guidance.submit, seed.submit, where.input, canvas.apply),
        ]
        gr.on([photo.upload, photo.clear], page.open, photo, [photo, canvas], **quick)
        examples.click(page.sample, examples, [photo, source, targets, canvas], **quick)
        gr.on([source.change, targets.change], page.words, [source, targets], words, **quick)
        invert.click(page.invert, begin, line, **queued)
        edit.click(page.edit, [*begin, *controls], results, **queued)
        gr.on(moved, page.again, [*begin, *controls], results, trigger_mode="always_last", **queued)
        undo.click(page.undo, None, [*results, *begin, *controls], **quick)
        history.select(page.recall, None, [*results, *begin, *controls], **quick)
        several.select(page.compare, None, compare, **quick)
        where.change(place, where, [canvas, masks], **quick)
        blocks.unload(page.leave)
    return blocks


def place(name: str) -> Any:
    """The canvas where it is painted on, no mask of another choice."""
    found = WHERE[name] == FOUND
    return (
        gr.ImageEditor(visible=WHERE[name] == PAINTED),
        gr.skip() if found else gr.Gallery(visible=False),
    )


def gallery(label: str, name: str, visible: bool = False) -> Any:
    """Pictures side by side."""
    return gr.Gallery(
        label=label,
        visible=visible,
        height="auto",
        allow_preview=False,
        interactive=False,
        elem_id=name,
        elem_classes="pictures",
    )


def photo_and_prompts(samples: Sequence[Sample]) -> tuple[Any, ...]:
    """What is edited, and into what."""
    photo: Any = gr.Image(
        label="Photo", sources=["upload", "clipboard"], image_mode=None, height=300, elem_id="photo"
    )
    # The file as it is, to be read as the command reads it.
    photo.preprocess = lambda payload: payload and payload.path
    examples = gr.Dataset(
        label="Or pick a sample",
        components=[gr.Image(render=False)],
        samples=[[x.path] for x in samples],
        type="index",
        elem_id="samples",
    )
    source = gr.Textbox(label="What the photo shows", lines=1, max_lines=4, elem_id="source")
    targets = gr.Textbox(
        label="What the result should show",
        info="the same sentence with the changed words; one line for each result",
        lines=2,
        elem_id="targets",
    )
    words = gr.HTML(elem_id="words", padding=False)
    with gr.Row():
        edit = gr.Button("Edit", variant="primary", scale=3, elem_id="edit")
        invert = gr.Button("Invert only", scale=1, min_width=150, elem_id="invert")
    return photo, examples, source, targets, words, edit, invert


def strength_and_place(studio: Studio) -> tuple[Any, ...]:
    """How much of an edit is made, and where."""
    strength = gr.Slider(
        *(0, 1, studio.config.strength[0]),
        step=0.05,
        label="Strength",
        info="0: the photo again; 1: all of the edit",
        elem_id="strength",
    )
    where = gr.Radio(
        list(WHERE), value=next(iter(WHERE)), label="Where the photo may change", elem_id="where"
    )
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
    return strength, where, canvas


def results_to_see() -> tuple[Any, ...]:
    """What an edit made."""
    compare = gr.ImageSlider(
        label="Before and after", interactive=False, height="min(512px, 92vw)", elem_id="compare"
    )
    line = gr.Markdown("The result appears here.", elem_id="line")
    several = gallery("All results: click on one to compare it", "several")
    masks = gallery("Found: white may change", "masks")
    return compare, line, several, masks


def finer(studio: Studio) -> tuple[Any, ...]:
    """What holds the edit to the photo, how strongly the prompt pulls, and the seed."""
    steps = studio.plain.schedule.steps
    with gr.Accordion("More: hold it to the photo, guidance, seed", open=False, elem_id="finer"):
        layout = gr.Slider(
            0, 2, 0, step=0.1, label="Hold the layout", info="0: not at all", elem_id="layout"
        )
        details = gr.Slider(
            0, 2, 0, step=0.1, label="Hold the details", info="0: not at all", elem_id="details"
        )
        bound = gr.Slider(
            *(0, 2, studio.bound),
            step=0.05,
            label="Bound of both",
            info="how strongly they may pull, beside the prompt",
            elem_id="bound",
        )
        guidance = gr.Textbox(
            text(studio.guidance),
            label="Guidance",
            info=f"how strongly the prompt pulls in each of {steps} steps; Enter to apply",
            elem_id="guidance",
        )
        seed = gr.Number(
            studio.config.seed,
            label="Seed",
            info="another number: other noise to begin with; Enter to apply",
            precision=0,
            minimum=0,
            maximum=2**32 - 1,
            elem_id="seed",
        )
    return layout, details, bound, guidance, seed


def what_was_made() -> tuple[Any, ...]:
    """The way back, and what can be taken along."""
    undo = gr.Button("Undo", elem_id="undo")
    history = gallery("History: click on one to go back to it", "history", visible=True)
    files = gr.File(label="Download", file_count="multiple", interactive=False, elem_id="files")
    command = gr.Textbox(
        label="The command that makes the same",
        info="in the folder of the photo, and of mask.png if you painted",
        interactive=False,
        max_lines=12,
        buttons=["copy"],
        elem_id="command",
    )
    return undo, history, files, command


def introduction(studio: Studio) -> str:
    """What a person should know first."""
    told = (
        "Give a photo and say what it shows; then say what the result should show, and press Edit. "
        "The photo is turned into noise once (inverted); each further edit is quick."
    )
    if studio.facts.data == WORLD:
        told += " **This small model knows drawn scenes only, not photos: pick a sample.**"
    return told
