"""The command: bad input, a run and its resumption, what it leaves behind."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from ie_jax.config import build, plain, read_yaml
from ie_jax.data.command import cache
from ie_jax.errors import UserError
from ie_jax.files import alone_in
from ie_jax.training import command
from ie_jax.training.command import fine_tune, require_same
from ie_jax.training.recipe import metadata
from ie_jax.training.stages import TrainConfig
from ie_jax.weights.convert import flatten
from ie_jax.weights.formats import read_metadata
from ie_jax.weights.load import load_pipeline
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.conftest import ROOT
from tests.tiny import SMALLEST
from tests.training.programs import Kept, shared
from tests.training.test_loop import lines, same_tensors

TINY = str(ROOT / "tests" / "training" / "tiny.yaml")


@pytest.fixture(scope="module", autouse=True)
def smallest() -> Iterator[None]:
    """The smallest model, and the repository as the current folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        yield


def tiny(folder: Path, *options: str) -> None:
    fine_tune(["--config", TINY, "--output", str(folder), "--quiet", *options])


@pytest.fixture(scope="module")
def programs() -> Kept:
    """Of `tiny` without options that change the stage."""
    return {}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, programs: Kept) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("train") / "whole"
    with shared(programs):
        tiny(folder)
    return folder


@pytest.mark.long("the first one trains: three starts of the command, one program")
def test_a_resumed_run_equals_an_uninterrupted_one(
    whole: Path, tmp_path: Path, programs: Kept
) -> None:
    with shared(programs):
        tiny(tmp_path / "parts", "--steps", "2")
        tiny(tmp_path / "parts", "--resume")
    assert lines(tmp_path / "parts") == lines(whole)
    for name in ("forward_lora", "forward_lora_ema", "forward_lora_best"):
        one, other = (folder / f"{name}.safetensors" for folder in (whole, tmp_path / "parts"))
        assert same_tensors(one, other), name
    assert (tmp_path / "parts" / "config.yaml").read_text() == (whole / "config.yaml").read_text()


def encode_debug_images(folder: Path, *options: str) -> None:
    cache([
        *("--model", "random", "--data.path", "configs/debug_images", "--dtype", "float32"),
        *("--output", str(folder), "--batch-size", "8", "--quiet", *options),
    ])  # fmt: skip


DISTILLATION = ("--cycle.cycle-weight", "0", "--cycle.preservation-weight", "0")
"""The loss that is compiled the soonest."""


@pytest.mark.slow  # two programs; tests/training/stages holds that an example is the same
def test_training_on_cached_latents_is_training_on_the_pictures(tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    encode_debug_images(latents, "--pixels")
    tiny(tmp_path / "pictures", *DISTILLATION)
    source = ("--data.source", "latents", "--data.path", str(latents))
    tiny(tmp_path / "latents run", *DISTILLATION, *source)
    ours, expected = lines(tmp_path / "latents run"), lines(tmp_path / "pictures")
    assert [row.keys() for row in ours] == [row.keys() for row in expected]
    for row, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(list(row.values()), list(other.values()), rtol=1e-3)


def test_cached_latents_without_pixels_serve_training_alone(tmp_path: Path) -> None:
    latents = tmp_path / "latents"
    encode_debug_images(latents)
    source = ("--data.source", "latents", "--data.path", str(latents))
    with pytest.raises(UserError, match=r"validation 3: .* no pixels: cache them too"):
        tiny(tmp_path / "run", *source)
    with pytest.raises(UserError, match=r"target image: .* no pixels: cache them too"):
        tiny(tmp_path / "run", *source, "--overwrite", "--cycle.target", "image")
    with pytest.raises(UserError, match="stage autoencoder needs images"):
        stage = ("--stage", "autoencoder", "--model", "configs/world/blueprint")
        tiny(tmp_path / "run", *source, "--overwrite", *stage, "--data.size", "16")


def test_the_lora_has_changed_and_the_editor_can_use_it(whole: Path) -> None:
    own = load_pipeline("random", forward=str(whole / "forward_lora.safetensors"))
    before = flatten(load_pipeline("random").weights.forward)
    after = flatten(own.weights.forward)
    assert before.keys() == after.keys()
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    ema = load_file(whole / "forward_lora_ema.safetensors")
    last = load_file(whole / "forward_lora.safetensors")
    assert ema.keys() == last.keys()
    assert any(not np.array_equal(ema[name], last[name]) for name in ema)


def test_what_a_run_leaves_behind(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} == {
        *("config.yaml", "checkpoints", "metrics.jsonl", "pictures", "tensorboard"),
        *(f"forward_lora{kind}.safetensors" for kind in ("", "_ema", "_best", "_best_ema")),
    }
    assert {path.name for path in (whole / "pictures").iterdir()} == {
        *("start.npz", "00000000.png", "00000002.png", "00000004.png"),
    }
    rows = lines(whole)
    assert [row["step"] for row in rows] == [0, 1, 2, 2, 3, 4, 4]
    names = ("lpips", "mse", "psnr", "psnr_to_autoencoder")
    assert set(rows[0]) == {"step", *(f"validation/{name}" for name in names)}
    assert {"sum/distillation", "sum/cycle", "sum/preservation", "sum/loss"} <= set(rows[1])
    assert yaml.safe_load((whole / "config.yaml").read_text()) == plain(
        build(TrainConfig, read_yaml(whole / "config.yaml"), "")
    )


def test_a_run_is_overwritten_when_asked_and_foreign_files_are_kept(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "again"
    shutil.copytree(whole, folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "failure.json").write_text("{}")
    request = command.TrainRequest(output=str(folder), overwrite=True)
    command.prepare_folder(folder, request, {"seed": 3})
    assert {path.name for path in folder.iterdir()} == {"notes.txt", "config.yaml"}


def test_resuming_refuses_other_settings(whole: Path) -> None:
    for option, told in [
        (["--seed", "1"], "seed was 0 and is 1"),
        (["--optimiser.learning-rate", "0.1"], "optimiser.learning_rate was 0.001 and is 0.1"),
        (["--data.validation", "2"], "data.validation was 3 and is 2"),
    ]:
        with pytest.raises(UserError) as caught:
            tiny(whole, "--resume", *option)
        assert str(caught.value) == f"cannot resume with other settings: {told}"


def test_settings_that_decide_nothing_may_change() -> None:
    old = plain(TrainConfig())
    new = plain(TrainConfig(steps=7, keep=5, log_every=1)) | {"mesh": {"fsdp": 2}}
    require_same(old, new)
    with pytest.raises(UserError, match="batch_size was 16 and is 8; seed was 0 and is 5"):
        require_same(old, plain(TrainConfig(batch_size=8, seed=5)))


def test_all_damaged_checkpoints_are_an_error(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*/facts/*"):
        path.write_text("{")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged: begin anew"):
        tiny(tmp_path / "run", "--resume")


def test_a_checkpoint_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="cannot use the checkpoint folder"):
        tiny(tmp_path, "--resume")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--steps", "0"], "steps 0 must be 1 or more"),
        (["--batch-size", "0"], "batch_size 0 must be 1 or more"),
        (["--batch-size", "3", "--accumulate", "2"], "batch_size 3 must divide by accumulate 2"),
        (["--seed", "-1"], "seed -1 must be from 0"),
        (["--pictures", "-1"], "pictures -1 must not be negative"),
        (["--mesh.fsdp", "0"], "mesh: fsdp 0 must be 1 or more"),
        (["--mesh.fsdp", "3"], "mesh.fsdp 3 must divide the number of devices"),
        (["--optimiser.learning-rate", "0"], "learning_rate, eps and clip must be positive"),
        (["--optimiser.betas", "0.9", "1"], r"betas \[0.9, 1.0\] must be from 0 to below 1"),
        (["--optimiser.weight-decay", "-1"], "weight_decay and warmup_steps must not be negative"),
        (["--optimiser.ema", "1"], "ema 1.0 must be from 0 to below 1"),
        (["--optimizer.ema", "1"], "did you mean --optimiser.ema"),
        (["--model", "sd16"], "no model or folder named 'sd16'"),
        (["--model", "icd-sd15-2"], r"cycle.boundaries \[519, 999\] must be those of icd-sd15-2"),
        (["--forward", "nothing/lora.safetensors"], "no LoRA file"),
        (["--perceptual", "nothing"], "no LPIPS weights at 'nothing'"),
        (["--data.path", "nothing"], "there is no such folder"),
        (["--cycle.patch-size", "17"], "patch_size 17 must be from 16 to the images' 16"),
        (["--cycle.patch-size", "15"], "patch_size 15 must be from 16"),
        (["--resume", "--overwrite"], "--resume and --overwrite contradict"),
        (["--coordinator", "localhost:1"], "--coordinator, --processes and --process-id go tog"),
        (["--config", "nothing.yaml"], "cannot read the config nothing.yaml"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, options: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        tiny(tmp_path / "run", *options)


def test_a_failed_start_leaves_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(UserError, match="there is no such folder"):
            tiny(tmp_path / name, "--data.path", "nothing")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("ie_jax.training.loop.Trainer.evaluate_if_due", fail)
    for name in ("new", "empty"):
        with pytest.raises(MemoryError):
            tiny(tmp_path / name)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_failed_start_loses_no_earlier_run(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run")
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="there is no such folder"):
        tiny(tmp_path / "run", "--overwrite", "--data.path", "nothing")
    assert sorted(path for path in (tmp_path / "run").rglob("*")) == before


def test_a_second_run_into_a_folder_is_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(UserError, match="another run is writing there"):
        tiny(tmp_path, "--resume")
    assert not list(tmp_path.iterdir())


def test_what_is_stopped_says_that_it_is_unfinished(whole: Path) -> None:
    state = SimpleNamespace(step=3)
    config = TrainConfig(steps=9)
    assert metadata(config, "cycle", state)["unfinished"] == "3 of 9 steps"  # type: ignore[arg-type]
    assert "unfinished" not in metadata(config, "cycle", state, best=True)  # type: ignore[arg-type]
    assert "unfinished" not in read_metadata(whole / "forward_lora.safetensors")


def test_an_output_folder_with_something_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty: give --resume, --overwrite or another"):
        tiny(tmp_path)
    with pytest.raises(UserError, match=r"notes.txt is a file: name a folder"):
        tiny(tmp_path / "notes.txt")
    with pytest.raises(UserError, match="cannot write to"):
        tiny(tmp_path / "notes.txt" / "run")


def test_no_output_is_one_line_and_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "train.py"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "error: --output is missing: name a folder for the run"


@pytest.mark.parametrize("name", ["debug", "cycle_sd15", "cycle_sd15_bf16"])
def test_the_configs_are_valid(name: str) -> None:
    config = build(TrainConfig, read_yaml(ROOT / "configs" / f"{name}.yaml"), name)
    assert json.loads(json.dumps(plain(config))) == plain(config)
