"""The command: edit a photo by text."""

import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from ie_jax import __version__
from ie_jax.cli import run
from ie_jax.config import parse, plain
from ie_jax.data.images import load_image, preprocess, read_rgb
from ie_jax.data.masks import AUTO
from ie_jax.data.panels import side_by_side
from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import draw_edit
from ie_jax.data.world.scenes import draw_scene
from ie_jax.devices import Processes, batch_size, join, local_mesh, part
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor, EditResult, check_config
from ie_jax.editing.images import (
    check_place,
    check_writable,
    encoded,
    found_masks,
    mask_path,
    numbered,
    write_errors,
)
from ie_jax.editing.jobs import jobs_of_folder, jobs_of_list, titles
from ie_jax.editing.many import edit_many
from ie_jax.errors import UserError
from ie_jax.methods.inverse_and_edit import Inversion
from ie_jax.products import check_free, leave
from ie_jax.progress import Stages
from ie_jax.weights.facts import WORLD, Facts
from ie_jax.weights.load import RANDOM, facts_before_loading, is_fetched
from ie_jax.weights.published import PUBLISHED

DESCRIPTION = """Edit a photo by text: invert it to noise under the prompt that describes it, then
generate from that noise under the prompt that describes the result. With a folder of pictures, or
--list, many: in batches over all devices, and a run that was interrupted goes on when it is started
again. Without --image, a scene of the embedded world is drawn, edited and shown side by side."""
DEMO = (2026, 0)
"""Seed and number of that scene."""
ONE, MANY = "edit.png", "edits"
"""Where results go unless --output says."""


@dataclass(frozen=True)
class EditRequest(Processes):
    """What to edit, and where the result goes."""

    image: str | None = None
    """The photo, or a folder of pictures. None: a drawn scene."""
    source: str | None = None
    """What the photo shows. For a folder, what all pictures show; None: the text beside each."""
    target: tuple[str, ...] = ()
    """What the result should show; several make several results, numbered."""
    mask: str | None = None
    """Where the photo may change: a picture of its shape, white there and black elsewhere; or auto:
    where the edit is found to change something, written as NAME-mask.png. None: everywhere."""
    list: str | None = None
    """A .jsonl file with an edit per line: image, source, target (one or a list), and where wanted
    seed, mask and name."""
    output: str | None = None
    """Where the result goes; settings and timings go to a .json beside it. None: edit.png. For a
    folder or a list, the folder of the results; None: edits."""
    reconstruct: bool = False
    """Only invert and reconstruct: no target prompt."""
    overwrite: bool = False
    """Replace files of the output's names, whoever wrote them."""
    side_by_side: bool = False
    """Also write one picture of source, reconstruction and edits: NAME-side-by-side."""
    batch_size: int | None = None
    """Of a folder or a list: images at once, a multiple of the devices. None: one for each."""
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
    if request.list is not None or (request.image and Path(request.image).is_dir()):
        edit_all(request, config, given)
    else:
        edit_one(request, config, given)


def edit_one(request: EditRequest, config: EditConfig, given: Sequence[str]) -> None:
    """One photo, or the drawn scene.

    Raises:
        UserError: see `edit`.
    """
    photo = request.image or ""
    demo = not photo
    if demo and (request.source or request.target or request.reconstruct):
        raise UserError("--image is missing: name the photo to edit")
    example = draw_edit(draw_scene(*DEMO), "change_color", *DEMO)
    told = caption(example.source), (caption(example.target),)
    source, targets = told if demo else prompts(request)
    check_ours(request, config)
    if request.reconstruct and request.mask:
        raise UserError("--reconstruct takes no --mask: it changes nothing")
    named = titles(targets, config.strength)
    outputs = outputs_of(request, config, len(named), demo)
    facts = check_model(config)
    if not demo:
        load_image(photo, 64)  # a broken photo is found before gigabytes are read
        advise(facts, config, given)
    given_files = [Path(x) for x in (photo, request.mask) if x and x != AUTO]
    for path in given_files[1:]:
        read_rgb(path, str(path))  # and so is a broken mask
    check_free(outputs.pictures, outputs.record, given_files, request.overwrite)

    stages = Stages(request.quiet)
    editor = Editor.from_pretrained(
        config=config, offline=request.offline, progress=not request.quiet, announce=stages
    )
    pixels = preprocess(render(example.source), editor.size) if demo else editor.load(photo)
    mask = editor.load_mask(request.mask, request.image, pixels)
    inversion: Inversion | None = None
    result: EditResult | None = None
    if config.method != "ours":
        result = editor.result(editor.apply(pixels, source, targets))
    else:
        inversion = editor.invert(pixels, source)
        if targets:
            result = editor.edit_each(inversion, targets, mask=mask)
    edits = [] if result is None else list(result.images[0])
    panels = [("source", pixels)]
    if inversion is not None and (outputs.panel or result is None):
        panels.append(("reconstruction", editor.reconstruct(inversion)[0]))
    panels += list(zip(named, edits, strict=True))

    images = dict(zip(outputs.results, edits or [panels[-1][1]], strict=False))
    if outputs.masks and result is not None and result.masks is not None:
        images |= found_masks(outputs.results, result.masks[0])
    if outputs.panel:
        images[outputs.panel] = side_by_side(panels)
    with stages("write"):
        contents = {path: encoded(image, path) for path, image in images.items()}
    facts_of_run = settings(request, config, stages, result, given)
    leave(contents, outputs.record, {**facts_of_run, "network_calls": editor.network_calls})
    if config.model == RANDOM:
        print(f"model {RANDOM!r}: small and UNTRAINED, so the result is noise; see --model")
    print("wrote", *outputs.pictures, outputs.record)


@dataclass(frozen=True)
class Outputs:
    """The files of one photo's edits."""

    results: list[Path]
    masks: list[Path]
    """Of those that are found."""
    panel: Path | None
    """All side by side."""
    record: Path

    @property
    def pictures(self) -> list[Path]:
        """All but the record."""
        return [*self.results, *self.masks, *([self.panel] if self.panel else [])]


def outputs_of(request: EditRequest, config: EditConfig, count: int, demo: bool) -> Outputs:
    """Where so many results go.

    Raises:
        UserError: a file cannot be written there.
    """
    output = Path(ONE if request.output is None else request.output)
    if not output.name:
        raise UserError("--output is empty: name a picture, such as edit.png")
    results = [] if demo else numbered(output, count)
    masks = [mask_path(path) for path in results] if request.mask == AUTO else []
    wanted = demo or request.side_by_side or len(config.strength) > 1
    panel = output if demo else output.with_stem(f"{output.stem}-side-by-side")
    outputs = Outputs(results, masks, panel if wanted else None, output.with_suffix(".json"))
    for path in outputs.pictures:
        check_writable(path)
    check_place(outputs.record)
    return outputs


def edit_all(request: EditRequest, config: EditConfig, given: Sequence[str]) -> None:
    """A folder or a list, shared among the processes if there are several.

    Raises:
        UserError: see `edit`; or no image could be edited.
    """
    if request.reconstruct:
        raise UserError("--reconstruct takes one image")
    check_ours(request, config)
    if request.list is not None:
        if request.image or request.source or request.target:
            raise UserError("--list names images and prompts: give no --image, --source, --target")
        jobs = jobs_of_list(Path(request.list).expanduser(), config.seed, request.mask)
    else:
        if not request.target or not all(target.strip() for target in request.target):
            raise UserError("--target is missing: say what the results should show")
        folder = Path(request.image or "")
        if request.mask not in (None, AUTO):
            raise UserError("--mask FILE is for one photo: for a folder take auto, or --list")
        jobs = jobs_of_folder(folder, request.source, request.target, config.seed, request.mask)
    output = Path(MANY if request.output is None else request.output)
    join(request)
    facts = check_model(config)
    mesh = local_mesh()
    size = batch_size(mesh, request.batch_size)
    main = jax.process_index() == 0
    if main:
        advise(facts, config, given)
    with write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    own = jobs[jax.process_index() :: jax.process_count()]
    quiet = request.quiet or not main
    editor = Editor.from_pretrained(
        config=config,
        offline=request.offline,
        progress=not quiet,
        announce=Stages(quiet).before_the_bar,
        mesh=mesh,
    )
    tally = edit_many(
        editor,
        own,
        output,
        size,
        plain(config),
        {"versions": versions()},
        overwrite=request.overwrite,
        panels=request.side_by_side,
        quiet=quiet,
    )
    part()
    if tally.broken and not tally.done + tally.finished_before:
        raise UserError(f"none of {len(own)} images could be edited: see above")
    counts = {
        "edited": tally.done,
        "finished before": tally.finished_before,
        "passed over": len(tally.broken),
    }
    print(f"{output}:", ", ".join(f"{count} {what}" for what, count in counts.items() if count))


def check_ours(request: EditRequest, config: EditConfig) -> None:
    """Raise UserError if another method is asked for what only ours can do."""
    wanted = {
        "--reconstruct": request.reconstruct,
        "--mask": request.mask is not None,
        "--strength": config.strength != EditConfig().strength,
    }
    for name, asked in wanted.items():
        if asked and config.method != "ours":
            raise UserError(f"{name} is of our method, not of {config.method}")


def check_model(config: EditConfig) -> Facts:
    """What the model was trained for, from what is on this machine.

    Raises:
        UserError: the config does not fit it.
    """
    facts = facts_before_loading(config.model, config.forward, config.backward)
    check_config(config, facts)
    return facts


def advise(facts: Facts, config: EditConfig, given: Sequence[str]) -> None:
    """Print the `advice`."""
    for line in advice(facts, "model" in given or config.model != EditConfig().model):
        print(line, file=sys.stderr, flush=True)


def advice(facts: Facts, chosen: bool) -> list[str]:
    """What a person with a photo should know of a model that never saw one.

    Args:
        chosen: the person named the model.
    """
    if facts.data != WORLD:
        return []
    lines = [
        "note: this model knows drawn scenes of 64 pixels, not photos; for photos take "
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


def settings(
    request: EditRequest,
    config: EditConfig,
    stages: Stages,
    result: EditResult | None,
    given: Sequence[str],
) -> dict[str, Any]:
    """Everything that is needed to repeat the run, and how it went."""
    device = jax.devices()[0]
    diagnostics = {} if result is None else result.diagnostics
    return {
        "request": asdict(request),
        "given": list(given),
        "config": asdict(config),
        "diagnostics": {name: x.tolist() for name, x in diagnostics.items()},
        "seconds": {name: round(value, 3) for name, value in stages.seconds.items()},
        "versions": versions(),
        "device": {"platform": device.platform, "kind": device.device_kind},
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    libraries = {name: version(name) for name in ("jax", "jaxlib", "flax")}
    return {"ie_jax": __version__, **libraries, "python": platform.python_version()}


def main() -> None:
    """The console command."""
    run(edit)
