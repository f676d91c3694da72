"""How pictures come to the networks, and what is told where one is missing."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.evaluation.metrics.image_reward import ImageReward
from ie_jax.evaluation.metrics.networks import centre, prepared, scaled
from ie_jax.evaluation.metrics.structure import Structure, inputs
from ie_jax.evaluation.metrics.table import Judges, Pair, measured


def test_without_torch_what_to_install_is_told_and_the_rest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for folder in ("dinov2-base", "dino", "clip-vit-base-patch32"):
        (tmp_path / folder).mkdir()
    judges = Judges(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    pair = Pair(pixels[0], pixels[1], "a cat", "a dog")
    for name in ("dinov2", "structure_distance", "clip_b32"):
        with pytest.raises(UserError, match=r"pip install 'ie_jax\[evaluation\]'"):
            measured(judges, pair, [name])
    found = measured(judges, pair, ["mse", "psnr", "ssim", "mse_edited"])
    assert found["mse"] > 0 and np.isnan(found["mse_edited"])


@pytest.mark.long("imports torch and transformers")
def test_folders_without_the_networks_are_told(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.numpy import save_file

    (tmp_path / "dinov2-base").mkdir()
    with pytest.raises(UserError, match="holds no readable Dinov2Model"):
        _ = Judges(tmp_path).dinov2
    file = tmp_path / "dino.safetensors"
    save_file({"a": np.zeros(1, np.float32)}, file)
    with pytest.raises(UserError, match="does not hold DINO's ViT"):
        Structure(file)
    with pytest.raises(UserError, match=r"ImageReward\.pt is not a file"):
        ImageReward(tmp_path, tmp_path)


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_executed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder, mark = tmp_path / "dinov2-base", tmp_path / "executed"
    folder.mkdir()
    config = {"model_type": "dinov2", "hidden_size": 8, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    torch.save({"a": Harmful(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds no readable Dinov2Model"):
        _ = Judges(tmp_path).dinov2
    (tmp_path / "dino").mkdir()
    torch.save({"a": Harmful(mark)}, tmp_path / "dino" / "dino_vitbase8_pretrain.pth")
    with pytest.raises(UserError, match="could run code"):
        _ = Judges(tmp_path).structure
    assert not mark.exists()


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.numpy import save_file

    folder = tmp_path / "dinov2-base"
    folder.mkdir()
    config = {"model_type": "dinov2", "hidden_size": 8, "num_attention_heads": 1}
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    save_file({"layernorm.weight": np.ones(8, np.float32)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="lacks weights of Dinov2Model: embeddings"):
        _ = Judges(tmp_path).dinov2


def test_results_of_another_size_are_refused() -> None:
    pair = Pair(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8), "", "")
    with pytest.raises(UserError, match="cannot be compared"):
        measured(Judges(), pair, ["mse"])
    small = Pair(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8), "", "")
    with pytest.raises(UserError, match="at least 11 pixels"):
        measured(Judges(), small, ["ssim"])


def test_half_pixels_go_where_the_originals_put_them() -> None:
    """transformers cuts downwards; torchvision rounds 1.5 to 2."""
    assert centre((227, 224)) == (slice(1, 225), slice(0, 224))
    assert centre((227, 224), rounded=True)[0] == slice(2, 226)
    assert scaled((213, 320), 224) == (224, 336) and scaled((320, 213), 224) == (336, 224)
    picture = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    assert prepared(picture).shape == (3, 224, 224)


def test_the_long_side_of_structure_is_bounded() -> None:
    pytest.importorskip("torch")
    tall = np.full((300, 100, 3), 255, np.uint8)
    seen = inputs(tall)
    assert seen.shape == (3, 480, 160)
    # Levels of up to 255 are normalised as if they were up to 1.
    np.testing.assert_allclose(seen[0], (255 - 0.485) / 0.229, rtol=1e-6)
