"""Texts that the page shows."""

import difflib
import html
import shlex
from pathlib import Path
from typing import Any

from ie_jax.editing.config import EditConfig, GuiderConfig
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


def command_line(studio: Studio, photo: Photo, settings: Settings) -> str:
    """The command that makes the same pictures of the same photo.

    A painted mask is the file `mask.png` that the page gives.
    """
    config = studio.config
    words: list[Any] = ["python", "edit.py", "--model", config.model]
    if config.forward:
        words += ["--forward", config.forward]
    if config.backward:
        words += ["--backward", config.backward]
    words += ["--image", photo.path.name, "--source", photo.source, "--target", *settings.targets]
    words += ["--seed", photo.seed]
    if settings.strength != 1:
        words += ["--strength", f"{settings.strength:g}"]
    words += ["--cfg-schedule", *(f"{w:g}" for w in settings.guidance)]
    if settings.guided:
        guiders = zip(studio.guiders, studio.scales(settings).tolist(), strict=True)
        words += ["--guiders", *(guider_option(guider, scales) for guider, scales in guiders)]
        words += ["--noise-rescaling-setup.init-setup", "0", f"{settings.bound:g}"]
    if settings.where in (FOUND, PAINTED):
        words += ["--mask", "auto" if settings.where == FOUND else MASK]
        words += ["--mask-feather", f"{config.mask_feather:g}"]
    for name in ("match_statistics", "start_noise"):
        if (value := getattr(config, name)) != getattr(EditConfig(), name):
            words += [f"--{name.replace('_', '-')}", str(value).lower()]
    return shlex.join(str(word) for word in [*words, "--output", output_name(photo.path)])


def guider_option(guider: GuiderConfig, scales: list[float]) -> str:
    """A guider as an option of the command."""
    kwargs = f", kwargs: {{block: {guider.kwargs.block}}}" if "features" in guider.name else ""
    numbers = ", ".join(f"{x:g}" for x in scales)
    return f"{{name: {guider.name}, g_scale: [{numbers}]{kwargs}}}"


def output_name(photo: Path) -> str:
    """What a result is called."""
    return f"{photo.stem}-edit.png"
