"""The command: edit a photo by text."""

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from ie_jax.cli import run
from ie_jax.config import parse
from ie_jax.data.images import load_image, preprocess
from ie_jax.data.world import caption, draw_edit, draw_scene, render
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor, EditResult
from ie_jax.editing.images import (
    check_place,
    check_writable,
    save_image,
    side_by_side,
    write_errors,
)
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.products import check_free, record_of
from ie_jax.progress import Stages
from ie_jax.weights.embedded import EMBEDDED
from ie_jax.weights.load import RANDOM, is_fetched
from ie_jax.weights.sources import PUBLISHED

DESCRIPTION = """Edit a photo by text: invert it to noise under the prompt that describes it, then
generate from that noise under the prompt that describes the result. Without --image, a scene of
the embedded world is drawn, edited and shown side by side."""
DEMO = (2026, 0)
"""Seed and number of that scene."""


@dataclass(frozen=True)
class EditRequest:
    """What to edit, and where the result goes."""

    image: str | None = None
    """The photo. None: a drawn scene."""
    source: str | None = None
    """What the photo shows."""
    target: tuple[str, ...] = ()
    """What the result should show; several make several results, numbered."""
    output: str = "edit.png"
    """Where the result goes; settings and timings go to a .json beside it."""
    reconstruct: bool = False
    """Only invert and reconstruct: no target prompt."""
    overwrite: bool = False
    """Replace files of the output's names, whoever wrote them."""
    side_by_side: bool = False
    """Also write one picture of source, reconstruction and edits: NAME-side-by-side."""
    offline: bool = False
    """Never use the network."""
    quiet: bool = False
    """Show no progress."""


def edit(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: bad input, before anything is written.
    """
    request, config, given = parse(argv, DESCRIPTION, EditRequest, EditConfig)
    demo = request.image is None
    if demo and (request.source or request.target or request.reconstruct):
        raise UserError("--image is missing: name the photo to edit")
    example = draw_edit(draw_scene(*DEMO), "change_color", *DEMO)
    told = caption(example.source), (caption(example.target),)
    source, targets = told if demo else prompts(request)
    output = Path(request.output)
    if not output.name:
        raise UserError("--output is empty: name a picture, such as edit.png")
    paths = output_paths(output, len(targets))
    panel = output if demo else output.with_stem(f"{output.stem}-side-by-side")
    want_panel = demo or request.side_by_side
    record = output.with_suffix(".json")
    pictures = ([] if demo else paths) + ([panel] if want_panel else [])
    for path in pictures:
        check_writable(path)
    check_place(record)
    if not demo:
        load_image(request.image, 64)  # a broken photo is found before gigabytes are read
        for line in advice(config.model, "model" in given or "config" in given):
            print(line, file=sys.stderr, flush=True)
    check_free(pictures, record, [] if demo else [Path(request.image)], request.overwrite)

    stages = Stages(request.quiet)
    editor = Editor.from_pretrained(
        config=config, offline=request.offline, progress=not request.quiet, announce=stages
    )
    pixels = preprocess(render(example.source), editor.size) if demo else editor.load(request.image)
    if targets:
        inversion, result = editor(pixels, source, targets)
    else:
        inversion, result = editor.invert(pixels, source), None
    edits = [] if result is None else list(result.images[0])
    panels = [("source", pixels)]
    if want_panel or result is None:
        panels.append(("reconstruction", editor.reconstruct(inversion)[0]))
    panels += list(zip(targets, edits, strict=True))

    results = edits or [panels[-1][1]]
    with stages("write"):
        if not demo:
            for path, image in zip(paths, results, strict=True):
                save_image(image, path)
        if want_panel:
            save_image(side_by_side(panels), panel)
        facts = record_of(pictures) | settings(request, config, stages, result, given)
        with write_errors(record), appearing_whole(record) as file:
            file.write((json.dumps(facts, indent=1) + "\n").encode())
    if config.model == RANDOM:
        print(f"model {RANDOM!r}: small and UNTRAINED, so the result is noise; see --model")
    print("wrote", *pictures, record)


def advice(model: str, chosen: bool) -> list[str]:
    """What a person with a photo should know of a model that never saw one.

    Args:
        chosen: the person named the model.
    """
    if model not in EMBEDDED:
        return []
    lines = [
        f"note: model {model!r} knows drawn scenes of 64 pixels, not photos; for photos take "
        "--model sd15, which downloads 4.5 GB once"
    ]
    here = [name for name in PUBLISHED if is_fetched(name)]
    if here and not chosen:
        lines.append(f"note: the published weights are on this machine: --model {here[0]}")
    return lines


def prompts(request: EditRequest) -> tuple[str, tuple[str, ...]]:
    """The source and the target prompts that were asked for."""
    if request.source is None:
        raise UserError("--source is missing: say what the photo shows")
    if request.reconstruct:
        if request.target:
            raise UserError("--reconstruct takes no --target")
        return request.source, ()
    if not request.target:
        raise UserError("--target is missing: say what the result should show, or --reconstruct")
    if not all(target.strip() for target in request.target):
        raise UserError("--target is empty: say what the result should show")
    return request.source, request.target


def output_paths(output: Path, targets: int) -> list[Path]:
    """One file, or one numbered file per target."""
    if targets <= 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{i + 1}") for i in range(targets)]


def settings(
    request: EditRequest,
    config: EditConfig,
    stages: Stages,
    result: EditResult | None,
    given: list[str],
) -> dict[str, Any]:
    """Everything that is needed to repeat the run, and how it went."""
    device = jax.devices()[0]
    diagnostics = {} if result is None else result.diagnostics
    return {
        "request": asdict(request),
        "given": given,
        "config": asdict(config),
        "diagnostics": {name: x.tolist() for name, x in diagnostics.items()},
        "seconds": {name: round(value, 3) for name, value in stages.seconds.items()},
        "versions": {name: version(name) for name in ("ie_jax", "jax", "jaxlib", "flax")}
        | {"python": platform.python_version()},
        "device": {"platform": device.platform, "kind": device.device_kind},
    }


def main() -> None:
    """The console command."""
    run(edit)
