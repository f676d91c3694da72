"""From a folder of upstream files to networks and weights, strictly."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ie_jax.errors import UserError
from ie_jax.models.lora import lora_shapes
from ie_jax.weights import folder as model_folder
from ie_jax.weights.convert import flatten
from ie_jax.weights.folder import convert_files, scheduler_betas
from ie_jax.weights.formats import read_tensors
from ie_jax.weights.layout import find_files
from ie_jax.weights.published import FINE_TUNED
from tests.weights.server import TEACHER

PEFT = "unet.base_model.model."
A_MODULE = f"{PEFT}mid_block.resnets.0.conv1"


@pytest.fixture(scope="module", autouse=True)
def shapes_known() -> Iterator[None]:
    """The weight tree of each network is worked out once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unet_shapes", "vae_shapes", "text_encoder_shapes"):
            patch.setattr(model_folder, name, cache(getattr(model_folder, name)))
        yield


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoints to be spoilt."""
    shutil.copytree(checkpoints, tmp_path / "model", copy_function=shutil.copyfile)
    return tmp_path / "model"


Tensors = dict[str, np.ndarray]


def rewrite(path: Path, change: Callable[[Tensors], object]) -> None:
    """Changes the tensors of a file; a torch file gives way to a safetensors one."""
    tensors = {name: x.copy() for name, x in read_tensors(path).items()}
    change(tensors)
    path.unlink()
    save_file(tensors, path.with_suffix(".safetensors"))


def set_key(path: Path, key: str, value: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        convert_files(find_files(folder))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_tensor_of_the_files_is_converted(checkpoints: Path) -> None:
    arch, weights = convert_files(find_files(checkpoints))
    teacher = read_tensors(checkpoints / TEACHER)
    assert arch.unet.time_cond_proj_dim == teacher["time_embedding.cond_proj.weight"].shape[1]
    assert sum(x.size for x in jax.tree.leaves(weights.unet)) == sum(
        x.size for x in teacher.values()
    )
    for tree, name in ((weights.forward, FINE_TUNED), (weights.backward, "*reverse*")):
        (path,) = checkpoints.glob(name)
        published = load_file(path)
        assert len(jax.tree.leaves(tree)) == len(published)
        down = published[f"{A_MODULE}.lora_A.weight"]
        converted = tree["mid_block"]["resnets_0"]["conv1"]["down"]
        np.testing.assert_array_equal(converted, down.transpose(2, 3, 1, 0))
    assert arch.latent_factor == 64


def test_a_single_file_serves_for_all_networks(folder: Path) -> None:
    """Its autoencoder and text encoder; a teacher may have these names too."""
    expected = convert_files(find_files(folder))[1]
    text = folder / "stable-diffusion-v1-5" / "text_encoder"
    (path,) = text.glob("*.safetensors")
    names = {f"cond_stage_model.transformer.{name}": x for name, x in load_file(path).items()}
    path.unlink()
    names["model.diffusion_model.out.2.bias"] = np.zeros(4, np.float32)
    save_file(names, folder / "v1-5-pruned.safetensors")
    found = convert_files(find_files(folder))[1]
    jax.tree.map(np.testing.assert_array_equal, found.text_encoder, expected.text_encoder)


def test_all_that_is_wrong_with_a_network_is_told(folder: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        del tensors["conv_out.bias"]
        tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :, :1]
        tensors["conv_norm_out.weight"][0] = np.nan
        tensors["extra.conv1.weight"] = np.ones((2, 3, 1, 1), np.float32)

    rewrite(folder / TEACHER, spoil)
    message = refusal(folder)
    assert message.startswith(
        f"{folder / 'sd15_cfg_distill.safetensors'}: does not fit its network (4 problems): "
    )
    for part in (
        "conv_out/bias (4,) is missing",
        "conv_in.weight has shape (16, 4, 1, 3), which gives (1, 3, 4, 16), not (3, 3, 4, 16)",
        "conv_norm_out.weight holds NaN or infinite values",
        "extra.conv1.weight (2, 3, 1, 1) has no place in this network",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("file", "tensor"),
    [
        ("vae/diffusion_pytorch_model.safetensors", "decoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.weight"),
    ],
)
def test_the_other_networks_are_checked_too(folder: Path, file: str, tensor: str) -> None:
    path = folder / "stable-diffusion-v1-5" / file
    rewrite(path, lambda tensors: tensors[tensor].fill(np.inf))
    assert refusal(folder) == (
        f"{path}: does not fit its network (1 problems): {tensor} holds NaN or infinite values"
    )


def test_a_teacher_that_was_not_distilled_is_refused(folder: Path) -> None:
    rewrite(folder / TEACHER, lambda tensors: tensors.pop("time_embedding.cond_proj.weight"))
    assert "not the guidance-distilled UNet" in refusal(folder)


# --- LoRA ---


@pytest.mark.parametrize("rank", [1, 7])
def test_a_lora_of_another_rank_is_taken(folder: Path, rank: int) -> None:
    def resize(tensors: Tensors) -> None:
        for name, x in tensors.items():
            axis = 0 if ".lora_A." in name else 1
            tensors[name] = np.repeat(x[:1] if axis == 0 else x[:, :1], rank, axis)

    rewrite(folder / FINE_TUNED, resize)
    arch, weights = convert_files(find_files(folder))
    wanted = lora_shapes(model_folder.unet_shapes(arch.unet), rank)
    assert {path: x.shape for path, x in flatten(weights.forward).items()} == {
        path: x.shape for path, x in flatten(wanted).items()
    }
    other = weights.backward["mid_block"]["resnets_0"]["conv1"]["down"]
    assert other.shape[-1] == 4


def test_a_lora_of_another_model_is_refused(folder: Path) -> None:
    """One whose convolutions are twice as wide."""

    def widen(tensors: Tensors) -> None:
        for name, x in tensors.items():
            if ".conv1.lora_B." in name:
                tensors[name] = np.concatenate([x, x])

    rewrite(folder / FINE_TUNED, widen)
    message = refusal(folder)
    assert message.startswith(f"{folder / FINE_TUNED}: does not fit its network")
    assert "has shape (64, 4, 1, 1), which gives (1, 1, 4, 64), not (1, 1, 4, 32)" in message


def test_a_lora_of_a_part_of_the_modules_is_refused(folder: Path) -> None:
    rewrite(
        folder / FINE_TUNED,
        lambda tensors: [tensors.pop(f"{A_MODULE}.lora_{x}.weight") for x in "AB"],
    )
    message = refusal(folder)
    assert "mid_block/resnets_0/conv1/down (3, 3, 32, 4) is missing" in message
    assert "mid_block/resnets_0/conv1/up (1, 1, 4, 32) is missing" in message


# --- configs ---


@pytest.mark.parametrize(
    ("file", "key", "value", "problem"),
    [
        ("unet/config.json", "act_fn", "gelu", "act_fn = 'gelu' is not supported"),
        ("unet/config.json", "brand_new", 1, "unknown key brand_new = 1"),
        ("vae/config.json", "scaling_factor", "big", "scaling_factor = 'big' is not of type float"),
        ("vae/config.json", "act_fn", "relu", "act_fn = 'relu' is not supported"),
        ("text_encoder/config.json", "hidden_act", "relu", "hidden_act = 'relu' is not supported"),
        ("text_encoder/config.json", "layers", 3, "unknown key layers = 3"),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            "v_prediction",
            "prediction_type = 'v_prediction' is not supported (only 'epsilon')",
        ),
    ],
)
def test_configs_of_other_networks_are_refused(
    folder: Path, file: str, key: str, value: Any, problem: str
) -> None:
    path = folder / "stable-diffusion-v1-5" / file
    set_key(path, key, value)
    message = refusal(folder)
    assert message.startswith(f"{path}: ") and problem in message


def test_parts_that_do_not_fit_each_other_are_refused(folder: Path) -> None:
    path = folder / "stable-diffusion-v1-5" / "unet/config.json"
    set_key(path, "cross_attention_dim", 64)
    message = refusal(folder)
    assert "the UNet takes text of width 64, not 32 as the autoencoder and the text" in message


def test_betas_of_the_scheduler() -> None:
    assert scheduler_betas({}, "c") == (0.00085, 0.012, 1000)
    config = {
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "beta_end": 0.02,
        "num_train_timesteps": 500,
        "skip_prk_steps": True,
    }
    assert scheduler_betas(config, "c") == (0.001, 0.02, 500)


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "linear"},
        {"trained_betas": [0.1]},
        {"rescale_betas_zero_snr": True},
        {"beta_start": "0.1"},
        {"beta_end": None},
        {"beta_end": float("nan")},
        {"beta_end": 1.5},
        {"beta_start": 0.02, "beta_end": 0.01},
        {"beta_start": -0.1},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 1000.0},
        {"num_train_timesteps": True},
    ],
)
def test_schedules_of_other_kinds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^c: "):
        scheduler_betas(change, "c")
