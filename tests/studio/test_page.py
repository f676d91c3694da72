"""The page in a real browser."""

import io
import json
import shlex
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import jax
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the studio's page needs gradio")
pytest.importorskip("selenium", reason="a browser is driven by selenium")

from ie_jax.data.images import preprocess, read_rgb
from ie_jax.editing.command import edit
from ie_jax.editing.config import EditConfig
from ie_jax.studio.command import StudioRequest, served
from ie_jax.studio.work import Studio
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.studio.visitor import CHROMIUM, DRIVER, Visitor, browser, content
from tests.tiny import SMALLEST

pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    # gradio's server and its dependencies warn of each other.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The page's address; the smallest model behind it."""
    jax.devices()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
            patch.setenv(name, "")  # so that what it is set to does not stay
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        patch.setattr(Studio, "warm", lambda self: None)
        request = StudioRequest(port=port, offline=True, quiet=True)
        with served(EditConfig("random"), request) as page:
            yield page.local_url


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = browser(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture
def visitor(driver: Any, url: str) -> Iterator[Visitor]:
    visitor = Visitor(driver, url)
    yield visitor
    visitor.leave()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo that lies on its side."""
    pixels = np.linspace(0, 255, 300 * 400 * 3).reshape(300, 400, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", exif=exif)
    return tmp_path / "photo.jpg"


def decoded(picture: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def same_by_command(words: str, picture: bytes, folder: Path) -> None:
    """The copied command makes the downloaded picture, pixel by pixel."""
    made = folder / shlex.split(words)[-1]
    made.unlink(missing_ok=True)
    edit([*shlex.split(words)[2:], "--quiet", "--overwrite"])
    same(made.read_bytes(), picture)


def same(one: bytes, other: bytes) -> None:
    """Two picture files show the same."""
    np.testing.assert_array_equal(decoded(one), decoded(other))


@pytest.mark.long("the server starts and programs are compiled, for the whole file")
def test_a_photo_is_edited_and_the_strength_moved_and_undone(
    visitor: Visitor, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photo.parent)
    visitor.upload(photo)
    visitor.prompts("a blue cat", "a red cat", "a blue dog")
    visitor.until(lambda: len(visitor.all("#words mark")) == 2, "the words that differ")
    visitor.click("#invert")
    visitor.told("Inverted")

    visitor.edited(lambda: visitor.click("#edit"))
    files = visitor.files()
    assert set(files) == {"photo-edit-1.png", "photo-edit-2.png", "photo-edit.json"}
    assert len(visitor.all("#several .grid-container img")) == 2
    assert all(x.size["height"] > 300 for x in visitor.all("#compare img"))

    visitor.write("#targets textarea", "a red cat")
    visitor.edited(lambda: visitor.click("#edit"))
    whole = visitor.files()["photo-edit.png"]
    same(whole, files["photo-edit-1.png"])
    slider = "#strength input[type=range]"
    words = visitor.edited(lambda: visitor.drag(slider, (0.9, 0.5), (0.3, 0.5)))
    weaker = visitor.files()
    strength = json.loads(weaker["photo-edit.json"])["config"]["strength"]
    assert 0.2 < strength[0] < 0.4 and f"--strength {strength[0]}" in words
    assert not np.array_equal(decoded(weaker["photo-edit.png"]), decoded(whole))
    same_by_command(words, weaker["photo-edit.png"], photo.parent)

    visitor.edited(lambda: visitor.click("#undo"))
    assert visitor.value(slider) == "1"
    same(visitor.files()["photo-edit.png"], whole)


@pytest.mark.long("edits within a mask are compiled, and a browser paints without a GPU")
def test_a_mask_is_painted(visitor: Visitor, photo: Path) -> None:
    visitor.upload(photo)
    visitor.prompts("a cat", "a dog")
    visitor.click("#where label:nth-child(3)")
    visitor.one("#canvas canvas")
    time.sleep(1)
    visitor.click("#edit")
    visitor.told("nothing is painted")
    visitor.drag("#canvas canvas", (0.4, 0.4), (0.45, 0.6))
    visitor.edited(lambda: visitor.click("#edit"))
    small = decoded(visitor.files()["mask.png"]) > 0
    visitor.drag("#canvas canvas", (0.55, 0.4), (0.55, 0.6))
    words = visitor.edited(lambda: visitor.click("#canvas [aria-label='Save changes']"))
    files = visitor.files()
    assert set(files) == {"photo-edit.png", "photo-edit.json", "mask.png"}
    white = decoded(files["mask.png"])[..., 0] > 0
    assert 0 < small.mean() < white.mean() < 0.5
    source = preprocess(read_rgb(photo, "photo"), 16)
    kept = decoded(files["photo-edit.png"])[~white] == source[~white]
    assert kept.mean() > 0.5
    assert "--mask mask.png" in words


def test_what_cannot_be_used_is_told(visitor: Visitor, tmp_path: Path) -> None:
    visitor.click("#edit")
    visitor.told("there is no photo")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    visitor.upload(tmp_path / "broken.png")
    visitor.told("broken.png: is")
    visitor.one("#photo input[type=file]")


def test_two_visitors_see_their_own_and_leave_nothing(
    driver: Any, url: str, photo: Path, tmp_path: Path
) -> None:
    first, second = Visitor(driver, url), Visitor(driver, url)
    other = tmp_path / "other.png"
    Image.new("RGB", (32, 32), "red").save(other)
    for visitor, path in ((first, photo), (second, other)):
        visitor.here()
        visitor.upload(path)
        visitor.prompts("a cat", "a dog")
        visitor.edited(partial(visitor.click, "#edit"))
        assert len(visitor.all("#history .grid-container img")) == 1
    mine, theirs = second.files(), [x.get_attribute("src") for x in second.all("#photo img")]
    assert set(mine) == {"other-edit.png", "other-edit.json"}
    second.leave()
    first.until(lambda: refused(str(theirs[0])), "the end of what was uploaded")
    first.here()
    assert set(first.files()) == {"photo-edit.png", "photo-edit.json"}
    first.leave()


def refused(address: str) -> bool:
    try:
        content(address)
    except HTTPError as error:
        return error.code == 403
    return False


@pytest.mark.parametrize("path", ["/etc/passwd", __file__, "ie_jax/world/SHA256SUMS"])
def test_no_file_of_others_is_served(url: str, path: str) -> None:
    assert refused(f"{url}gradio_api/file={Path(path).resolve()}")


def test_the_browser_asks_nobody_else(visitor: Visitor, url: str) -> None:
    asked = visitor.driver.execute_script(
        "return performance.getEntriesByType('resource').map(x => x.name)"
    )
    assert len(asked) > 10
    assert [x for x in asked if not x.startswith((url, "data:", "blob:"))] == []


def test_the_server_listens_here_only(url: str) -> None:
    port = int(url.rstrip("/").rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):  # another address of this machine's own
        socket.create_connection(("127.0.0.2", port), 1).close()
