"""Each stage of the embedded world's chain loads what the one before wrote; the end is a model."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from ie_jax.config import build as make
from ie_jax.config import read_yaml
from ie_jax.data.world.captions import WORDS
from ie_jax.data.world.scenes import ATTRIBUTES
from ie_jax.devices import make_mesh
from ie_jax.errors import UserError
from ie_jax.models.classifier import classify
from ie_jax.models.lora import lora_shapes
from ie_jax.models.shapes import draw
from ie_jax.training.command import fine_tune
from ie_jax.training.stage import initial_state
from ie_jax.training.stages import TrainConfig, build
from ie_jax.training.stages.autoencoder import DECODER
from ie_jax.training.step import make_step
from ie_jax.weights.facts import Facts
from ie_jax.weights.folder import read_blueprint, read_parts, shapes, write_parts
from ie_jax.weights.formats import read_metadata
from ie_jax.weights.judges import VALUES, load_classifier
from ie_jax.weights.layout import PARTS, PIPELINE, Part
from ie_jax.weights.load import facts_before_loading, load_pipeline
from ie_jax.weights.untrained import write_word_tokenizer
from tests.conftest import ROOT

CONFIGS = ROOT / "configs" / "world"
BLUEPRINT = CONFIGS / "blueprint"
SMALL: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [16],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "norm_num_groups": 8,
        "cross_attention_dim": 16,
        "time_cond_proj_dim": 16,
    },
    "vae": {"block_out_channels": [16, 16]},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
}
EACH = (
    *("--steps", "2", "--batch-size", "2", "--evaluate-every", "2", "--save-every", "2"),
    *("--log-every", "1", "--data.validation", "2", "--data.world-scenes", "64", "--quiet"),
    *("--optimiser.warmup-steps", "0", "--optimiser.decay-steps", "9"),
)
L2 = ("--cycle.distance", "l2")
"""LPIPS is in the tests of the command."""
UNSEEN = ("--data.validation", "0")
"""Validation is a program of its own, which two stages are enough to test."""
SHORT: dict[str, tuple[str, ...]] = {
    "perceptual": ("--classifier.widths", "8", "8", "--classifier.depths", "1", "1"),
    "classifier": ("--classifier.widths", "8", "8", "--classifier.depths", "1", "1"),
    "guidance": UNSEEN,
    "consistency": (*UNSEEN, "--consistency.rank", "2"),
    "cycle": (*UNSEEN, "--cycle.order", "sum", "--cycle.preservation-weight", "0", *L2),
}


def run(stage: str, model: Path, folder: Path, *options: str) -> Path:
    """Two steps of a stage's own config; the model folder that it writes."""
    argv = ["--config", str(CONFIGS / f"{stage}.yaml"), "--model", str(model)]
    fine_tune([*argv, "--output", str(folder), *EACH, *SHORT.get(stage, ()), *options])
    return folder / "model"


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model folder after each of the first stages."""
    root = tmp_path_factory.mktemp("chain")
    for path in BLUEPRINT.rglob("*"):
        if path.is_file():
            target = root / "blueprint" / path.relative_to(BLUEPRINT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    for part, changes in SMALL.items():
        path = root / "blueprint" / PIPELINE / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    folders = {"blueprint": root / "blueprint"}
    model = folders["blueprint"]
    for stage in ("autoencoder", "perceptual", "classifier"):
        model = folders[stage] = run(stage, model, root / stage)
    return folders


@pytest.fixture(scope="module")
def chain(begun: dict[str, Path]) -> dict[str, Path]:
    """The model folder after every stage."""
    folders, root = dict(begun), begun["blueprint"].parent
    model = folders["classifier"]
    for stage in ("denoiser", "guidance", "consistency", "cycle"):
        model = folders[stage] = run(stage, model, root / stage)
    return folders


def validations(run: Path) -> list[float]:
    """The squared errors that a run measured, in order."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line["validation/mse"] for line in lines if "validation/mse" in line]


@pytest.mark.long("the first one trains three stages")
def test_training_goes_on_from_a_model(begun: dict[str, Path], tmp_path: Path) -> None:
    goes_on(begun, "autoencoder", tmp_path)


def test_the_decoder_alone_is_trained_by_muon(begun: dict[str, Path], tmp_path: Path) -> None:
    new = run("decoder", begun["autoencoder"], tmp_path / "on")
    before, after = (read_parts(folder, ["vae"])["vae"] for folder in (begun["autoencoder"], new))
    for name in before:
        same = jax.tree.map(np.array_equal, before[name], after[name])
        assert all(jax.tree.leaves(same)) == (name not in DECODER), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_of_the_denoiser_goes_on(chain: dict[str, Path], tmp_path: Path) -> None:
    goes_on(chain, "denoiser", tmp_path)


def goes_on(chain: dict[str, Path], stage: str, tmp_path: Path) -> None:
    """A further run starts where the one before ended."""
    new = run(stage, chain[stage], tmp_path / "on", "--start", "model").parent
    before, after = validations(chain[stage].parent), validations(new)
    assert after[0] == pytest.approx(before[-1], rel=1e-3)
    assert before[0] != pytest.approx(before[-1], rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_last_folder_is_a_model_like_the_published(chain: dict[str, Path]) -> None:
    folder = str(chain["cycle"])
    pipeline = load_pipeline(folder)
    assert pipeline.architecture.unet.time_cond_proj_dim == 16
    assert pipeline.facts == Facts(0, (259, 519, 779, 999), (0.0, 1.0, 1.0, 1.0), "world")
    assert facts_before_loading(str(chain["consistency"])) == replace(
        pipeline.facts, start_timestep=19
    )
    same = load_file(chain["consistency"] / PARTS["backward"])
    assert all((load_file(chain["cycle"] / PARTS["backward"])[k] == same[k]).all() for k in same)
    old = load_file(chain["consistency"] / PARTS["forward"])
    new = load_file(chain["cycle"] / PARTS["fine_tuned"])
    assert any((old[name] != new[name]).any() for name in old)


def test_the_first_stages_change_their_own_parts_and_no_others(begun: dict[str, Path]) -> None:
    own_parts(begun)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_stage_changes_its_own_parts_and_no_others(chain: dict[str, Path]) -> None:
    own_parts(chain)


def own_parts(chain: dict[str, Path]) -> None:
    """A stage writes its own parts and leaves all others."""
    stages = list(chain)
    new = {
        "autoencoder": {"vae"},
        "denoiser": {"denoiser", "text_encoder"},
        "guidance": {"unet"},
        "consistency": {"forward", "backward"},
        "cycle": {"fine_tuned"},
    }
    for before, after in itertools.pairwise(stages):
        found = {
            name
            for name, path in PARTS.items()
            if (chain[after] / path).is_file()
            and (
                not (chain[before] / path).is_file()
                or (chain[before] / path).read_bytes() != (chain[after] / path).read_bytes()
            )
        }
        assert found == new.get(after, set()), after


def test_latents_have_unit_variance_after_the_first_stage(begun: dict[str, Path]) -> None:
    config = json.loads((begun["autoencoder"] / PIPELINE / "vae" / "config.json").read_text())
    assert config["scaling_factor"] == 1.0
    assert read_parts(begun["autoencoder"], ["vae"])["vae"]["quant_conv"]["kernel"].shape[-1] == 16


@pytest.mark.slow
def test_files_say_how_they_were_trained(chain: dict[str, Path]) -> None:
    facts = read_metadata(chain["cycle"] / PARTS["fine_tuned"])
    assert facts["stage"] == "cycle"
    assert facts["steps"] == "2"
    assert facts["data"] == "world"


def test_the_classifier_comes_along(begun: dict[str, Path]) -> None:
    params = load_classifier(begun["classifier"] / "classifier.safetensors")
    logits = classify(params, jnp.zeros((2, 64, 64, 3)))
    assert {name: x.shape for name, x in logits.items()} == {n: (2, c) for n, c in VALUES.items()}
    assert {name: len(values) for name, values in ATTRIBUTES.items()} == VALUES


@pytest.mark.parametrize("stage", ["denoiser", "guidance", "consistency", "cycle"])
def test_the_step_of_each_later_stage_is_one_program(
    begun: dict[str, Path], stage: str, tmp_path: Path
) -> None:
    """It is traced and not compiled, on random weights in the place of the stages before."""
    folder = tmp_path / "model"
    arch = read_blueprint(begun["classifier"]).architecture
    networks: tuple[Part, ...] = ("text_encoder", "denoiser", "unet")
    loras: tuple[Part, ...] = ("forward", "backward")
    parts: dict[Part, Any] = {name: draw(shapes(name, arch), 1) for name in networks}
    parts |= {name: draw(lora_shapes(parts["unet"], 2), 2) for name in loras}
    write_parts(folder, begun["classifier"], parts, {})
    settings = read_yaml(CONFIGS / f"{stage}.yaml") | {"model": str(folder)}
    recipe = build(make(TrainConfig, settings, stage))
    state = initial_state(recipe.stage, recipe.params)
    batch = {"pixels": np.zeros((2, 64, 64, 3), np.uint8), "ids": np.zeros((2, 16), np.int32)}
    step = make_step(recipe.stage, make_mesh(devices=jax.devices()[:1]))
    after, metrics = jax.eval_shape(step, state, recipe.frozen, batch, jax.random.key(0))
    same = jax.tree.map(lambda x, y: x.shape == y.shape, after, state)
    assert jax.tree.all(same)
    assert {f"{name}/loss" for name in recipe.stage.losses} <= set(metrics)


def test_one_stage_is_trained_anew_from_the_model_that_comes_along() -> None:
    for stage, model in (("cycle", "world-icd"), ("consistency", "world"), ("decoder", "world")):
        settings = read_yaml(CONFIGS / f"{stage}.yaml") | {"model": model}
        recipe = build(make(TrainConfig, settings, stage))
        assert jax.tree.leaves(recipe.params)


def test_a_stage_without_what_it_needs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing: training of the autoencoder writes it"):
        run("denoiser", BLUEPRINT, tmp_path / "out")
    with pytest.raises(UserError, match="goes on from a trained encoder: --start model"):
        run("decoder", BLUEPRINT, tmp_path / "out", "--start", "nothing")
    with pytest.raises(UserError, match="a classifier is trained from nothing: leave --start out"):
        run("classifier", BLUEPRINT, tmp_path / "out", "--start", "model")


def test_the_blueprint_knows_all_words_of_the_world(tmp_path: Path) -> None:
    size = write_word_tokenizer(tmp_path / "tokenizer", WORDS, 16)
    assert read_blueprint(BLUEPRINT).architecture.text.vocab_size == size
    for path in (tmp_path / "tokenizer").iterdir():
        assert (BLUEPRINT / PIPELINE / "tokenizer" / path.name).read_text() == path.read_text()
