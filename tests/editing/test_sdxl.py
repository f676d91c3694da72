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

from ie_jax.data.images import load_image
from ie_jax.editing.command import edit
from ie_jax.editing.config import EditConfig, GuiderConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.methods.settings import MethodConfig
from ie_jax.methods.table import METHODS, settled
from ie_jax.models.execution import Precision
from ie_jax.models.unet import Conditions
from ie_jax.weights.folder import base_pipeline
from ie_jax.weights.load import facts_before_loading, load_pipeline
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.tiny import SMALLEST, SMALLEST_SDXL
from tests.weights.models import SDXL, write_sdxl, write_sdxl_pair

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


# --- iCD-SDXL ---


@pytest.fixture(scope="module")
def pair(turbo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest iCD-SDXL."""
    folder = tmp_path_factory.mktemp("pair")
    write_sdxl_pair(folder)
    return folder


@pytest.fixture(scope="module")
def guided(pair: Path) -> Editor:
    guiders = (GuiderConfig("self_attn_map_l2", 2e7),)
    config = EditConfig(str(pair), guiders=guiders, match_statistics=False)
    return Editor(load_pipeline(str(pair)), config)


def test_an_inversion_is_edited_many_times(guided: Editor) -> None:
    """By one call for two pictures and two prompts each, guided by our method."""
    assert guided.schedule.guidance.tolist() == [0, 7, 7, 7]
    assert guided.schedule.forward_t.tolist() == [19, 249, 499, 699]
    images = np.random.default_rng(2).integers(0, 256, (2, 16, 16, 3), np.uint8)
    inversion = guided.invert(images, ["a cat", "a red house"])
    assert isinstance(inversion.context, Conditions)
    assert inversion.context.pooled.shape == (2, 12)
    prompts = [["a dog", "a cat"], ["a blue house", "a tree"]]
    both = guided.edit(inversion, prompts)
    assert both.images.shape == (2, 2, 16, 16, 3)
    assert all(np.isfinite(x).all() for x in both.diagnostics.values())
    assert both.diagnostics["gradient_norm"].shape == (4, 2, 2)
    plain = guided.edit(inversion, prompts, scales=np.zeros((1, 4)))
    assert np.abs(both.images.astype(int) - plain.images).mean() > 0.1  # the guiders count
    again = guided.edit(inversion, [prompts[0][::-1], prompts[1][::-1]])
    difference = np.abs(again.images[:, ::-1].astype(int) - both.images)
    assert difference.max() <= 2
    # Without any of an edit its source comes back.
    none = guided.edit(inversion, prompts, strength=0.0, scales=np.zeros((1, 4)))
    assert np.abs(none.images[:, 0].astype(int) - guided.reconstruct(inversion)).max() <= 2


def test_masks_and_strengths(pair: Path, run: Callable[..., Any]) -> None:
    strengths = ("--strength", "0.5", "1", "--mask", "mask.png", "--mask-feather", "0")
    white = np.zeros((20, 16), bool)
    white[6:12] = True
    Image.fromarray(white).save("mask.png")
    record = run("--model", str(pair), *strengths)
    assert record["network_calls"] == 8
    source = load_image("photo.png", 16)
    for name in ("out-1.png", "out-2.png"):
        with Image.open(name) as result:
            pixels = np.asarray(result)
        np.testing.assert_array_equal(pixels[12:], source[12:])
        assert np.abs(pixels[6:8].astype(int) - source[6:8]).mean() > 1


def test_aspect_ratios_are_those_of_training(guided: Editor, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200)).save(tmp_path / "wide.png")
    wide = guided.variant(fit="aspect", size=1024)
    assert wide.load(tmp_path / "wide.png").shape == (832, 1216, 3)


@pytest.mark.slow
def test_icd_by_its_own_method(pair: Path, run: Callable[..., Any]) -> None:
    assert run("--model", str(pair), "--method", "icd")["network_calls"] == 12


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
