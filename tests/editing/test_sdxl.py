"""Edits by models of SDXL's kind: two text encoders, and methods that need no pair of models."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ie_jax.editing.command import edit
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.methods.table import METHODS, MethodConfig, settled
from ie_jax.models.execution import Precision
from ie_jax.weights.folder import base_pipeline
from ie_jax.weights.load import facts_before_loading
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.tiny import SMALLEST, SMALLEST_SDXL
from tests.weights.models import SDXL, write_sdxl

PROMPTS = ("--source", "a cat", "--target", "a dog")
FEW = [name for name, method in METHODS.items() if method.needs == "few steps"]


@pytest.fixture(scope="module")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The smallest SDXL-Turbo; latents are as large as images."""
    folder = tmp_path_factory.mktemp("turbo") / "sdxl-turbo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RANDOM_CONFIGS, "vae", RANDOM_CONFIGS["vae"] | SMALLEST["vae"])
        patch.setitem(SDXL, "unet", SDXL["unet"] | SMALLEST_SDXL)
        write_sdxl(folder)
        yield folder


@pytest.fixture
def run(turbo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command on that model and a photo; returns what its record says."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    Image.fromarray(pixels).save("photo.png")

    def call(*argv: str) -> Any:
        model = () if "--model" in argv else ("--model", str(turbo))
        edit([*argv, *model, "--image", "photo.png", *PROMPTS, "--output", "out.png", "--quiet"])
        return json.loads(Path("out.json").read_text())

    return call


@pytest.mark.parametrize(
    ("name", "calls"), [("gnri", 8), pytest.param("renoise-turbo", 48, marks=pytest.mark.slow)]
)
def test_the_command_edits(name: str, calls: int, run: Callable[..., Any]) -> None:
    record = run("--method", name)
    assert record["network_calls"] == calls
    assert record["seconds"].keys() >= {f"compile {name}", name}
    with Image.open("out.png") as result:
        assert result.size == (16, 16)


@pytest.mark.usefixtures("run")
def test_the_command_edits_a_list(turbo: Path) -> None:
    line = {"image": "photo.png", "source": "a cat", "target": "a dog"}
    Path("edits.jsonl").write_text("".join(f"{json.dumps(line)}\n" for _ in range(2)))
    edit(["--model", str(turbo), "--method", "turboedit", "--list", "edits.jsonl", "--quiet"])
    first, second = (json.loads(path.read_text()) for path in sorted(Path("edits").glob("*.json")))
    assert first["network_calls"] == second["network_calls"] == 12
    assert second["seconds"] > 0 and "seconds" not in first


def test_a_batch_is_its_images_and_values_never_recompile(turbo: Path) -> None:
    settings = EditConfig(str(turbo), method="turboedit", match_statistics=False)
    editor = Editor(base_pipeline(turbo), settings)
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), np.uint8)
    sources, targets = ["a cat", "a red house"], [["a dog", "a cat"], ["a blue house", "a tree"]]
    both = editor.apply(images, sources, targets, seed=[3, 4])
    assert both.pixels.shape == (2, 2, 16, 16, 3) and np.all(both.finite)
    first = np.asarray(both.latents)
    assert np.abs(first[0, 0, 0] - first[0, 0, 1]).max() > 1e-3  # prompts count
    swapped = editor.apply(images[::-1], sources[::-1], targets[::-1], seed=[4, 3])
    np.testing.assert_allclose(np.asarray(swapped.latents)[:, ::-1], first, rtol=2e-3, atol=2e-3)
    editor.config = replace(settings, baseline=MethodConfig(guidance=3.0, limit=1.0))
    other = editor.apply(images, sources, targets, seed=[3, 4])
    assert np.abs(np.asarray(other.latents) - first).max() > 1e-3
    assert len(editor.programs["turboedit"].compiled) == 1


def test_a_prompt_is_tokens_of_both_and_a_whole_picture(turbo: Path) -> None:
    low = Precision("float16", "float16")
    config = EditConfig(str(turbo), method="turboedit", vae_precision=low)
    editor = Editor(base_pipeline(turbo), config)
    tokens = editor.ids(["a cat", "a dog"], (32, 16))
    assert tokens.first.shape == tokens.second.shape == (2, 77)
    np.testing.assert_array_equal(tokens.sizes, [[32, 16, 0, 0, 32, 16]] * 2)
    # In float16 its autoencoder would overflow.
    assert editor.models.vae_precision == Precision()
    assert editor.weights.vae["decoder"]["conv_in"]["kernel"].dtype == jnp.float32


# --- what a model cannot do, known before its weights are read ---


@pytest.fixture
def without_weights(turbo: Path, tmp_path: Path) -> Path:
    """The model's configs and tokenizers alone."""
    folder = tmp_path / "model"
    shutil.copytree(turbo, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ((), f"ours needs .* a base model: take --method {', '.join(FEW)}$"),
        (("--method", "icd"), "icd needs a guidance-distilled UNet with a forward and a backward"),
        (("--method", "p2p"), "p2p is for models of SD1.x, and .* has two text encoders"),
        (("--method", "turboedit", "--baseline.steps", "5"), "steps 5 must be 3 or 4"),
        (("--method", "gnri", "--baseline.highest", "0.1"), "none of 4 steps is below 0.1"),
        (("--method", "gnri", "--baseline.highest", "0"), "highest over 0 and at most 1"),
        (("--method", "gnri", "--forward", "./a.safetensors"), "it takes --backward alone"),
        (("--method", "gnri", "--mask", "auto"), "--mask is of our method"),
        (("--method", "gnri"), "has missing files: unet/diffusion_pytorch_model"),
    ],
)
def test_what_is_refused(
    argv: tuple[str, ...], told: str, without_weights: Path, run: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=told):
        run("--model", str(without_weights), *argv)
    assert not Path("out.json").exists()


def test_a_model_of_many_steps_needs_a_lora_of_few(without_weights: Path) -> None:
    path = without_weights / "scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": "leading"}))
    model = str(without_weights)
    config = EditConfig(model, method="turboedit")
    with pytest.raises(UserError, match=r"takes many .*: take --model sdxl-turbo.* --backward"):
        Editor.from_pretrained(config=config)
    assert facts_before_loading(model, None, "./few.safetensors").few_steps


def test_evaluations_follow_the_settings() -> None:
    def count(name: Any, **changes: Any) -> int:
        return METHODS[name].evaluations(settled(name, MethodConfig(**changes)))

    assert count("turboedit", steps=3) == 9
    assert count("gnri", inner_steps=3, highest=1.0) == 4 * 5
    assert count("renoise-turbo", guidance=2.0) == 52
    assert count("renoise-turbo", inner_steps=1, highest=0.5) == 2 * (2 + 3)
