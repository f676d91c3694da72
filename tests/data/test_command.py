"""The command that caches latents: what it writes equals what the networks say."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.cli import run
from ie_jax.data.command import cache
from ie_jax.data.config import DataConfig
from ie_jax.data.latents import Latents, fingerprint
from ie_jax.data.open import open_data
from ie_jax.errors import UserError
from ie_jax.models.networks import Networks, encode_text, vae
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.weights.load import facts_of_pair_before_loading, load_pipeline
from tests.data.pictures import write_folder
from tests.data.test_images import encoded, noise


def test_latents_are_those_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_folder(tmp_path / "in", 3), tmp_path / "out"
    (path / "0002.png").write_bytes(encoded(noise(70, 80), "PNG"))
    cache([
        *("--model", "random", "--data.path", str(path), "--data.size", "64", "--output", str(out)),
        *("--dtype", "float32", "--pixels", "--batch-size", str(2 * jax.device_count()), "--quiet"),
    ])  # fmt: skip
    assert capsys.readouterr().out == f"wrote latents of 3 images to {out}\n"

    pipeline = load_pipeline("random")
    tokenizer = Tokenizer(pipeline.tokenizer)
    plain = next(open_data(DataConfig(path=str(path)), tokenizer, 64, 3))
    loader = open_data(DataConfig(source="latents", path=str(out)), tokenizer, 64, 3)
    read = next(loader)  # of the same images: the order follows from the seed
    networks, weights = Networks(pipeline.architecture), pipeline.weights
    image = jnp.asarray(plain["pixels"]) / 127.5 - 1
    moments: Any = vae(networks).apply({"params": weights.vae}, image, method="moments")
    context = encode_text(networks, weights.text_encoder, jnp.asarray(plain["ids"]))
    np.testing.assert_array_equal(read["pixels"], plain["pixels"])
    for name, expected in (("mean", moments[0]), ("std", moments[1]), ("context", context)):
        np.testing.assert_allclose(read[name], expected, rtol=1e-4, atol=1e-5)
    assert isinstance(loader.dataset, Latents)
    known = fingerprint(weights.vae, weights.text_encoder)
    assert dataclasses.asdict(loader.dataset.index.config)["model"] == known


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--output is missing"),
        (["--output", "x"], "--data.path is missing"),
        (["--output", "x", "--data.path", "y"], "y: there is no such folder"),
        (["--output", "x", "--data.path", "y", "--data.source", "latents"], "encoded already"),
        (["--output", "x", "--data.path", "y", "--shard", "0"], "must be positive"),
        (["--output", "x", "--data.workers", "-1"], "workers -1"),
    ],
)
def test_bad_requests_are_refused(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        cache(argv)
    assert not any(tmp_path.iterdir())


def test_a_size_that_does_not_fit_the_model_is_refused(tmp_path: Path) -> None:
    path = write_folder(tmp_path / "in", 1)
    with pytest.raises(UserError, match=r"--data\.size 60 must divide by"):
        cache([
            *("--model", "random", "--data.path", str(path), "--data.size", "60"),
            *("--output", str(tmp_path / "out"), "--batch-size", str(jax.device_count())),
        ])  # fmt: skip


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(cache, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in ("--data.source", "--data.max-broken", "--pixels", "--vae-precision.compute"):
        assert option in text


def test_training_takes_pairs() -> None:
    with pytest.raises(UserError, match="sdxl-turbo is a base model: training takes pairs"):
        facts_of_pair_before_loading("sdxl-turbo")
    assert facts_of_pair_before_loading("icd-sdxl").texts == 2
