"""What a scene of the world is, and how it is drawn from a seed.

A scene is an object before a background, or has room for two smaller ones side by side. Captions
name shape, colour, surface and background, and of two places which has the object. They never name
the exact place, size, rotation, light, the background's texture and small sticks lying about: to
keep those is what inversion is for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SIZE = 64
"""Side of a picture, pixels."""
TRAINING_SEEDS = range(1000)
"""Seeds that training may draw from; those of evaluation lie outside."""


SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS: Mapping[str, tuple[int, int, int]] = {
    "red": (214, 38, 38),
    "orange": (245, 138, 20),
    "yellow": (246, 224, 52),
    "green": (40, 168, 62),
    "cyan": (64, 214, 224),
    "blue": (36, 72, 222),
    "purple": (132, 44, 176),
    "pink": (250, 140, 190),
}
SURFACES = ("plain", "striped", "spotted")
BACKGROUNDS: Mapping[str, tuple[int, int, int]] = {
    "grey": (128, 130, 134),
    "navy": (34, 42, 84),
    "brown": (112, 76, 50),
    "beige": (222, 206, 176),
    "olive": (108, 116, 70),
    "lilac": (186, 172, 216),
}
OBJECT: Mapping[str, tuple[str, ...]] = {
    "shape": (*SHAPES, "nothing"),
    "colour": (*COLOURS, "nothing"),
    "surface": (*SURFACES, "nothing"),
}
"""What a caption tells of an object. A place without an object has `nothing` for all three."""
RIGHT = "right_"
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    **OBJECT,
    "background": tuple(BACKGROUNDS),
    **{f"{RIGHT}{name}": values for name, values in OBJECT.items()},
}
"""What a caption tells, and the values that it takes. The first object is the only one, or the one
at the left."""

WORDINGS = 3
"""Of each caption."""
EMPTY_SHARE = 0.08
"""Of scenes without an object, where there is room for one."""
EMPTY_PLACES = 0.25
"""Of places without an object, where there is room for two."""


@dataclass(frozen=True)
class Stick:
    """A short thick line on the background, which no caption names."""

    x: float
    y: float
    angle: float
    """Radians."""
    length: float
    """Pixels."""
    grey: int


@dataclass(frozen=True)
class Thing:
    """An object, or a place where one can be. The first three are named by captions."""

    shape: str
    colour: str
    surface: str
    x: float
    """Centre, pixels from the left."""
    y: float
    """Pixels from the top."""
    radius: float
    """Pixels."""
    rotation: float
    """Radians."""
    surface_phase: float
    """Where stripes or spots begin, in parts of their period."""

    @property
    def empty(self) -> bool:
        """Whether there is no object."""
        return self.shape == "nothing"


@dataclass(frozen=True)
class Scene:
    """All that a picture shows. Captions name the background (see `ATTRIBUTES`), and what things
    say that they do."""

    things: tuple[Thing, ...]
    """One, or two: the left one first."""
    background: str
    template: int
    """Of the caption."""
    light: float
    """Brightness of the whole, about 1."""
    slope: float
    """How much brighter one end of the background is than the middle, of 1."""
    slope_angle: float
    wave: float
    """Height of the background's texture, of 255."""
    wave_angle: float
    wave_length: float
    """Pixels."""
    wave_phase: float
    sticks: tuple[Stick, ...]

    @property
    def empty(self) -> bool:
        """Whether there is no object."""
        return all(thing.empty for thing in self.things)

    @property
    def free(self) -> int:
        """How many objects can be added."""
        return sum(thing.empty for thing in self.things)


def draw_scene(seed: int, index: int, places: int = 1) -> Scene:
    """The scene of a number: a function of seed and index, both at least 0.

    Args:
        places: how many objects it has room for, 1 or 2. With 2 all but objects and sticks is as
            with 1.
    """
    rng = np.random.default_rng((seed, index))
    named = draw_named(rng, EMPTY_SHARE)
    turn = 2 * math.pi
    x, y = rng.uniform(25, SIZE - 25, 2)
    radius = rng.uniform(14, 18)
    background, template = str(rng.choice(tuple(BACKGROUNDS))), int(rng.integers(WORDINGS))
    rotation = draw_rotation(rng)
    rest = {
        "light": float(rng.uniform(0.88, 1.06)),
        "slope": float(rng.uniform(0.03, 0.16)),
        "slope_angle": float(rng.uniform(0, turn)),
        "wave": float(rng.uniform(3, 9)),
        "wave_angle": float(rng.uniform(0, turn)),
        "wave_length": float(rng.uniform(14, 26)),
        "wave_phase": float(rng.uniform(0, turn)),
    }
    phase = float(rng.random())
    alone = Thing(*named, float(x), float(y), float(radius), rotation, phase)
    things: tuple[Thing, ...] = (alone,)
    if places == 2:
        rng = np.random.default_rng((seed, index, places))
        things = (draw_small(rng, SIZE / 4), draw_small(rng, SIZE * 3 / 4))
    return Scene(things, background, template, **rest, sticks=draw_sticks(rng, things))


def draw_named(rng: np.random.Generator, empty_share: float) -> tuple[str, str, str]:
    """What captions tell of an object: shape, colour and surface."""
    empty = rng.random() < empty_share
    shape, colour, surface = (
        str(rng.choice(values)) for values in (SHAPES, tuple(COLOURS), SURFACES)
    )
    return ("nothing",) * 3 if empty else (shape, colour, surface)


def draw_rotation(rng: np.random.Generator) -> float:
    """Up to 15 degrees to either side, radians."""
    return float(rng.uniform(-1, 1) * math.radians(15))


def draw_small(rng: np.random.Generator, x: float) -> Thing:
    """One of two objects of a scene, whose centre lies about x."""
    return Thing(
        *draw_named(rng, EMPTY_PLACES),
        x=float(x + rng.uniform(-1, 1)),
        y=float(SIZE / 2 + rng.uniform(-3, 3)),
        radius=float(rng.uniform(10.5, 12.5)),
        rotation=draw_rotation(rng),
        surface_phase=float(rng.random()),
    )


def draw_sticks(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[Stick, ...]:
    """None to two sticks, clear of all places of objects and of the picture's edge."""
    sticks = []
    for _ in range(rng.integers(3)):
        at = rng.uniform(6, SIZE - 6, (64, 2))
        clear = np.all(
            [np.hypot(at[:, 0] - o.x, at[:, 1] - o.y) > o.radius + 7 for o in things], axis=0
        )
        if clear.any():
            x, y = at[np.argmax(clear)]
            grey = 24 if rng.random() < 0.5 else 244
            angle, length = rng.uniform(0, math.pi), rng.uniform(7, 11)
            sticks.append(Stick(float(x), float(y), float(angle), float(length), grey))
    return tuple(sticks)


def labels(scene: Scene) -> dict[str, int]:
    """The number of each attribute's value in `ATTRIBUTES`. A scene's only object is its first,
    unless it lies at the right of a scene with room for two."""
    first, second = (*scene.things, None)[:2]
    named = {"background": scene.background} | {name: getattr(first, name) for name in OBJECT}
    named |= {f"{RIGHT}{name}": getattr(second, name, "nothing") for name in OBJECT}
    return {name: values.index(named[name]) for name, values in ATTRIBUTES.items()}
