"""Prepared pictures: size, caption, and what breaks a single one."""

from pathlib import Path

import numpy as np
import pytest

from ie_jax.data.images import load_image
from ie_jax.data.pictures import Pictures
from ie_jax.data.sources import folder
from ie_jax.errors import UserError
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.load import load_pipeline
from tests.data.pictures import tokenize, write_folder
from tests.data.test_images import encoded, noise


def test_a_picture_is_prepared_as_the_editor_does(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    path = tmp_path / "0000.png"
    path.write_bytes(encoded(noise(40, 70), "PNG"))
    name, (pixels, caption) = Pictures(folder(tmp_path), tokenize, 32).read(
        0, np.random.default_rng()
    )
    assert (name, caption) == (str(path), "0 0")
    np.testing.assert_array_equal(pixels, load_image(path, 32))


def test_a_batch(tmp_path: Path) -> None:
    pictures = Pictures(folder(write_folder(tmp_path, 2)), tokenize, 16)
    rng = np.random.default_rng()
    batch = pictures.batch([pictures.read(i, rng)[1] for i in (1, 0)])
    assert batch["pixels"].shape == (2, 16, 16, 3) and batch["pixels"].dtype == np.uint8
    assert batch["ids"].tolist() == [[1, 0, -1, -1], [0, 0, -1, -1]]
    assert batch["ids"].dtype == np.int32


def test_captions_are_the_first_or_drawn(tmp_path: Path) -> None:
    source = folder(write_folder(tmp_path, 1, captions=3))

    def chosen(pictures: Pictures) -> set[str]:
        return {pictures.read(0, np.random.default_rng(i))[1][1] for i in range(30)}

    assert chosen(Pictures(source, tokenize, 8)) == {"0 0"}
    assert chosen(Pictures(source, tokenize, 8, "random")) == {"0 0", "0 1", "0 2"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a picture"),
        (b"plain text", "not a picture"),
        (encoded(noise(40, 40), "PNG")[:500], "damaged"),
        (encoded(noise(40, 40), "JPEG")[:500], "damaged"),
    ],
)
def test_a_broken_picture_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path, 2) / "0001.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    pictures = Pictures(folder(tmp_path), tokenize, 8)
    pictures.read(0, np.random.default_rng())
    with pytest.raises(UserError, match=rf"0001\.png: .*{message}"):
        pictures.read(1, np.random.default_rng())


def test_real_token_ids_and_no_warning_of_long_captions(tmp_path: Path) -> None:
    tokenizer = Tokenizer(load_pipeline("random").tokenizer)
    pictures = Pictures(folder(write_folder(tmp_path, 1)), tokenizer, 8)
    pixels = np.zeros((8, 8, 3), np.uint8)
    ids = pictures.batch([(pixels, "a cat"), (pixels, "word " * 100)])["ids"]
    assert ids.shape == (2, 77) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0], tokenizer(["a cat"])[0])
