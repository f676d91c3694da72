"""The demo: scenes of the embedded world inverted and edited, beside the exact results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.cli import run
from ie_jax.config import parse
from ie_jax.data.images import resized
from ie_jax.data.panels import side_by_side
from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import EDITS, Edit, draw_edit
from ie_jax.data.world.scenes import draw_scene
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import check_writable, encoded
from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.pixels import psnr_of, squared_error
from ie_jax.evaluation.world.config import GUIDERS, RESCALING
from ie_jax.models.execution import Execution
from ie_jax.products import check_free, leave
from ie_jax.progress import Stages

DESCRIPTION = """Invert and edit scenes of the embedded world with the model that comes along, and
show source, reconstruction, plain edit, guided edit and the exact result side by side."""
SEED = 2026
ZOOM = 4
PLACES: Mapping[str, int] = {"add_object": 2, "delete_object": 2, "change_color": 2}
"""Room for objects in the scenes, where it is not 1. An object that is added to a scene for two has
a place that the caption tells."""
MEASURES = ("psnr_to_truth", "psnr_outside_mask")


@dataclass(frozen=True)
class DemoRequest:
    """What to show."""

    output: str = "demo.png"
    """The picture; numbers go to a .json beside it."""
    overwrite: bool = False
    """Replace files of these names, whoever wrote them."""
    quiet: bool = False
    """Show no progress."""


@dataclass(frozen=True)
class DemoConfig:
    """How the scenes are edited."""

    edit: EditConfig = field(
        default_factory=lambda: EditConfig(
            guiders=GUIDERS,
            noise_rescaling_setup=RESCALING,
            match_statistics=False,
            execution=Execution(optimise=False),
        )
    )


def sample_edits() -> list[Edit]:
    """An edit of each kind, each of another scene."""
    edits: list[Edit] = []
    index = 0
    for kind in EDITS:
        places = PLACES.get(kind, 1)
        while (scene := draw_scene(SEED, index, places)).free != (kind == "add_object"):
            index += 1
        edits.append(draw_edit(scene, kind, SEED, index))
        index += 1
    return edits


def decibels(one: np.ndarray, other: np.ndarray, where: np.ndarray | None = None) -> float:
    """PSNR of one picture to another; only where the mask (H, W) is True."""
    mask = None if where is None else where[None]
    return float(psnr_of(squared_error(one[None], other[None], mask))[0])


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A picture several times as large, smooth as a screen would show it."""
    height, width = picture.shape[:2]
    return resized(picture, (height * ZOOM, width * ZOOM))


def line(fact: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> np.ndarray:
    """An edit: source, reconstruction, plain and guided edit and exact result, enlarged, each with
    what it is above and its numbers below."""
    captions = (
        f"source: {fact['source']}",
        "inverted and generated again",
        f"edit: {fact['target']}",
        "the same edit, guided",
        "exact result",
    )
    edited = (
        f"{fact[f'{way}_psnr_to_truth']:.1f} dB to the exact result, "
        f"{fact[f'{way}_psnr_outside_mask']:.1f} dB where nothing should change"
        for way in ("plain", "guided")
    )
    notes = ["", f"{fact['reconstruction_psnr']:.1f} dB to the source", *edited, ""]
    return side_by_side(list(zip(captions, map(enlarged, pictures), strict=True)), notes)


def demo(argv: Sequence[str]) -> None:
    """Run the demo.

    Raises:
        UserError: bad input, or the installation is damaged.
    """
    request, config, _ = parse(argv, DESCRIPTION, DemoRequest, DemoConfig)
    output = Path(request.output)
    if not output.name:
        raise UserError("--output is empty: name a picture, such as demo.png")
    check_writable(output)
    record = output.with_suffix(".json")
    check_free([output], record, overwrite=request.overwrite)
    stages = Stages(request.quiet)
    editor = Editor.from_pretrained(config=config.edit, progress=False, announce=stages)
    edits = sample_edits()
    sources = [render(edit.source) for edit in edits]
    truths = [render(edit.target) for edit in edits]
    inversion = editor.invert(sources, [caption(edit.source) for edit in edits])
    reconstructions = editor.reconstruct(inversion)
    # Plain and guided are one call: the former is the latter with guiders of no weight.
    scales = np.asarray(editor.strength.scales)
    result = editor.edit(
        inversion,
        [[caption(edit.target)] * 2 for edit in edits],
        scales=np.stack([0 * scales, scales]),
    )
    plain, guided = result.images[:, 0], result.images[:, 1]
    facts: list[dict[str, Any]] = [
        {
            "kind": edit.kind,
            "source": caption(edit.source),
            "target": caption(edit.target),
            "reconstruction_psnr": decibels(reconstructions[i], sources[i]),
            **{
                f"{name}_{what}": value
                for name, picture in (("plain", plain[i]), ("guided", guided[i]))
                for what, value in (
                    ("psnr_to_truth", decibels(picture, truths[i])),
                    ("psnr_outside_mask", decibels(picture, sources[i], ~edit.mask)),
                )
            },
        }
        for i, edit in enumerate(edits)
    ]
    shown = zip(sources, reconstructions, plain, guided, truths, strict=True)
    lines = [line(fact, pictures) for fact, pictures in zip(facts, shown, strict=True)]
    leave({output: encoded(np.concatenate(lines), output)}, record, {"edits": facts})
    tell(facts)
    print(f"wrote {output} {record}")


def tell(facts: Sequence[Mapping[str, Any]]) -> None:
    """The numbers, a line per edit."""
    edits = [f"{way}_{what}" for what in MEASURES for way in ("plain", "guided")]
    print("PSNR in dB              reconstruction   edit to truth      outside the mask")
    print("                                         plain   guided     plain   guided")
    for fact in facts:
        a, b, c, d, e = (f"{fact[name]:.1f}" for name in ("reconstruction_psnr", *edits))
        print(f"{fact['kind']:<24}{a:<17}{b:<8}{c:<11}{d:<8}{e}")


def main() -> None:
    """The command."""
    run(demo)


if __name__ == "__main__":
    main()
