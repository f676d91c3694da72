"""Model folders that were written, as diffusers and transformers load them."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ie_jax.weights.convert import upstream
from ie_jax.weights.folder import write_parts
from ie_jax.weights.formats import read_tensors
from ie_jax.weights.layout import PARTS, PIPELINE
from ie_jax.weights.names import TEXT_ENCODER, UNET, VAE
from tests.parity.oracle import arrays, diffusers, torch, transformers
from tests.weights.models import METADATA, small_parts, write_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = write_plan(tmp_path_factory.mktemp("plan"))
    write_parts(plan.parent / "model", plan, small_parts(), METADATA, vae_scaling=0.5)
    return plan.parent / "model"


def assert_loaded(module: Any, expected: dict[str, np.ndarray]) -> None:
    found = arrays(module.state_dict())
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


LOADED = {"output_loading_info": True, "low_cpu_mem_usage": False}


def test_diffusers_loads_the_autoencoder(folder: Path) -> None:
    vae, told = diffusers.AutoencoderKL.from_pretrained(folder / PIPELINE / "vae", **LOADED)
    assert not any(told.values())
    assert vae.config.scaling_factor == 0.5
    assert_loaded(vae, upstream(small_parts()["vae"], VAE))


def test_diffusers_loads_the_denoiser(folder: Path) -> None:
    """The config in the folder is of the UNet after guidance distillation."""
    unet, told = diffusers.UNet2DConditionModel.from_pretrained(
        folder / PIPELINE / "unet", time_cond_proj_dim=None, **LOADED
    )
    assert not any(told.values())
    assert_loaded(unet, upstream(small_parts()["denoiser"], UNET))


def test_diffusers_loads_the_guidance_distilled_unet(folder: Path) -> None:
    config = json.loads((folder / PIPELINE / "unet/config.json").read_text())
    unet = diffusers.UNet2DConditionModel.from_config(config)
    state = read_tensors(folder / PARTS["unet"])
    unet.load_state_dict({name: torch.from_numpy(x) for name, x in state.items()})
    assert_loaded(unet, upstream(small_parts()["unet"], UNET))


def test_transformers_loads_the_text_encoder(folder: Path) -> None:
    model, told = transformers.CLIPTextModel.from_pretrained(
        folder / PIPELINE / "text_encoder", output_loading_info=True
    )
    assert not any(told.values())
    assert_loaded(model, upstream(small_parts()["text_encoder"], TEXT_ENCODER))


def test_transformers_writes_these_names(folder: Path, tmp_path: Path) -> None:
    model = transformers.CLIPTextModel.from_pretrained(folder / PIPELINE / "text_encoder")
    model.save_pretrained(tmp_path)
    found = read_tensors(tmp_path / "model.safetensors")
    expected = read_tensors(folder / PARTS["text_encoder"])
    assert found.keys() == expected.keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)
