"""Cycle fine-tuning of the smallest iCD-SDXL: what it is told, and a whole run with a kill."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.data.command import cache
from ie_jax.data.config import DataConfig
from ie_jax.data.open import open_data
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.models.networks import Networks, encode_two
from ie_jax.models.tokenizer import tokenize_by
from ie_jax.models.unet import Conditions
from ie_jax.training.inputs import context_of
from ie_jax.weights.convert import flatten
from ie_jax.weights.formats import read_metadata
from ie_jax.weights.load import load_pipeline
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.conftest import ROOT
from tests.tiny import SMALLEST, SMALLEST_SDXL
from tests.training.test_kill import kill_again_and_again
from tests.weights.models import SDXL, write_sdxl_pair

CAPTIONS = ["a cat", "a red house"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setitem(RANDOM_CONFIGS, "vae", RANDOM_CONFIGS["vae"] | SMALLEST["vae"])
        patch.setitem(SDXL, "unet", SDXL["unet"] | SMALLEST_SDXL)
        write_sdxl_pair(folder)
        yield folder


@pytest.mark.long("two whole runs, one of them killed and resumed")
def test_a_killed_run_equals_an_uninterrupted_one_and_its_lora_edits(
    pair: Path, tmp_path: Path
) -> None:
    settings = [
        *("--config", "tests/training/tiny.yaml", "--model", str(pair), "--data.validation", "0"),
        *("--cycle.boundaries", "249", "499", "699", "999", "--save-every", "1"),
    ]
    kill_again_and_again(settings, tmp_path, [(1, 0.0)])
    file = tmp_path / "whole" / "forward_lora.safetensors"
    assert read_metadata(file).items() >= {
        ("start_timestep", "0"),
        ("start_noise", "0"),
        ("boundaries", "249 499 699 999"),
        ("guidance", "0 7 7 7"),
    }
    before, after = (
        flatten(load_pipeline(str(pair), forward=forward).weights.forward)
        for forward in (None, str(file))
    )
    assert before.keys() == after.keys()
    assert not any(np.array_equal(before[name], after[name]) for name in before)
    config = EditConfig(str(pair), forward=str(file))
    editor = Editor(load_pipeline(str(pair), forward=str(file)), config)
    assert editor.schedule.forward_t.tolist() == [0, 249, 499, 699]


def test_what_it_is_told_is_what_edits_are_told(pair: Path, tmp_path: Path) -> None:
    editor = Editor(load_pipeline(str(pair)), EditConfig(str(pair)))
    networks, weights = Networks(editor.models.architecture), editor.weights
    tokens = editor.ids(CAPTIONS, (32, 16))
    expected = encode_two(networks, weights.two_texts, tokens)
    ids = jnp.stack([tokens.first, tokens.second], 1)
    pixels = jnp.zeros((2, 32, 16, 3), jnp.uint8)
    told = context_of(networks, weights.texts, {"pixels": pixels, "ids": ids})
    assert isinstance(told, Conditions)
    for ours, theirs in ((told.text, expected.text), (told.pooled, expected.pooled)):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(told.sizes, [[32, 16, 0, 0, 32, 16]] * 2)


def test_cached_latents_tell_the_same(pair: Path, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    cache([
        *("--model", str(pair), "--data.path", "configs/debug_images", "--dtype", "float32"),
        *("--output", str(folder), "--batch-size", "8", "--pixels", "--quiet"),
    ])  # fmt: skip
    pipeline = load_pipeline(str(pair))
    networks, texts = Networks(pipeline.architecture), pipeline.weights.texts
    sources = (
        DataConfig(source="latents", path=str(folder)),
        DataConfig(path="configs/debug_images"),
    )
    read, seen = (
        jax.tree.map(jnp.asarray, next(open_data(x, tokenize_by(pipeline.tokenizers), 16, 2)))
        for x in sources
    )
    np.testing.assert_array_equal(read["pixels"], seen["pixels"])
    told, expected = (context_of(networks, x, y) for x, y in ((None, read), (texts, seen)))
    for ours, theirs in zip(jax.tree.leaves(told), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
