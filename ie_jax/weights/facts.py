"""What a pair of models was trained for: read from its files, and written into them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

from ie_jax.diffusion.schedule import BOUNDARIES, GUIDANCE
from ie_jax.weights.formats import read_metadata

WORLD, NOTHING = "world", "nothing"
"""What a model is trained on that knows the drawn scenes of the embedded world, and what the random
model is."""


@dataclass(frozen=True)
class Facts:
    """What a pair of consistency models was trained for. The defaults are the paper's."""

    start_timestep: int = 0
    """Where inversion starts: 0 after cycle fine-tuning, 19 before it."""
    boundaries: tuple[int, ...] = BOUNDARIES
    """Timesteps between the segments, rising."""
    guidance: tuple[float, ...] = GUIDANCE
    """The scale w of each generation step that suits edits by this model."""
    data: str = "photos"
    """What it was trained on: the kind of a training run's data, such as `WORLD`."""
    pair: bool = True
    """Whether it is a pair at all: a guidance-distilled UNet with a forward and a backward LoRA.
    Else a base model, of which only the following counts."""
    few_steps: bool = True
    """Whether it makes a picture in a few steps."""
    texts: int = 1
    """How many text encoders it has: two are SDXL's."""
    start_noise: bool = True
    """Whether inversion starts from a latent with noise, as published edits do."""


def sdxl_guidance(boundaries: tuple[int, ...]) -> tuple[float, ...]:
    """The scale w of each generation step that suits iCD-SDXL: 7 from tau = 0.7 down, as in its
    authors' example of an edit."""
    return tuple(7.0 if t <= 700 else 0.0 for t in reversed(boundaries))


def as_metadata(facts: Facts) -> dict[str, str]:
    """Facts as texts for the header of a LoRA file, from which `facts_of` reads them."""
    return {
        "start_timestep": str(facts.start_timestep),
        "start_noise": str(int(facts.start_noise)),
        "boundaries": " ".join(map(str, facts.boundaries)),
        "guidance": " ".join(f"{w:g}" for w in facts.guidance),
    }


def facts_of(forward: Path, backward: Path, texts: int = 1) -> Facts:
    """What the files of a pair tell: of the start the forward model's, all else the backward's.

    Headers go before names; what neither tells is the paper's. Published names end in the timesteps
    before each step: `forward_19_259_519_779`, `reverse_259_519_779_999`. A forward model without
    them in its name is of the fine-tuned kind, which starts at 0.

    Args:
        texts: the number of text encoders.

    Raises:
        UserError: a file is damaged.
    """
    told, started, default = header(backward), header(forward), Facts()
    start = started.get("start_timestep") or timesteps(forward) or (0,)
    boundaries = told.get("boundaries") or timesteps(backward) or default.boundaries
    boundaries = tuple(map(int, boundaries))
    guidance = default.guidance if texts == 1 else sdxl_guidance(boundaries)
    return Facts(
        int(start[0]),
        boundaries,
        told.get("guidance", guidance),
        words(backward).get("data", default.data),
        texts=texts,
        start_noise=bool(started.get("start_noise", (True,))[0]),
    )


def words(path: Path) -> dict[str, str]:
    """All texts in a file's header; none where there is no such file yet."""
    return read_metadata(path) if path.is_file() else {}


def header(path: Path) -> dict[str, tuple[float, ...]]:
    """The numbers of `as_metadata` in a LoRA file's header; none where it has no sound ones.

    Raises:
        UserError: the file is damaged.
    """
    told = words(path)
    found: dict[str, tuple[float, ...]] = {}
    for name in as_metadata(Facts()):
        try:
            found[name] = tuple(map(float, told.get(name, "").split()))
        except ValueError:
            continue
    return {name: x for name, x in found.items() if x and all(map(math.isfinite, x))}


def timesteps(path: Path) -> tuple[int, ...]:
    """The timesteps at the end of a published LoRA's name; none in other names."""
    found = re.search(r"((?:_\d+){2,})$", path.stem)
    return tuple(map(int, found[1].split("_")[1:])) if found else ()
