"""Texts that the page shows."""

import difflib
import html
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from ie_jax.config import options_of
from ie_jax.data.masks import AUTO
from ie_jax.editing.config import EditConfig, RescalingConfig
from ie_jax.studio.work import FOUND, PAINTED, Photo, Settings, Studio

MASK = "mask.png"
"""The name under which a painted mask is downloaded."""


def differing(source: str, target: str) -> str:
    """A target prompt as HTML, with the words that the source has not marked, and those that fell
    away struck out."""
    old, new = source.split(), target.split()
    parts = []
    for tag, a, b, c, d in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        gone, come = (html.escape(" ".join(x)) for x in (old[a:b], new[c:d]))
        if tag == "equal":
            parts.append(come)
            continue
        parts += [f"<del>{gone}</del>"] * bool(gone) + [f"<mark>{come}</mark>"] * bool(come)
    return " ".join(parts)


def config_of(studio: Studio, photo: Photo, settings: Settings) -> EditConfig:
    """The config under which `edit.py` makes the same."""
    own: dict[str, Any] = {}
    if settings.guidance not in ((), studio.guidance):
        own["cfg_schedule"] = settings.guidance
    if settings.guided:
        weights = zip(studio.guiders, studio.scales(settings).tolist(), strict=True)
        own["guiders"] = tuple(replace(guider, g_scale=tuple(row)) for guider, row in weights)
        own["noise_rescaling_setup"] = RescalingConfig(init_setup=(0.0, settings.bound))
    return replace(
        studio.config,
        seed=photo.seed,
        strength=(float(settings.strength),),
        **own,
    )


def command_line(studio: Studio, photo: Photo, settings: Settings) -> str:
    """The command that makes the same pictures of the same photo.

    A painted mask is the file `mask.png` that the page gives.
    """
    words = ["python", "edit.py", "--image", photo.path.name, "--source", photo.source]
    words += ["--target", *settings.targets]
    if settings.where in (FOUND, PAINTED):
        words += ["--mask", AUTO if settings.where == FOUND else MASK]
    words += options_of(config_of(studio, photo, settings))
    return shlex.join([*words, "--output", output_name(photo.path)])


def output_name(photo: Path) -> str:
    """What a result is called."""
    return f"{photo.stem}-edit.png"
