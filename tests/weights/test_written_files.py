"""Networks, and LoRA files in both namings, written and read back."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from ie_jax.errors import UserError
from ie_jax.models.architecture import unet_config
from ie_jax.models.lora import delta, lora_shapes
from ie_jax.models.shapes import unet_shapes
from ie_jax.weights import untrained
from ie_jax.weights.convert import Number, convert, flatten, upstream, write_network
from ie_jax.weights.formats import read_metadata, read_tensors
from ie_jax.weights.layout import Part
from ie_jax.weights.load import load_pipeline
from ie_jax.weights.lora_files import (
    NAMINGS,
    Naming,
    lora_tensors_kohya,
    lora_tensors_peft,
    read_lora,
    write_lora,
)
from ie_jax.weights.names import LORA, TEXT_ENCODER, UNET, VAE
from ie_jax.weights.published import FINE_TUNED
from tests.weights.models import small_parts
from tests.weights.server import REVERSE

SMALL = untrained.RANDOM_CONFIGS["unet"]
SD15 = {  # all kinds of block of Stable Diffusion 1.5, one layer each
    **SMALL,
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
CONFIGS = {"small": SMALL, "sd15": SD15}
A_MODULE = ("mid_block", "attentions_0", "transformer_blocks_0", "attn1", "to_out_0")
A_PEFT = "unet.base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
A_KOHYA = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0"


@cache
def base(name: str) -> dict[str, Any]:
    return unet_shapes(unet_config(CONFIGS[name]))


def tree(name: str = "small", rank: int = 3, seed: int = 0) -> Any:
    """A LoRA none of whose factors is zero."""
    rng = np.random.default_rng(seed)
    shapes = lora_shapes(base(name), rank)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), shapes)


def module(lora: Any) -> Any:
    for name in A_MODULE:
        lora = lora[name]
    return lora


def assert_same(found: Any, expected: Any) -> None:
    found, expected = flatten(found), flatten(expected)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].tobytes() == x.tobytes(), name


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_lora(path, base("small"))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message


# --- networks ---

TABLES: dict[Part, Any] = {
    "unet": UNET,
    "denoiser": UNET,
    "vae": VAE,
    "text_encoder": TEXT_ENCODER,
}


@pytest.mark.parametrize("part", sorted(TABLES))
def test_a_network_comes_back_bit_by_bit(tmp_path: Path, part: Part) -> None:
    network, table = small_parts()[part], TABLES[part]
    write_network(tmp_path / "a.safetensors", network, table)
    found = convert(read_tensors(tmp_path / "a.safetensors"), table, network, "file")
    assert_same(found, network)


def test_all_kinds_of_block_have_upstream_names() -> None:
    rng = np.random.default_rng(0)
    network = jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), base("sd15"))
    assert_same(convert(upstream(network, UNET), UNET, network, "tensors"), network)


def test_upstream_names_of_networks() -> None:
    unet, vae = upstream(small_parts()["unet"], UNET), upstream(small_parts()["vae"], VAE)
    text = upstream(small_parts()["text_encoder"], TEXT_ENCODER)
    assert unet["time_embedding.linear_1.weight"].shape == (128, 32)
    assert unet["time_embedding.cond_proj.weight"].shape == (32, 64)
    assert "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj.weight" in unet
    assert vae["encoder.mid_block.attentions.0.to_out.0.weight"].shape == (32, 32)
    assert vae["quant_conv.weight"].shape == (8, 8, 1, 1)
    assert text["embeddings.token_embedding.weight"].shape == (514, 32)
    assert text["encoder.layers.1.mlp.fc1.weight"].shape == (64, 32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_number_type_and_header_of_a_network(tmp_path: Path, dtype: Number) -> None:
    path = tmp_path / "a.safetensors"
    write_network(path, small_parts()["vae"], VAE, dtype, {"steps": "3"})
    assert {x.dtype for x in load_file(path).values()} == {np.dtype(dtype)}
    assert read_metadata(path) == {"format": "pt", "steps": "3"}


def test_another_networks_leaf_has_no_name() -> None:
    with pytest.raises(LookupError, match="gain has no upstream name"):
        upstream({"conv_in": {"gain": np.ones(1)}}, UNET)


# --- names and layouts ---


@pytest.mark.parametrize("file", [FINE_TUNED, REVERSE])
def test_the_published_files_come_back_bit_by_bit(checkpoints: Path, file: str) -> None:
    published = load_file(checkpoints / file)
    config = json.loads((checkpoints / "stable-diffusion-v1-5/unet/config.json").read_text())
    shapes = unet_shapes(unet_config(config | {"time_cond_proj_dim": 512}))
    lora = convert(published, LORA, lora_shapes(shapes, 4), file)
    assert_same(lora_tensors_peft(lora), published)


def test_names_and_layouts() -> None:
    lora = tree()
    down, up = module(lora)["down"], module(lora)["up"]
    tensors = lora_tensors_peft(lora)
    np.testing.assert_array_equal(tensors[f"{A_PEFT}.lora_A.weight"], down.T)
    np.testing.assert_array_equal(tensors[f"{A_PEFT}.lora_B.weight"], up.T)
    kernel = lora["mid_block"]["resnets_0"]["conv1"]["down"]
    written = tensors["unet.base_model.model.mid_block.resnets.0.conv1.lora_A.weight"]
    np.testing.assert_array_equal(written, kernel.transpose(3, 2, 0, 1))

    tensors = lora_tensors_kohya(lora)
    np.testing.assert_array_equal(tensors[f"{A_KOHYA}.lora_down.weight"], down.T)
    np.testing.assert_array_equal(tensors[f"{A_KOHYA}.lora_up.weight"], up.T)
    alpha = tensors[f"{A_KOHYA}.alpha"]
    assert alpha.shape == () and alpha == 8
    assert len(tensors) == 3 * len(flatten(lora)) // 2


@settings(max_examples=25)
@given(
    config=st.sampled_from(sorted(CONFIGS)),
    rank=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
    naming=st.sampled_from(sorted(NAMINGS)),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, config: str, rank: int, seed: int, naming: Naming
) -> None:
    path = tmp_path_factory.getbasetemp() / "lora.safetensors"
    lora = tree(config, rank, seed)
    write_lora(path, lora, naming)
    assert_same(read_lora(path, base(config)), lora)


def test_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, tree(rank=3), "kohya", {"steps": "100", "learning_rate": "8e-6"})
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {
            "format": "pt",
            "rank": "3",
            "alpha": "8.0",
            "steps": "100",
            "learning_rate": "8e-6",
        }


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("naming", sorted(NAMINGS))
def test_numbers_keep_their_type(tmp_path: Path, dtype: Any, naming: Naming) -> None:
    lora = jax.tree.map(lambda x: jax.numpy.asarray(x, dtype), tree())
    path = tmp_path / "a.safetensors"
    write_lora(path, lora, naming)
    factors = {name: x.dtype for name, x in load_file(path).items() if "alpha" not in name}
    assert set(factors.values()) == {np.dtype(dtype)}
    as_float32 = jax.tree.map(lambda x: np.asarray(x, np.float32), lora)
    assert_same(read_lora(path, base("small")), as_float32)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_lora(path, tree())
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_lora(path, tree(), metadata={"steps": 100})  # type: ignore[dict-item]
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- files of other programs ---


def write_kohya(path: Path, **changes: np.ndarray | None) -> None:
    """kohya's file of `tree()`; parts of one module changed, or removed by None."""
    tensors: dict[str, Any] = lora_tensors_kohya(tree())
    tensors |= {f"{A_KOHYA}.{part.replace('__', '.')}": x for part, x in changes.items()}
    save_file({name: x for name, x in tensors.items() if x is not None}, path)


@pytest.mark.parametrize(
    ("alpha", "factor"),
    [
        (np.asarray(2.0, np.float32), 2 / 8),
        (np.asarray([12], np.float16), 12 / 8),
        (np.asarray(1, np.int64), 1 / 8),
        (None, 3 / 8),  # the rank
    ],
)
def test_an_alpha_of_kohya_goes_into_up(
    tmp_path: Path, alpha: np.ndarray | None, factor: float
) -> None:
    write_kohya(tmp_path / "a.safetensors", alpha=alpha)
    found, expected = module(read_lora(tmp_path / "a.safetensors", base("small"))), module(tree())
    np.testing.assert_array_equal(found["down"], expected["down"])
    np.testing.assert_allclose(found["up"], factor * expected["up"], rtol=1e-6)
    # What the file wants: alpha / rank times the product of the factors.
    wanted = (8 * factor / 3) * np.asarray(expected["down"] @ expected["up"])
    np.testing.assert_allclose(delta(found["down"], found["up"]), wanted, rtol=1e-4, atol=1e-5)


def test_other_modules_are_untouched_by_an_alpha(tmp_path: Path) -> None:
    write_kohya(tmp_path / "a.safetensors", alpha=np.asarray(2.0))
    found = flatten(read_lora(tmp_path / "a.safetensors", base("small")))
    expected = flatten(tree())
    changed = {name for name in expected if not np.array_equal(found[name], expected[name])}
    assert changed == {"/".join((*A_MODULE, "up"))}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"alpha": np.ones(2)}, f"{A_KOHYA}.alpha is not one number"),
        ({"alpha": np.asarray(np.nan)}, "to_out.0.lora_B.weight holds NaN or infinite values"),
        ({"lora_up__weight": None}, f"{A_KOHYA}.alpha () is not a tensor of this network"),
        ({"lora_down__weight": None}, "attn1/to_out_0/down (64, 3) is missing"),
        ({"lora_down__weight": np.ones(())}, f"{A_KOHYA}.lora_down.weight () is not a tensor"),
        ({"lora_down__weight": np.ones((2, 64))}, "attn1.to_out.0 have ranks 2 and 3"),
        ({"dora_scale": np.ones(32)}, f"{A_KOHYA}.dora_scale (32,) is not a tensor"),
        ({"_more.alpha": np.ones(())}, f"{A_KOHYA}._more.alpha () is not a tensor"),
    ],
)
def test_kohya_files_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    path = tmp_path / "a.safetensors"
    write_kohya(path, **changes)
    assert problem in refusal(path)


def test_a_lora_for_the_text_encoder_too_is_refused(tmp_path: Path) -> None:
    tensors = lora_tensors_kohya(tree()) | {"lora_te_text_model.alpha": np.ones(())}
    save_file(tensors, tmp_path / "a.safetensors")
    assert "lora_te_text_model.alpha () is not a tensor" in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("lost", ["base_model.model.", "unet.", "unet.base_model.model."])
def test_prefixes_that_peft_and_diffusers_leave_out(tmp_path: Path, lost: str) -> None:
    tensors = {name.replace(lost, "", 1): x for name, x in lora_tensors_peft(tree()).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    assert_same(read_lora(tmp_path / "a.safetensors", base("small")), tree())


def write_with_config(path: Path, config: str) -> None:
    """A file as diffusers writes it, with PEFT's config in the header."""
    tensors = lora_tensors_peft(tree())
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": config})


@pytest.mark.parametrize("key", ["unet.lora_alpha", "lora_alpha"])
@pytest.mark.parametrize("alpha", [8, 3, 0.0])
def test_an_alpha_of_diffusers_goes_into_up(tmp_path: Path, key: str, alpha: float) -> None:
    write_with_config(tmp_path / "a.safetensors", json.dumps({key: alpha, "unet.r": 3}))
    found = flatten(read_lora(tmp_path / "a.safetensors", base("small")))
    for name, x in flatten(tree()).items():
        factor = alpha / 8 if name.endswith("/up") else 1
        np.testing.assert_array_equal(found[name], np.float32(factor) * x)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("{", "lora_adapter_metadata is not valid"),
        ("[]", "lora_adapter_metadata is not valid"),
        ('{"unet.lora_alpha": "big"}', "lora_adapter_metadata is not valid"),
        ('{"lora_alpha": 1e999}', "alpha is no finite number"),
        ('{"alpha_pattern": {"(": 2}}', "lora_adapter_metadata is not valid"),
        ('{"alpha_pattern": [2]}', "lora_adapter_metadata is not valid"),
        ('{"unet.use_dora": true}', "a LoRA with use_dora is not supported"),
        ('{"peft_type": "LOHA"}', "LOHA is not supported"),
    ],
)
def test_other_scales_of_diffusers_are_refused(tmp_path: Path, config: str, problem: str) -> None:
    write_with_config(tmp_path / "a.safetensors", config)
    assert problem in refusal(tmp_path / "a.safetensors")


@pytest.mark.parametrize("naming", sorted(NAMINGS))
def test_a_model_takes_files_that_were_written(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naming: Naming
) -> None:
    """As the forward model of a folder, by name."""
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    shutil.copytree(checkpoints, folder, copy_function=shutil.copyfile)
    published = load_pipeline(str(folder)).weights
    mine = jax.tree.map(lambda x: 2 * x, published.forward)
    write_lora(folder / "mine.safetensors", mine, naming)
    found = load_pipeline(str(folder), forward="mine.safetensors").weights
    assert_same(found.forward, mine)
    assert_same(found.backward, published.backward)
