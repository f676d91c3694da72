"""What the page asks for, without the page: photos are inverted once and edited many times."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ie_jax.data.masks import AUTO
from ie_jax.editing.config import EditConfig, GuiderConfig, RescalingConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.evaluation.world.config import GUIDERS as WORLD_GUIDERS
from ie_jax.evaluation.world.config import RESCALING as WORLD_RESCALING
from ie_jax.methods.inverse_and_edit import Inversion
from ie_jax.progress import Stages
from ie_jax.weights.facts import WORLD, Facts

LAYOUT: Literal["self_attn_map_l2"] = "self_attn_map_l2"
DETAILS: Literal["features_map_l2"] = "features_map_l2"
PUBLISHED_GUIDERS = (
    GuiderConfig(LAYOUT, (0.0, 20000.0, 20000.0, 20000.0)),
    GuiderConfig(DETAILS, 0.5),
)
EVERYWHERE, FOUND, PAINTED = "everywhere", "found", "painted"
"""Where an edit may change the photo."""
Tell = Callable[[str], None]
"""Takes a line that says what is being done."""
TELL: ContextVar[Tell | None] = ContextVar("tell", default=None)
"""Who is told, of those whose request is being worked on."""


@dataclass(frozen=True)
class Photo:
    """A photo as noise."""

    path: Path
    source: str
    """What it shows."""
    seed: int
    pixels: np.ndarray
    """As the networks see it: uint8 (h, w, 3)."""
    inversion: Inversion


@dataclass(frozen=True)
class Settings:
    """An edit, as the controls say it."""

    targets: tuple[str, ...]
    strength: float = 1.0
    guidance: tuple[float, ...] = ()
    """w of each step."""
    layout: float = 0.0
    """Factor of the layout guider's weight: 0 is off."""
    details: float = 0.0
    bound: float = 1.0
    """Upper bound of the guiders' pull."""
    where: str = EVERYWHERE
    painted: np.ndarray | None = field(default=None, compare=False)
    """bool (h, w), true where it may change."""

    @property
    def guided(self) -> bool:
        """Whether any guider pulls."""
        return self.layout > 0 or self.details > 0


@dataclass(frozen=True)
class Result:
    """What an edit gave: pictures uint8 (h, w, 3), one for each target."""

    images: list[np.ndarray]
    masks: list[np.ndarray]
    """bool (h, w); empty where all may change."""
    seconds: float


class Studio:
    """A loaded model, for all who look at the page. One edit runs at a time."""

    def __init__(self, config: EditConfig, offline: bool = False, progress: bool = True) -> None:
        """Load the model.

        Raises:
            UserError: it cannot be had.
        """
        self.lock = threading.Lock()
        self.stages = Stages(quiet=not progress)
        self.plain = Editor.from_pretrained(
            config=replace(config, guiders=()),
            offline=offline,
            progress=progress,
            announce=self.announce,
        )
        self.config = self.plain.config
        guiders, rescaling = guiders_of(config, self.plain.facts)
        self.guiders = guiders
        self.guided = self.plain.variant(guiders=guiders, noise_rescaling_setup=rescaling)
        self.facts = self.plain.facts

    @contextmanager
    def announce(self, name: str) -> Iterator[None]:
        """Tell what is being done, on the page and on the terminal."""
        say(f"{name}, once" if name.startswith("compile") else name)
        with self.stages.before_the_bar(name):
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the model alone."""
        if self.lock.locked():
            say("wait: the model works for someone else")
        with self.lock:
            yield

    @property
    def guidance(self) -> tuple[float, ...]:
        """w of each step, as suits the model."""
        return tuple(map(float, self.config.cfg_schedule or self.facts.guidance))

    @property
    def bound(self) -> float:
        """Of the guiders' pull, as suits the model."""
        return float(self.guided.config.noise_rescaling_setup.bounds[1])

    def load(self, path: Path) -> np.ndarray:
        """A photo as the networks see it, uint8 (h, w, 3).

        Raises:
            UserError: it cannot be read.
        """
        try:
            return self.plain.load(path)
        except UserError as error:
            raise UserError(str(error).replace(str(path), path.name)) from None

    def invert(self, path: Path, source: str, seed: int) -> Photo:
        """A photo to noise.

        Raises:
            UserError: it cannot be read, or the prompt is empty.
        """
        pixels = self.load(path)
        with self.turn():
            inversion = self.plain.invert(pixels, source, seed)
        return Photo(path, source, seed, pixels, inversion)

    def edit(self, photo: Photo, settings: Settings) -> Result:
        """The edits of a photo, one after the other: another number of them compiles nothing.

        Raises:
            UserError: a prompt is empty, nothing is painted, or the networks gave NaN.
        """
        editor = self.guided if settings.guided else self.plain
        guided = {"scales": self.scales(settings), "bounds": (0.0, settings.bound)}
        mask = mask_of(settings)
        with self.turn():
            start = time.perf_counter()
            result = editor.edit_each(
                photo.inversion,
                settings.targets,
                settings.strength,
                guidance=settings.guidance or None,
                mask=mask,
                **(guided if settings.guided else {}),
            )
            seconds = time.perf_counter() - start
        masks = [] if result.masks is None else list(result.masks[0])
        return Result(list(result.images[0]), masks, seconds)

    def scales(self, settings: Settings) -> np.ndarray:
        """Weights of the guiders, (guiders, steps)."""
        factors = {LAYOUT: settings.layout, DETAILS: settings.details}
        steps = self.plain.schedule.steps
        return np.array([factors[g.name] * np.array(g.scales(steps)) for g in self.guiders])

    def warm(self) -> None:
        """Compile what edits need, before someone waits for it. Who comes meanwhile need not wait,
        unless for what is being compiled."""
        size = self.plain.size
        pixels = np.full((size, size, 3), 128, np.uint8)
        with self.lock:
            inversion = self.plain.invert(pixels, "warm")
        for mask in (None, AUTO):
            for editor in (self.plain, self.guided):
                editor.prepare(inversion, "warm", strength=1.0, mask=mask)


def say(line: str) -> None:
    """Tell the person whose request is worked on what is being done."""
    if (tell := TELL.get()) is not None:
        tell(line)


def guiders_of(
    config: EditConfig, facts: Facts
) -> tuple[tuple[GuiderConfig, ...], RescalingConfig]:
    """What holds an edit to the source: the config's, or what suits the model."""
    if config.guiders:
        return config.guiders, config.noise_rescaling_setup
    if facts.data == WORLD:
        return (PUBLISHED_GUIDERS[0], *WORLD_GUIDERS), WORLD_RESCALING
    return PUBLISHED_GUIDERS, config.noise_rescaling_setup


def mask_of(settings: Settings) -> Any:
    """As `Editor.edit` takes it.

    Raises:
        UserError: it shall be painted, and is not.
    """
    if settings.where != PAINTED:
        return AUTO if settings.where == FOUND else None
    if settings.painted is None or not settings.painted.any():
        raise UserError("nothing is painted: paint over what may change, or choose another mask")
    return settings.painted
