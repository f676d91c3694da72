from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import random_weights
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.folder import convert_files
from ie_jax.weights.layout import find_files
from ie_jax.weights.load import load_pipeline
from tests.parity.oracle import torch

RANK = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "new"
    random_weights.main([str(folder), "--size", "tiny", "--rank", str(RANK)])
    return folder


def test_they_are_converted_like_published_files(folder: Path) -> None:
    architecture, weights = convert_files(find_files(folder))
    assert architecture.unet.time_cond_proj_dim == 512
    loras = jax.tree.leaves(weights.forward), jax.tree.leaves(weights.backward)
    for forward, backward in zip(*loras, strict=True):
        assert forward.any()
        assert not np.array_equal(forward, backward)


def test_sdxl_is_a_pair_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    random_weights.random_weights(tmp_path / "new", "sdxl-tiny", rank=RANK)
    assert torch.get_default_dtype() == torch.float32
    pipeline = load_pipeline(str(tmp_path / "new"))
    weights = pipeline.weights
    assert {x.dtype for x in jax.tree.leaves(weights.unet)} == {np.dtype(np.float16)}
    numbers = {x.dtype for x in jax.tree.leaves((weights.forward, weights.two_texts))}
    assert numbers == {np.dtype(np.float32)}
    assert pipeline.architecture.text_2 is not None
    editor = Editor(pipeline, EditConfig(str(tmp_path / "new")))
    tokens = editor.ids(["a cat"], (128, 128))
    np.testing.assert_array_equal(tokens.first, tokens.second)


def test_the_tokenizer_knows_every_text(folder: Path) -> None:
    pipeline = find_files(folder).pipeline
    ids = Tokenizer(pipeline / "tokenizer")(["a cat", "Ünïcode 猫 \N{CAT FACE}"])
    end = random_weights.SIZES["tiny"].text["vocab_size"] - 1
    assert ids[0, :6].tolist() == [end - 1, *ids[0, 1:5], end]
    assert len({*ids[0, 1:5]}) == 4  # "a" alone, and "c", "a", "t" in a word
    assert (ids[:, 0] == end - 1).all() and ids.max() == end
    assert list(ids[1]).index(end) > 15


def test_unused_entries_fill_the_vocabulary() -> None:
    vocabulary = random_weights.padded({"b": 1, "a": 0, "start": 2, "end": 3}, 6)
    assert list(vocabulary) == ["a", "b", "<|unused0|>", "<|unused1|>", "start", "end"]
    assert list(vocabulary.values()) == list(range(6))


def test_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    for seed in (0, 1):
        random_weights.random_weights(tmp_path / str(seed), "tiny", seed, RANK)
    assert torch.equal(torch.random.get_rng_state(), state)
    for path in folder.rglob("*.safetensors"):
        same, other = (tmp_path / seed / path.relative_to(folder) for seed in "01")
        assert path.read_bytes() == same.read_bytes() != other.read_bytes()


def test_refusals(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="exists already"):
        random_weights.random_weights(folder)
    with pytest.raises(UserError, match="rank 0"):
        random_weights.random_weights(tmp_path / "new", rank=0)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        random_weights.random_weights(tmp_path / "file" / "new", rank=RANK)
    (tmp_path / "file").unlink()
    monkeypatch.setattr(random_weights, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(UserError, match="need no_such_package: pip install"):
        random_weights.random_weights(tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(random_weights, "draw_lora", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        random_weights.random_weights(tmp_path / "new", "tiny", rank=RANK)
    assert not list(tmp_path.iterdir())
