"""What the page asks for, without the page."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from ie_jax.data.images import preprocess, read_rgb
from ie_jax.editing.command import edit
from ie_jax.editing.config import EditConfig, GuiderConfig, GuiderOptions
from ie_jax.errors import UserError
from ie_jax.studio.words import command_line
from ie_jax.studio.work import DETAILS, FOUND, LAYOUT, PAINTED, TELL, Photo, Settings, Studio
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.tiny import SMALLEST

CORNER = np.zeros((16, 16), bool)
CORNER[4:12, 2:9] = True
GUIDERS = (
    GuiderConfig(LAYOUT, (0.0, 2e4, 2e4, 2e4)),
    GuiderConfig(DETAILS, 0.5, GuiderOptions("mid")),
)
GUIDANCE = (0.0, 1.5, 0.1234567890123, 3.0)


@pytest.fixture(scope="module")
def studio() -> Iterator[Studio]:
    """One of the smallest model, warm."""
    jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        studio = Studio(EditConfig("random", guiders=GUIDERS), offline=True, progress=False)
        studio.warm()
        yield studio


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A photo that lies on its side, in the folder where commands run."""
    monkeypatch.chdir(tmp_path)
    pixels = np.linspace(0, 255, 30 * 40 * 3).reshape(30, 40, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "a photo.jpg", exif=exif)
    return tmp_path / "a photo.jpg"


def compiled(studio: Studio) -> int:
    editors = (studio.plain, studio.guided)
    return sum(len(x.compiled) for editor in editors for x in editor.programs.values())


@pytest.mark.long("the programs of all edits are compiled, for the whole file")
def test_no_edit_compiles_once_the_studio_is_warm(studio: Studio, photo: Path) -> None:
    before = compiled(studio)
    noise = studio.invert(photo, "a cat", 7)
    for changes in (
        {"strength": 0.35, "guidance": GUIDANCE},
        {"where": FOUND},
        {"where": PAINTED, "painted": CORNER, "strength": 0.0},
        {"layout": 0.5, "bound": 0.3},
        {"details": 2.0},
        {"layout": 1.0, "where": FOUND},
        {"details": 1.0, "where": PAINTED, "painted": CORNER},
    ):
        studio.edit(noise, Settings(("a dog", "two dogs"), **changes))
    assert compiled(studio) == before


@pytest.mark.parametrize(
    ("settings", "seed"),
    [
        (Settings(("it's a dog", 'a "fox"'), strength=0.35, guidance=GUIDANCE), 5),
        (Settings(("a dog", "a fox"), layout=0.7, details=1.1, bound=0.3, where=FOUND), 0),
        (Settings(("a dog",), where=PAINTED, painted=CORNER), 2**32 - 1),
    ],
    ids=["plain", "guided, found", "painted"],
)
def test_the_command_makes_the_same_pictures(
    studio: Studio, photo: Path, tmp_path: Path, settings: Settings, seed: int
) -> None:
    noise = studio.invert(photo, "a cat; $HOME", seed)
    result = studio.edit(noise, settings)
    white = np.repeat(np.where(CORNER, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(white).save(tmp_path / "mask.png")

    words = shlex.split(command_line(studio, noise, settings))
    assert words[:2] == ["python", "edit.py"]
    edit([*words[2:], "--quiet", "--offline"])
    several = len(settings.targets) > 1
    names = ["a photo-edit-1.png", "a photo-edit-2.png"] if several else ["a photo-edit.png"]
    for name, image in zip(names, result.images, strict=True):
        np.testing.assert_array_equal(read_rgb(tmp_path / name, name), image)


def test_a_photo_is_read_upright_and_only_the_painted_part_changes(
    studio: Studio, photo: Path
) -> None:
    noise = studio.invert(photo, "a cat", 0)
    np.testing.assert_array_equal(noise.pixels, preprocess(read_rgb(photo, "photo"), 16))
    result = studio.edit(noise, Settings(("a dog",), where=PAINTED, painted=CORNER))
    far = np.ones((16, 16), bool)
    far[2:14, 0:11] = False
    np.testing.assert_array_equal(result.images[0][far], noise.pixels[far])
    assert (result.images[0][CORNER] != noise.pixels[CORNER]).any()
    np.testing.assert_array_equal(result.masks[0], CORNER)


@pytest.mark.parametrize("area", [None, np.zeros((16, 16), bool)])
def test_nothing_painted_is_told(studio: Studio, photo: Path, area: Any) -> None:
    noise = Photo(photo, "a cat", 0, np.zeros((16, 16, 3), np.uint8), None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing is painted"):
        studio.edit(noise, Settings(("a dog",), where=PAINTED, painted=area))


def test_who_waits_and_what_is_done_is_told(studio: Studio, photo: Path) -> None:
    told: list[str] = []
    token = TELL.set(told.append)
    try:
        studio.invert(photo, "a cat", 0)
    finally:
        TELL.reset(token)
    assert told == ["invert"]
