"""The world protocol, as a command."""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from ie_jax.data.world.edits import EDITS, possible
from ie_jax.data.world.scenes import ATTRIBUTES, TRAINING_SEEDS, draw_scene
from ie_jax.errors import UserError
from ie_jax.evaluation.__main__ import evaluation
from ie_jax.models.lora import lora_shapes
from ie_jax.models.shapes import draw
from ie_jax.weights.facts import Facts, as_metadata
from ie_jax.weights.folder import read_blueprint, shapes, write_parts
from ie_jax.weights.judges import classifier_shapes, random_lpips, save_classifier, save_lpips
from ie_jax.weights.layout import PARTS, PIPELINE, Part
from ie_jax.weights.lora_files import write_lora
from ie_jax.weights.untrained import write_word_tokenizer
from tests.weights.models import write_plan

SCENES = 4
TINY: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [8, 16],
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "cross_attention_dim": 16,
        "time_cond_proj_dim": 16,
    },
    "vae": {"block_out_channels": [8, 8, 8]},
    "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
}
"""What makes the model still smaller than the random one."""
ABLATION = "ablation-l2-forward.safetensors"
"""Beside the model's own forward LoRAs."""
OWN_START = 9
"""Where the fine-tuned one's inversion starts."""
SMALL = (
    *("--scenes", str(SCENES), "--seed", "1003", "--batch-size", "3", "--quiet"),
    *("--ddim-steps", "2", "--sweep-scenes", "3", "--sweep-batch", "3"),
    *("--strengths", "0", "1", "--bounds", "0", "0.5"),
    *("--schedules", "[0, 1, 1, 1]", "[0, 3, 3, 3]"),
)


def random_lora(base: Any, seed: int) -> Any:
    """Random everywhere: as drawn, a LoRA changes nothing."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: 0.1 * rng.standard_normal(x.shape, np.float32), lora_shapes(base, 2)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the shipped model's, with random weights."""
    root = tmp_path_factory.mktemp("model")
    plan = write_plan(root / "plan")
    for part, changes in TINY.items():
        path = plan / PIPELINE / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")
    write_word_tokenizer(plan / PIPELINE / "tokenizer", (), 24)
    arch = read_blueprint(plan).architecture
    networks: tuple[Part, ...] = ("vae", "text_encoder", "denoiser", "unet")
    loras: tuple[Part, ...] = ("forward", "backward", "fine_tuned")
    base = shapes("unet", arch)
    parts: dict[Part, Any] = {name: draw(shapes(name, arch), i) for i, name in enumerate(networks)}
    parts |= {name: random_lora(base, 9 + i) for i, name in enumerate(loras)}
    folder = root / "model"
    write_parts(folder, plan, parts, {})
    told = as_metadata(Facts(OWN_START, start_noise=False))
    write_lora(folder / PARTS["fine_tuned"], parts["fine_tuned"], metadata=told)
    write_lora(folder / ABLATION, random_lora(base, 20), metadata={})
    save_lpips(folder / "perceptual.safetensors", random_lpips(0, (4, 4, 4, 4, 4)))
    classifier = draw(classifier_shapes((4, 4), (1, 1)), 3)
    save_classifier(folder / "classifier.safetensors", classifier, {})
    return folder


@pytest.fixture(scope="module")
def output(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What one run wrote."""
    folder = tmp_path_factory.mktemp("results") / "new" / "folder"
    evaluation(["world", "--model", str(model), "--output", str(folder), *SMALL])
    yield folder


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, Any]:
    """results.json."""
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


@pytest.mark.parametrize("seed", [0, TRAINING_SEEDS.stop - 1])
def test_seeds_of_training_are_refused(seed: int, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^seed {seed} is one that models are trained on: .* 1000"
    ):
        evaluation(["world", "--seed", str(seed), "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the protocol is missing: name one first: world"),
        (["word"], "'word' is not a protocol: name one first: world"),
        (["world", "--scenes", "0"], "scenes and batch_size must be positive"),
        (["world", "--seed", "-1"], "seed -1 must not be negative"),
        (["world", "--places", "3"], "places 3 must be 1 or 2"),
        (["world", "--model", "nowhere"], "no model or folder named 'nowhere'"),
        (["world", "--ddim-steps", "3"], "ddim_steps 3 must divide 1000"),
        (["world", "--schedules", "[[0, 1]]"], "schedules must have as many values"),
    ],
)
def test_bad_input_is_told(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluation(argv)


def test_a_model_without_judges_says_so(model: Path, tmp_path: Path) -> None:
    write_parts(tmp_path / "model", model, {}, {})
    (tmp_path / "model" / "classifier.safetensors").unlink()
    with pytest.raises(UserError, match=r"classifier\.safetensors"):
        evaluation(["world", "--model", str(tmp_path / "model"), "--output", str(tmp_path / "o")])


@pytest.mark.long("the first one runs the whole protocol")
def test_rows_of_the_reconstruction_table(results: dict[str, Any]) -> None:
    rows = [(r["method"], r["start_timestep"], r["start_noise"]) for r in results["reconstruction"]]
    assert rows == [
        ("autoencoder", None, None),
        ("DDIM", None, None),
        *((name, t, noise) for name, t in (("iCD", 19), ("iCD", 0)) for noise in (True, False)),
        *(("ours", OWN_START, noise) for noise in (True, False)),
        *(("ablation: l2", 0, noise) for noise in (True, False)),
    ]
    for row in results["reconstruction"]:
        assert row["psnr"]["count"] == SCENES
        assert math.isfinite(row["perceptual"]["mean"])
    # Each has its own forward model, start and noise.
    assert len({row["psnr"]["mean"] for row in results["reconstruction"]}) == len(rows)
    assert results["reconstruction"][0]["psnr_to_autoencoder"]["mean"] is None
    assert results["files"]["ours"] == PARTS["fine_tuned"]


def test_rows_of_the_edit_table(results: dict[str, Any]) -> None:
    scenes = [draw_scene(1003, i) for i in range(SCENES)]
    counts = {kind: sum(possible(scene, kind) for scene in scenes) for kind in EDITS}
    kinds = {kind: n for kind, n in counts.items() if n} | {"all": sum(counts.values())}
    ways = [
        *(("iCD", guided, 19, True) for guided in (False, True)),
        *(("ours", guided, OWN_START, False) for guided in (False, True)),
    ]
    keys = ("method", "guided", "start_timestep", "start_noise")
    for way in ways:
        found = [row for row in results["edits"] if tuple(row[key] for key in keys) == way]
        assert {row["kind"]: row["success"]["count"] for row in found} == kinds
    assert len(results["edits"]) == (len(ways) + 1) * len(kinds)


def test_no_strength_and_a_bound_of_zero_are_the_plain_edit(results: dict[str, Any]) -> None:
    points = {
        (p["sweep"], str(p["value"]), p["guided"]): p["psnr_to_truth"]["mean"]
        for p in results["tradeoff"]["points"]
    }
    plain = points["schedule", str([0.0, 1.0, 1.0, 1.0]), False]
    assert points["strength", "0.0", True] == pytest.approx(plain, abs=1e-3)
    assert points["bound", "0.0", True] == pytest.approx(plain, abs=1e-3)
    assert points["strength", "1.0", True] == points["bound", "0.5", True]
    assert results["tradeoff"]["scenes"] == 3


def test_judges_are_judged(results: dict[str, Any]) -> None:
    for part in (results["classifier"], *results["samples"]):
        assert list(part["accuracy"]) == [*ATTRIBUTES, "all"]
        assert part["count"] == SCENES
    assert [part["method"] for part in results["samples"]] == ["teacher", "backward", "backward"]


def test_what_is_written(output: Path, results: dict[str, Any]) -> None:
    tables = ("reconstruction", "edits", "edits-by-kind", "tradeoff", "schedules", "classifier")
    together = (output / "tables.md").read_text()
    for name in tables:
        assert (output / f"{name}.md").read_text() in together
    with (output / "reconstruction.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["psnr"]) for row in rows] == [
        row["psnr"]["mean"] for row in results["reconstruction"]
    ]
    with Image.open(output / "pictures-reconstruction.png") as picture:
        assert picture.size == (8 + 5 * 136, SCENES * 128 + 35)
    with Image.open(output / "pictures-samples.png") as picture:
        assert picture.size == (8 + 4 * 136, SCENES * 128 + 35)
    with Image.open(output / "pictures-edits.png") as picture:
        assert picture.size[0] == 8 + 6 * 136
    plots = {f"plot-{name}.png" for name in ("reconstruction", "edits", "tradeoff")}
    pictures = {f"pictures-{name}.png" for name in ("samples", "reconstruction", "edits")}
    files = {f"{name}.{suffix}" for name in tables for suffix in ("md", "csv")}
    found = {path.name for path in output.iterdir()}
    assert found - plots == {"results.json", "tables.md"} | pictures | files
