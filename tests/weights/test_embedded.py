"""The model that comes with the package: how it gets there, and how it is loaded."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.weights import embedded
from ie_jax.weights.embedded import ship
from ie_jax.weights.folder import write_parts
from ie_jax.weights.formats import read_metadata, read_tensors
from ie_jax.weights.layout import PARTS, Part
from ie_jax.weights.load import facts_before_loading, load_pipeline
from tests.weights.models import METADATA, small_parts, write_plan

OTHERS = ("perceptual.safetensors", "other_forward_9_519.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all parts and some more files; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("trained")
    write_parts(folder / "model", write_plan(folder / "plan"), small_parts(), METADATA)
    for name in OTHERS:
        content = (folder / "model" / PARTS["forward"]).read_bytes()
        (folder / "model" / name).write_bytes(content)
    return folder / "model"


@pytest.fixture(scope="module")
def shipped(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as the package holds it; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("shipped") / "world"
    ship(trained, folder)
    return folder


@pytest.fixture
def world(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model, and no cache."""
    monkeypatch.setattr(embedded, "WORLD", tmp_path / "world")
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    shutil.copytree(shipped, tmp_path / "world")
    return tmp_path / "world"


@pytest.mark.parametrize(("model", "part"), [("world", "fine_tuned"), ("world-icd", "forward")])
def test_both_models_are_loaded_without_a_cache(
    world: Path, tmp_path: Path, model: str, part: Part
) -> None:
    pipeline = load_pipeline(model)
    rounded = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), small_parts())
    for name in ("unet", "vae", "text_encoder", "backward"):
        jax.tree.map(np.testing.assert_array_equal, getattr(pipeline.weights, name), rounded[name])
    jax.tree.map(np.testing.assert_array_equal, pipeline.weights.forward, rounded[part])
    assert (pipeline.tokenizer / "vocab.json").is_file()
    assert not (tmp_path / "home").exists()


def test_the_grids() -> None:
    """Known from names, whether or not the files are there."""
    boundaries = (259, 519, 779, 999)
    for model, forward, start in (
        ("world", None, 19),
        ("world-icd", None, 19),
        ("world", OTHERS[1], 9),
    ):
        facts = facts_before_loading(model, forward)
        assert (facts.start_timestep, facts.boundaries) == (start, boundaries)


def test_another_lora_by_its_name(world: Path) -> None:
    found = load_pipeline("world", forward=OTHERS[1]).weights.forward
    expected = load_pipeline("world-icd").weights.forward
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match=r"absent\.safetensors is not a file"):
        load_pipeline("world", forward="absent.safetensors")


def test_what_is_shipped(world: Path) -> None:
    model = world / "model"
    assert not (model / PARTS["denoiser"]).exists()
    for name in (*(file for part, file in PARTS.items() if part != "denoiser"), *OTHERS):
        assert {x.dtype for x in read_tensors(model / name).values()} == {np.dtype(np.float16)}
        assert METADATA.items() <= read_metadata(model / name).items()
    listed = [line.split("  ")[1] for line in (world / "SHA256SUMS").read_text().splitlines()]
    files = {path.relative_to(world).as_posix() for path in model.rglob("*") if path.is_file()}
    assert sorted(files) == listed


@pytest.mark.parametrize("name", [PARTS["vae"], f"{embedded.PIPELINE}/unet/config.json"])
def test_damage_is_told(world: Path, name: str) -> None:
    path = world / "model" / name
    path.write_bytes(path.read_bytes() + b" ")
    line = rf"^{path} is damaged or missing: reinstall ie_jax$"
    with pytest.raises(UserError, match=line):
        load_pipeline("world")
    path.unlink()
    with pytest.raises(UserError, match=line):
        load_pipeline("world")


def test_an_installation_without_the_model(world: Path) -> None:
    (world / "SHA256SUMS").unlink()
    with pytest.raises(UserError, match=r"cannot read the model .*: reinstall ie_jax$"):
        load_pipeline("world-icd")


def test_an_unfinished_model_is_not_shipped(trained: Path, tmp_path: Path) -> None:
    write_parts(tmp_path / "model", trained, {}, {})
    (tmp_path / "model" / PARTS["fine_tuned"]).unlink()
    with pytest.raises(UserError, match="is missing: cycle fine-tuning writes it"):
        ship(tmp_path / "model", tmp_path / "world")
    assert not (tmp_path / "world").exists()


def test_numbers_beyond_float16_are_not_shipped(trained: Path, tmp_path: Path) -> None:
    large = jax.tree.map(lambda x: 1e6 * x, small_parts()["vae"])
    write_parts(tmp_path / "model", trained, {"vae": large}, {})
    with pytest.raises(UserError, match=r"holds numbers that float16 cannot"):
        ship(tmp_path / "model", tmp_path / "world")
    assert not (tmp_path / "world" / "model").exists()


def test_the_command_tells_bad_input_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ie_jax.weights.embedded", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot read ") and result.stderr.count("\n") == 1
