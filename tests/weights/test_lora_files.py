"""LoRA files of other tools change the weights as their own tools would."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ie_jax.errors import UserError
from ie_jax.models.lora import delta, lora_shapes
from ie_jax.models.shapes import unet_shapes
from ie_jax.weights.convert import flatten
from ie_jax.weights.folder import architecture
from ie_jax.weights.load import facts_before_loading, lora_file
from ie_jax.weights.lora_files import (
    lora_tensors_kohya,
    lora_tensors_peft,
    read_fitting,
    read_lora,
)
from ie_jax.weights.original import originals, unet_name
from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.tiny import SMALLEST_MODEL
from tests.weights.models import SDXL

BASE = unet_shapes(SMALLEST_MODEL.unet)
RANK = 3
Tensors = dict[str, np.ndarray]


def tree(rank: int = RANK) -> Any:
    """A LoRA none of whose factors is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), lora_shapes(BASE, rank))


def changes(lora: Any) -> dict[str, np.ndarray]:
    """What each weight changes by, by module."""
    flat = flatten(lora)
    modules = {path.rpartition("/")[0] for path in flat}
    return {x: np.asarray(delta(flat[f"{x}/down"], flat[f"{x}/up"])) for x in modules}


def same_strength(path: Path, times: Callable[[str], float] = lambda module: 1.0) -> None:
    """The file changes each weight by that many times what `tree` does with alpha 8."""
    found, expected = changes(read_lora(path, BASE)), changes(tree())
    assert found.keys() == expected.keys()
    for module, x in expected.items():
        np.testing.assert_allclose(found[module], times(module) * x, rtol=2e-3, atol=1e-4)


def published() -> Tensors:
    return lora_tensors_peft(tree())


def renamed(change: Callable[[str], str]) -> Tensors:
    return {change(name): x for name, x in published().items()}


def old_diffusers(name: str) -> str:
    """As training scripts write attention: `to_q.lora.down`; all else as PEFT."""
    name = name.replace("base_model.model.", "")
    if re.search(r"\.to_(q|k|v|out\.0)\.", name):
        return name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
    return name


def processors(name: str) -> str:
    """As the oldest scripts did: `attn1.processor.to_q_lora.down`."""
    name = old_diffusers(name).replace(".to_out.0.lora.", ".to_out.lora.")
    return re.sub(r"\.(to_(?:q|k|v|out))\.lora\.", r".processor.\1_lora.", name)


def original(separator: str, prefix: str) -> Callable[[str], str]:
    """As tools name modules that work on single-file checkpoints."""

    def name(theirs: str) -> str:
        module, _, factor = theirs.removeprefix("unet.base_model.model.").partition(".lora_")
        old = originals(module, layers=1)[-1]
        assert unet_name(f"{old}.weight", layers=1) == f"{module}.weight"
        part = {"A": "down", "B": "up"}[factor[0]]
        return f"{prefix}{old.replace('.', separator)}.lora_{part}.weight"

    return name


NAMINGS: dict[str, Callable[[str], str]] = {
    "a single-file checkpoint's": original(".", "diffusion_model."),
    "an adapter's name": lambda x: x.replace("_A.weight", "_A.default_0.weight").replace(
        "_B.weight", "_B.default_0.weight"
    ),
    "training scripts": old_diffusers,
    "processors": processors,
    "linear layers": lambda x: old_diffusers(x).replace(".lora.", ".lora_linear_layer."),
    "diffusion_model": lambda x: x.replace("unet.base_model.model.", "diffusion_model."),
    "compiled": lambda x: x.replace("base_model.model.", "base_model.model._orig_mod."),
}


@pytest.mark.parametrize("naming", sorted(NAMINGS))
def test_every_naming_is_the_same_lora(naming: str, tmp_path: Path) -> None:
    tensors = renamed(NAMINGS[naming])
    assert tensors.keys() != published().keys()
    save_file(tensors, tmp_path / "a.safetensors")
    same_strength(tmp_path / "a.safetensors")


def write_peft(folder: Path, name: str = "adapter_model.safetensors", **config: Any) -> Path:
    """A folder as PEFT saves it."""
    folder.mkdir(exist_ok=True)
    save_file(published(), folder / name)
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8} | config)
    )
    return folder / name


@pytest.mark.parametrize(
    ("config", "times"),
    [
        ({"lora_alpha": 16}, lambda module: 2.0),
        ({"lora_alpha": 4}, lambda module: 0.5),
        ({"lora_alpha": 8, "use_rslora": True}, lambda module: math.sqrt(RANK)),
        (
            {"alpha_pattern": {"conv1": 24, r".*attn2\.to_q": 2}},
            lambda module: (
                3.0 if module.endswith("/conv1") else 0.25 if "attn2/to_q" in module else 1.0
            ),
        ),
    ],
)
def test_a_config_beside_the_file_says_how_strong(
    config: dict[str, Any], times: Any, tmp_path: Path
) -> None:
    path = write_peft(tmp_path / "adapter", **config)
    same_strength(path, times)
    same_strength(path.parent, times)
    # Whatever the only file is called, it is the config's; beside others it is not.
    other = write_peft(tmp_path / "renamed", "mine.safetensors", **config)
    same_strength(other, times)
    save_file(published(), tmp_path / "renamed" / "b.safetensors")
    same_strength(other)


def test_the_folder_is_as_good_as_the_file(tmp_path: Path) -> None:
    path = write_peft(tmp_path / "adapter")
    assert lora_file(str(path.parent)) == lora_file(str(path)) == path


def test_ranks_may_differ_by_layer(tmp_path: Path) -> None:
    """Convolutions of kohya's LoCon have a rank of their own, and the rank is their alpha."""
    tensors = lora_tensors_kohya(tree())
    wide: Tensors = {}
    for name, x in tensors.items():
        if name.endswith("alpha"):
            continue
        if "conv" in name:
            more = np.zeros((2, *x.shape[1:]) if "_down." in name else (len(x), 2, *x.shape[2:]))
            x = np.concatenate([x, more.astype(x.dtype)], axis=0 if "_down." in name else 1)
        wide[name] = x
    save_file(wide, tmp_path / "a.safetensors")
    # alpha / rank is 1 everywhere; `tree` has 8 / 3.
    same_strength(tmp_path / "a.safetensors", lambda module: RANK / 8)


def test_layouts_of_factors_may_be_swapped(tmp_path: Path) -> None:
    """Linear layers as 1 x 1 convolutions, and 1 x 1 convolutions as linear layers."""
    tensors = published()
    for name, x in tensors.items():
        if x.ndim == 2:
            tensors[name] = x[:, :, None, None]
        elif x.shape[2:] == (1, 1):
            tensors[name] = x[:, :, 0, 0]
    save_file({n: np.ascontiguousarray(x) for n, x in tensors.items()}, tmp_path / "a.safetensors")
    same_strength(tmp_path / "a.safetensors")


def refusal(tensors: Tensors, path: Path) -> str:
    save_file(tensors, path)
    with pytest.raises(UserError) as caught:
        read_lora(path, BASE)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("tensors", [lora_tensors_peft, lora_tensors_kohya])
def test_layers_around_transformers_may_be_dense(tensors: Any, tmp_path: Path) -> None:
    """As SDXL's are."""
    base = unet_shapes(architecture(RANDOM_CONFIGS | SDXL, "").unet)
    lora = jax.tree.map(lambda x: np.ones(x.shape, np.float32), lora_shapes(base, RANK))
    assert lora["mid_block"]["attentions_0"]["proj_in"]["down"].shape == (16, RANK)
    save_file(tensors(lora), tmp_path / "lora.safetensors")
    jax.tree.map(
        np.testing.assert_array_equal, read_lora(tmp_path / "lora.safetensors", base), lora
    )


def test_what_is_no_plain_lora_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert "no LoRA" in refusal({"other.weight": np.ones(3)}, path)
    assert "no LoRA" in refusal({"mid_block.resnets.0.conv1.lora_A.weight": np.ones(3)}, path)
    two = renamed(NAMINGS["an adapter's name"])
    two |= {name.replace("default_0", "second"): x for name, x in two.items()}
    assert "several adapters (default_0, second)" in refusal(two, path)
    twice = published() | renamed(NAMINGS["diffusion_model"])
    assert "a second time" in refusal(twice, path)
    first = next(iter(published()))
    magnitude = first.replace("lora_A.weight", "lora_magnitude_vector")
    dora = published() | {magnitude: np.ones(3)}
    assert "lora_magnitude_vector (3,) is not a tensor of this network" in refusal(dora, path)


# --- the model that a LoRA belongs to ---

TRAINED = {"model": "icd-sd15", "boundaries": "259 519 779 999", "start_timestep": "0"}


def wide(metadata: dict[str, str], path: Path) -> Path:
    """A LoRA for text of twice the width."""
    tensors = published()
    for name, x in tensors.items():
        if re.search(r"attn2\.to_[kv]\.lora_A", name):
            tensors[name] = np.concatenate([x, x], axis=1)
    save_file(tensors, path, metadata)
    return path


def test_another_models_lora_names_its_model(tmp_path: Path) -> None:
    path = wide(TRAINED, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"belongs to another model: take --model icd-sd15$"):
        read_fitting(path, BASE, "world")
    unsaid = wide({"start_timestep": "soon"}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=r"text of width 64\), world has width 32$"):
        read_fitting(unsaid, BASE, "world")


def test_a_lora_brings_its_start_and_needs_its_boundaries(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(published(), path, TRAINED | {"start_timestep": "19"})
    assert facts_before_loading("icd-sd15", str(path)).start_timestep == 19
    save_file(published(), path, TRAINED | {"boundaries": "333 666 999"})
    with pytest.raises(UserError, match=r"was trained for boundaries \[333, 666, 999\].*icd-sd15$"):
        facts_before_loading("icd-sd15", str(path))
