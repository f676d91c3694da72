"""Several methods on the embedded world's scenes, whose exact edits are known."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from ie_jax.config import parse_yaml
from ie_jax.data.masks import mask_picture
from ie_jax.data.world.captions import caption
from ie_jax.data.world.drawing import render
from ie_jax.data.world.edits import Edit
from ie_jax.data.world.scenes import draw_scene
from ie_jax.editing.config import EditConfig
from ie_jax.editing.images import encoded
from ie_jax.editing.jobs import Job
from ie_jax.errors import UserError
from ie_jax.evaluation.compare import KEPT, Protocol, Request, asked, compare
from ie_jax.evaluation.runner import Case, write
from ie_jax.evaluation.world.model import model_folder
from ie_jax.evaluation.world.tasks import check_places, check_seed, one_edit_each

WORLD_METRICS = ("world_success", "psnr_truth", "psnr_outside", "world_perceptual_truth")
DESCRIPTION = f"""world --methods: edit drawn scenes, one edit of each, by several methods and
compare the results with the exact ones. {KEPT}"""
SETTINGS = "drawn.yaml"
PICTURES = "scenes"
"""Folder of the scenes in that of the results."""


@dataclass(frozen=True)
class DrawnRequest(Request):
    """What to measure, and where the results go."""

    scenes: int = 96
    """How many scenes."""
    scene_seed: int = 2026
    """Of the scenes; from 1000 up, as those below are training's."""
    places: int = 1
    """How many objects a scene has room for, 1 or 2."""
    batch_size: int | None = 16
    """Images at once, a multiple of the devices."""


def drawn(argv: Sequence[str]) -> None:
    """Compare methods on drawn scenes.

    Raises:
        UserError: bad input, or the results cannot be written.
    """
    request, config, given = asked(argv, DESCRIPTION, DrawnRequest)
    if request.data:
        raise UserError("--data is not of the world, whose scenes are drawn: see --scenes")
    protocol = drawn_protocol(request, config)
    compare(protocol, request, config_of_world(config, given), given)


def config_of_world(config: EditConfig, given: Sequence[str]) -> EditConfig:
    """An edit may change brightness here, unless a person says otherwise."""
    return config if "match_statistics" in given else replace(config, match_statistics=False)


def drawn_protocol(request: DrawnRequest, config: EditConfig) -> Protocol:
    """One edit of each scene, the kinds in turn.

    Raises:
        UserError: the seed is one of training, there are no scenes, or no model.
    """
    check_seed(request.scene_seed)
    check_places(request.places)
    if request.scenes < 1:
        raise UserError(f"--scenes {request.scenes} must be positive")
    seed, folder = request.scene_seed, Path(request.output) / PICTURES
    scenes = [draw_scene(seed, i, request.places) for i in range(request.scenes)]
    edits = {f"{i:05}": task.edit for i, task in enumerate(one_edit_each(scenes, seed))}
    return Protocol(
        "world",
        [case_of(edit, folder, name, config.seed) for name, edit in edits.items()],
        WORLD_METRICS,
        f"scenes of seed {seed}" + (", with room for two objects" if request.places == 2 else ""),
        settings=usual_settings(),
        prepare=partial(write_pictures, edits, folder),
        world=model_folder(config.model),
    )


def usual_settings() -> dict[str, Any]:
    """The settings that were chosen for the methods on the world, see `tuning`."""
    found: dict[str, Any] = parse_yaml((files("ie_jax.evaluation") / SETTINGS).read_text())
    return found


def case_of(edit: Edit, folder: Path, name: str, seed: int) -> Case:
    """An edit whose pictures lie in a folder."""
    job = Job(
        name,
        str(folder / f"{name}.png"),
        caption(edit.source),
        (caption(edit.target),),
        seed + int(name),
    )
    return Case(job, edit.kind, edit.mask.astype(np.uint8), str(folder / f"{name}-truth.png"))


def write_pictures(edits: dict[str, Edit], folder: Path) -> None:
    """The scenes, their edits' masks and exact results, and a list of them for `list --data`.

    Raises:
        UserError: they cannot be written.
    """
    folder.mkdir(exist_ok=True)
    lines = []
    for name, edit in edits.items():
        pictures = {
            "image": (f"{name}.png", render(edit.source)),
            "truth": (f"{name}-truth.png", render(edit.target)),
            "mask": (f"{name}-mask.png", mask_picture(edit.mask)),
        }
        for file, picture in pictures.values():
            write(folder / file, encoded(picture, folder / file))
        told = {"name": name, "source": caption(edit.source), "target": caption(edit.target)}
        files_of = {what: file for what, (file, _) in pictures.items()}
        lines.append(json.dumps({**told, "kind": edit.kind, **files_of}) + "\n")
    write(folder / "edits.jsonl", "".join(lines))
