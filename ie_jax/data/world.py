"""The embedded world: captioned scenes drawn from a seed, and exact ground truth for edits of them.

A scene is one object before a background. Its caption names shape, colour, surface and background;
place, size, rotation, light, the background's texture and small sticks lying about are never named:
to keep those is what inversion is for. An edit is the same scene with one named thing changed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
"""Side of a picture, pixels."""
OVERSAMPLING = 4
"""Masks are drawn so many times larger and averaged down, which smooths their edges."""
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
ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "shape": (*SHAPES, "nothing"),
    "colour": (*COLOURS, "nothing"),
    "surface": (*SURFACES, "nothing"),
    "background": tuple(BACKGROUNDS),
}
"""What a caption tells, and the values that it takes. A scene without an object has `nothing` for
shape, colour and surface."""

TEMPLATES = (
    "a {surface} {colour} {shape} on {article} {background} background",
    "a picture of a {surface} {colour} {shape} on {article} {background} background",
    "{article} {background} background with a {surface} {colour} {shape}",
)
EMPTY_TEMPLATES = (
    "an empty {background} background",
    "a picture of nothing on {article} {background} background",
    "{article} {background} background with nothing",
)
WORDS = sorted(
    {
        word
        for text in (*TEMPLATES, *EMPTY_TEMPLATES)
        for word in text.split()
        if not word.startswith("{")
    }
    | {word for values in ATTRIBUTES.values() for word in values}
)
"""All words of all captions."""
EMPTY_SHARE = 0.08
"""Of scenes without an object."""

EDITS: Mapping[str, str] = {
    "change_object": "shape",
    "add_object": "shape",
    "delete_object": "shape",
    "change_color": "colour",
    "change_material": "surface",
    "change_background": "background",
}
"""Kinds of edits by PIE-Bench's names, and the attribute that each is about."""


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
class Scene:
    """All that a picture shows. The first four are named by captions (see `ATTRIBUTES`)."""

    shape: str
    colour: str
    surface: str
    background: str
    template: int
    """Of the caption."""
    x: float
    """Centre of the object, pixels from the left."""
    y: float
    """Pixels from the top."""
    radius: float
    """Pixels."""
    rotation: float
    """Radians."""
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
    surface_phase: float
    """Where the object's stripes or spots begin, in parts of their period."""
    sticks: tuple[Stick, ...]

    @property
    def empty(self) -> bool:
        """Whether there is no object."""
        return self.shape == "nothing"


def draw_scene(seed: int, index: int) -> Scene:
    """The scene of a number: a function of seed and index, both at least 0."""
    rng = np.random.default_rng((seed, index))
    empty = rng.random() < EMPTY_SHARE
    shape, colour, surface = (
        str(rng.choice(values)) for values in (SHAPES, tuple(COLOURS), SURFACES)
    )
    named = ("nothing",) * 3 if empty else (shape, colour, surface)
    turn = 2 * math.pi
    x, y = rng.uniform(25, SIZE - 25, 2)
    radius = rng.uniform(14, 18)
    return Scene(
        *named,
        background=str(rng.choice(tuple(BACKGROUNDS))),
        template=int(rng.integers(len(TEMPLATES))),
        x=float(x),
        y=float(y),
        radius=float(radius),
        rotation=float(rng.uniform(-1, 1) * math.radians(15)),
        light=float(rng.uniform(0.88, 1.06)),
        slope=float(rng.uniform(0.03, 0.16)),
        slope_angle=float(rng.uniform(0, turn)),
        wave=float(rng.uniform(3, 9)),
        wave_angle=float(rng.uniform(0, turn)),
        wave_length=float(rng.uniform(14, 26)),
        wave_phase=float(rng.uniform(0, turn)),
        surface_phase=float(rng.random()),
        sticks=draw_sticks(rng, float(x), float(y), float(radius)),
    )


def draw_sticks(rng: np.random.Generator, x: float, y: float, radius: float) -> tuple[Stick, ...]:
    """None to two sticks, clear of the object and of the picture's edge."""
    sticks = []
    for _ in range(rng.integers(3)):
        places = rng.uniform(6, SIZE - 6, (64, 2))
        clear = np.hypot(places[:, 0] - x, places[:, 1] - y) > radius + 7
        if clear.any():
            at = places[np.argmax(clear)]
            grey = 24 if rng.random() < 0.5 else 244
            angle, length = rng.uniform(0, math.pi), rng.uniform(7, 11)
            sticks.append(Stick(float(at[0]), float(at[1]), float(angle), float(length), grey))
    return tuple(sticks)


def caption(scene: Scene, template: int | None = None) -> str:
    """What a scene shows, in words.

    Args:
        template: which wording, from 0 (`TEMPLATES`); None: the scene's own.
    """
    templates = EMPTY_TEMPLATES if scene.empty else TEMPLATES
    named = {name: getattr(scene, name) for name in ATTRIBUTES}
    article = "an" if scene.background[0] in "aeiou" else "a"
    text = templates[scene.template if template is None else template]
    return text.format(article=article, **named)


def labels(scene: Scene) -> dict[str, int]:
    """The number of each attribute's value in `ATTRIBUTES`."""
    return {name: values.index(getattr(scene, name)) for name, values in ATTRIBUTES.items()}


def outline(scene: Scene) -> list[tuple[float, float]]:
    """Corners of the object's outline round its centre, in radii, before rotation."""
    match scene.shape:
        case "square":
            a = 0.84
            return [(-a, -a), (a, -a), (a, a), (-a, a)]
        case "triangle":
            return [(0.0, -1.05), (1.02, 0.78), (-1.02, 0.78)]
        case "cross":
            a, b = 1.02, 0.34
            quarter = [(-b, -a), (b, -a), (b, -b), (a, -b)]
            return [turned(p, k * math.pi / 2) for k in range(4) for p in quarter[:3]]
        case _:
            steps = np.linspace(0, 2 * math.pi, 96, endpoint=False)
            return [(math.cos(a), math.sin(a)) for a in steps]


def turned(point: tuple[float, float], angle: float) -> tuple[float, float]:
    """A point turned round the origin."""
    (x, y), c, s = point, math.cos(angle), math.sin(angle)
    return c * x - s * y, s * x + c * y


def coverage(polygons: Sequence[tuple[Sequence[tuple[float, float]], int]]) -> np.ndarray:
    """How much of each pixel polygons cover, drawn one over the other: float32 (SIZE, SIZE), 0..1.

    Args:
        polygons: corners in pixels, and 1 to cover or 0 to cut out.
    """
    side = SIZE * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    pen = ImageDraw.Draw(canvas)
    for corners, fill in polygons:
        pen.polygon([(x * OVERSAMPLING, y * OVERSAMPLING) for x, y in corners], fill=255 * fill)
    return np.asarray(canvas.reduce(OVERSAMPLING), np.float32) / 255


def object_coverage(scene: Scene) -> np.ndarray:
    """How much of each pixel the object covers: float32 (SIZE, SIZE), 0..1."""
    if scene.empty:
        return np.zeros((SIZE, SIZE), np.float32)

    def placed(scale: float) -> list[tuple[float, float]]:
        corners = (turned(p, scene.rotation) for p in outline(scene))
        r = scene.radius * scale
        return [(scene.x + r * x, scene.y + r * y) for x, y in corners]

    polygons: list[tuple[Sequence[tuple[float, float]], int]] = [(placed(1.0), 1)]
    if scene.shape == "ring":
        polygons.append((placed(0.52), 0))
    return coverage(polygons)


def stick_coverage(stick: Stick) -> np.ndarray:
    """How much of each pixel a stick covers."""
    half, width = stick.length / 2, 1.5
    corners = [(-half, -width), (half, -width), (half, width), (-half, width)]
    placed = [turned(p, stick.angle) for p in corners]
    return coverage([([(stick.x + x, stick.y + y) for x, y in placed], 1)])


GRID = np.arange(SIZE, dtype=np.float32) + 0.5
"""Centres of pixels along a side."""


def along(angle: float, x: float = SIZE / 2, y: float = SIZE / 2) -> np.ndarray:
    """How far each pixel lies in a direction from a point, pixels: float32 (SIZE, SIZE)."""
    return np.float32(math.cos(angle)) * (GRID[None] - x) + np.float32(math.sin(angle)) * (
        GRID[:, None] - y
    )


def background_picture(scene: Scene) -> np.ndarray:
    """The background without light: float32 (SIZE, SIZE, 3), about 0..255."""
    slope = 1 + scene.slope * along(scene.slope_angle) / (SIZE / 2)
    turns = 2 * math.pi * along(scene.wave_angle) / scene.wave_length + scene.wave_phase
    colour = np.asarray(BACKGROUNDS[scene.background], np.float32)
    picture: np.ndarray = colour * slope[..., None] + scene.wave * np.sin(turns)[..., None]
    for stick in scene.sticks:
        picture = over(picture, np.full(3, stick.grey, np.float32), stick_coverage(stick))
    return picture


def smooth_step(x: np.ndarray) -> np.ndarray:
    """From 0 below -0.5 to 1 above 0.5, as an edge that crosses a pixel covers it."""
    return np.clip(x + 0.5, 0.0, 1.0)


def surface_picture(scene: Scene) -> np.ndarray:
    """The object's surface, without light, wherever the object is: float32 (SIZE, SIZE, 3)."""
    colour = np.asarray(COLOURS[scene.colour], np.float32)
    u = along(scene.rotation, scene.x, scene.y)
    v = along(scene.rotation + math.pi / 2, scene.x, scene.y)
    match scene.surface:
        case "striped":
            period = 9.0
            place = np.mod(v / period + scene.surface_phase, 1.0) * period
            dark = smooth_step(np.minimum(place, period - place) - period / 4)
        case "spotted":
            period = 10.0
            a, b = (
                np.mod(x / period + scene.surface_phase, 1.0) * period - period / 2 for x in (u, v)
            )
            dark = smooth_step(3.0 - np.hypot(a, b))
        case _:
            dark = np.zeros_like(u)
    shade = colour * 0.42
    return colour + dark[..., None] * (shade - colour)


def over(picture: np.ndarray, paint: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """Paint laid over a picture where it covers."""
    mixed: np.ndarray = picture + cover[..., None] * (paint - picture)
    return mixed


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8 (SIZE, SIZE, 3)."""
    picture = background_picture(scene)
    if not scene.empty:
        picture = over(picture, surface_picture(scene), object_coverage(scene))
    return np.asarray(np.clip(np.rint(scene.light * picture), 0, 255), np.uint8)


@dataclass(frozen=True)
class Edit:
    """A change of a scene, and its exact result."""

    kind: str
    """One of `EDITS`."""
    source: Scene
    target: Scene
    """The source with the change; all else is the same."""
    mask: np.ndarray
    """bool (SIZE, SIZE): True where source and target may differ."""


def possible(scene: Scene, kind: str) -> bool:
    """Whether an edit of this kind can be made: add wants no object, all others but the
    background's want one."""
    return kind == "change_background" or scene.empty == (kind == "add_object")


def draw_edit(scene: Scene, kind: str, seed: int, index: int) -> Edit:
    """An edit of a scene, the new value drawn from seed and index.

    Raises:
        ValueError: it is not `possible`.
    """
    if not possible(scene, kind):
        raise ValueError(f"{kind} of a scene with {scene.shape}")
    rng = np.random.default_rng((seed, index, list(EDITS).index(kind)))

    def other(attribute: str) -> str:
        values = [
            value
            for value in ATTRIBUTES[attribute]
            if value not in (getattr(scene, attribute), "nothing")
        ]
        return str(rng.choice(values))

    if kind == "delete_object":
        change = dict.fromkeys(("shape", "colour", "surface"), "nothing")
    elif kind == "add_object":
        change = {name: other(name) for name in ("shape", "colour", "surface")}
    else:
        change = {EDITS[kind]: other(EDITS[kind])}
    target = replace(scene, **change)  # type: ignore[arg-type]
    return Edit(kind, scene, target, difference_mask(scene, target))


def difference_mask(source: Scene, target: Scene) -> np.ndarray:
    """Where two scenes that share their hidden details may differ: bool (SIZE, SIZE)."""
    if source.background != target.background:
        return np.minimum(object_coverage(source), object_coverage(target)) < 1
    return np.maximum(object_coverage(source), object_coverage(target)) > 0
