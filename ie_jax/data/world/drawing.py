"""Pictures of scenes, and what objects cover of them."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ie_jax.data.world.scenes import BACKGROUNDS, COLOURS, SIZE, Scene, Stick, Thing

OVERSAMPLING = 4
"""Masks are drawn so many times larger and averaged down, which smooths their edges."""


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a shape's outline round its centre, in radii, before rotation."""
    match shape:
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


def object_coverage(thing: Thing) -> np.ndarray:
    """How much of each pixel an object covers: float32 (SIZE, SIZE), 0..1."""
    if thing.empty:
        return np.zeros((SIZE, SIZE), np.float32)

    def placed(scale: float) -> list[tuple[float, float]]:
        corners = (turned(p, thing.rotation) for p in outline(thing.shape))
        r = thing.radius * scale
        return [(thing.x + r * x, thing.y + r * y) for x, y in corners]

    polygons: list[tuple[Sequence[tuple[float, float]], int]] = [(placed(1.0), 1)]
    if thing.shape == "ring":
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


def surface_picture(thing: Thing) -> np.ndarray:
    """The object's surface, without light, wherever the object is: float32 (SIZE, SIZE, 3)."""
    colour = np.asarray(COLOURS[thing.colour], np.float32)
    u = along(thing.rotation, thing.x, thing.y)
    v = along(thing.rotation + math.pi / 2, thing.x, thing.y)
    match thing.surface:
        case "striped":
            period = 9.0
            place = np.mod(v / period + thing.surface_phase, 1.0) * period
            dark = smooth_step(np.minimum(place, period - place) - period / 4)
        case "spotted":
            period = 10.0
            a, b = (
                np.mod(x / period + thing.surface_phase, 1.0) * period - period / 2 for x in (u, v)
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
    for thing in scene.things:
        if not thing.empty:
            picture = over(picture, surface_picture(thing), object_coverage(thing))
    return np.asarray(np.clip(np.rint(scene.light * picture), 0, 255), np.uint8)
