"""Written LoRAs as upstream programs load them, and what those programs write, read here."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks.random_weights import add_lora
from ie_jax.models.architecture import unet_config
from ie_jax.models.lora import lora_shapes, merge, round_to_fp16
from ie_jax.models.shapes import unet_shapes
from ie_jax.weights.convert import convert, flatten
from ie_jax.weights.lora_files import lora_tensors_kohya, lora_tensors_peft, read_lora, write_lora
from ie_jax.weights.names import UNET
from tests.parity.oracle import (
    SHALLOW,
    arrays,
    diffusers,
    peft,
    randomised,
    relative,
    shallow,
    torch,
)
from tests.parity.oracle import upstream_shallow as theirs

load_torch = pytest.importorskip("safetensors.torch").load_file

RANK = 3
SHAPES = unet_shapes(unet_config(SHALLOW))


@pytest.fixture(scope="module")
def upstream() -> Any:
    """diffusers' UNet without a LoRA; every kind of target module is there."""
    return randomised(diffusers.UNet2DConditionModel.from_config(SHALLOW))


@pytest.fixture(scope="module")
def lora() -> Any:
    """Factors such that the LoRA changes the output well above rounding."""
    rng = np.random.default_rng(0)
    shapes = lora_shapes(SHAPES, RANK)
    return jax.tree.map(lambda x: 0.05 * rng.standard_normal(x.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def ours(upstream: Any) -> Callable[..., jax.Array]:
    """eps of the merged weights."""
    base = convert(arrays(upstream.state_dict()), UNET, SHAPES, "upstream")

    return lambda lora: shallow({"params": jax.jit(merge)(base, lora)})


def pipeline(unet: Any) -> Any:
    """diffusers' pipeline around a copy of the UNet, the other parts left out."""
    absent = ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    return diffusers.StableDiffusionPipeline(
        **dict.fromkeys(absent),
        unet=copy.deepcopy(unet),
        scheduler=scheduler,
        requires_safety_checker=False,
    )


@pytest.mark.long("a network is compiled with optimisation")
def test_the_lora_changes_the_output(ours: Callable[..., jax.Array], lora: Any) -> None:
    assert relative(ours(jax.tree.map(np.zeros_like, lora)), ours(lora)) > 0.03


def test_diffusers_loads_kohya_naming(
    tmp_path: Path, upstream: Any, ours: Callable[..., jax.Array], lora: Any
) -> None:
    write_lora(tmp_path / "a.safetensors", lora, "kohya")
    pipe = pipeline(upstream)
    pipe.load_lora_weights(tmp_path / "a.safetensors")
    assert relative(ours(lora), theirs(pipe.unet)) <= 1e-5


def test_peft_loads_peft_naming(
    tmp_path: Path, upstream: Any, ours: Callable[..., jax.Array], lora: Any
) -> None:
    """All but the part's name, `unet.`, is PEFT's; alpha and target modules are in no file."""
    write_lora(tmp_path / "a.safetensors", lora, "peft")
    state = load_torch(tmp_path / "a.safetensors")
    model = add_lora(copy.deepcopy(upstream), RANK)
    state = {name.removeprefix("unet."): x for name, x in state.items()}
    result = peft.set_peft_model_state_dict(model, state)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if "lora_" in name]
    assert relative(ours(lora), theirs(model)) <= 1e-5


def published_loader(path: Path, unet: Any) -> Any:
    """What the published code does with a LoRA file (`load_models` of Invertible Consistency
    Distillation): rename to kohya's naming with alpha 8, round to float16, give to diffusers'
    `load_lora_weights`, and `fuse_lora`."""
    state = {}
    for name, x in load_torch(path).items():
        module, _, factor = name.removeprefix("unet.base_model.model.").partition(".lora_")
        module = f"lora_unet_{module.replace('.', '_')}"
        part = {"A.weight": "lora_down.weight", "B.weight": "lora_up.weight"}[factor]
        state[f"{module}.{part}"] = x.half()
        state[f"{module}.alpha"] = torch.tensor(8.0).half()
    pipe = pipeline(unet)
    pipe.load_lora_weights(dict(state))
    pipe.fuse_lora()
    return pipe.unet, state


def test_the_published_loader(
    tmp_path: Path, upstream: Any, ours: Callable[..., jax.Array], lora: Any
) -> None:
    write_lora(tmp_path / "a.safetensors", lora, "peft")
    unet, renamed = published_loader(tmp_path / "a.safetensors", upstream)
    assert renamed.keys() == lora_tensors_kohya(lora).keys()
    rounded = round_to_fp16(jax.tree.map(jax.numpy.asarray, lora))
    assert relative(ours(rounded), theirs(unet)) <= 1e-5


@pytest.mark.parametrize("alpha", [8.0, 5.0])
def test_what_diffusers_writes_is_read(
    tmp_path: Path, upstream: Any, ours: Callable[..., jax.Array], lora: Any, alpha: float
) -> None:
    """By the UNet's own method, without a prefix, and by the pipeline's, with `unet.`."""
    config = peft.LoraConfig(r=RANK, lora_alpha=alpha, target_modules=targets(lora))
    unet = copy.deepcopy(upstream)
    unet.add_adapter(config)
    state = {name.removeprefix("unet.base_model.model."): x for name, x in tensors(lora).items()}
    peft.set_peft_model_state_dict(unet, state)
    expected = theirs(unet)

    unet.save_lora_adapter(tmp_path / "unet")
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path / "pipeline",
        unet_lora_layers=peft.get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
    )
    for folder in ("unet", "pipeline"):
        found = read_lora(tmp_path / folder / "pytorch_lora_weights.safetensors", SHAPES)
        assert relative(ours(found), expected) <= 1e-5


def test_what_peft_writes_is_read(tmp_path: Path, upstream: Any, lora: Any) -> None:
    model = add_lora(copy.deepcopy(upstream), RANK)
    state = {name.removeprefix("unet."): x for name, x in tensors(lora).items()}
    peft.set_peft_model_state_dict(model, state)
    model.save_pretrained(tmp_path)
    found = read_lora(tmp_path / "adapter_model.safetensors", SHAPES)
    jax.tree.map(np.testing.assert_array_equal, found, lora)


def tensors(lora: Any) -> dict[str, Any]:
    """The factors as torch tensors, in the names of the published files."""
    return {name: torch.from_numpy(x) for name, x in lora_tensors_peft(lora).items()}


def targets(lora: Any) -> list[str]:
    """The upstream names of the modules with LoRA."""
    names = (name.removeprefix("unet.base_model.model.") for name in lora_tensors_peft(lora))
    found = sorted({name.partition(".lora_")[0] for name in names})
    assert len(found) == len(flatten(lora)) / 2
    return found
