"""Model folders that training fills part by part."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ie_jax.errors import UserError
from ie_jax.weights.convert import flatten, upstream
from ie_jax.weights.folder import read_base, read_blueprint, read_parts, unguided, write_parts
from ie_jax.weights.formats import read_metadata, read_tensors
from ie_jax.weights.layout import INDEX, PARTS, PIPELINE, STEMS, Part, find_files, model_files
from ie_jax.weights.load import facts_before_loading, load_pipeline
from ie_jax.weights.names import TEXT_ENCODER, UNET
from ie_jax.weights.original import originals
from tests.weights.models import METADATA, small_parts, write_plan, write_sdxl

STAGES: tuple[tuple[Part, ...], ...] = (
    ("vae",),
    ("text_encoder", "denoiser"),
    ("unet",),
    ("forward", "backward"),
    ("fine_tuned",),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "plan")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all parts; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("model")
    write_parts(folder / "model", write_plan(folder / "plan"), small_parts(), METADATA)
    return folder / "model"


def some(*names: Part) -> dict[Part, Any]:
    return {name: small_parts()[name] for name in names}


def assert_same(found: Any, expected: Any) -> None:
    assert flatten(found).keys() == flatten(expected).keys()
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def refusal(folder: Path, *names: Part) -> str:
    with pytest.raises(UserError) as caught:
        read_parts(folder, names)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_config(folder: Path, part: str, **values: Any) -> None:
    path = folder / PIPELINE / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- reading ---


def test_a_folder_without_weights_has_a_blueprint(plan: Path) -> None:
    blueprint = read_blueprint(plan)
    assert blueprint.architecture.unet.time_cond_proj_dim == 64
    assert unguided(blueprint.architecture).unet.time_cond_proj_dim is None
    assert unguided(blueprint.architecture).vae == blueprint.architecture.vae
    assert blueprint.tokenizer == plan / PIPELINE / "tokenizer"


def test_what_a_blueprint_lacks_is_told(plan: Path) -> None:
    (plan / PIPELINE / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(UserError, match=r"tokenizer lacks merges\.txt$"):
        read_blueprint(plan)
    set_config(plan, "unet", time_cond_proj_dim=None)
    with pytest.raises(UserError, match=r"unet/config\.json: time_cond_proj_dim is missing"):
        read_blueprint(plan)


@pytest.mark.parametrize(
    ("part", "stage"),
    [("denoiser", "training of the denoiser"), ("backward", "consistency distillation")],
)
def test_a_missing_part_is_told_with_who_writes_it(plan: Path, part: Part, stage: str) -> None:
    assert refusal(plan, part) == f"{plan / PARTS[part]} is missing: {stage} writes it"


def test_parts_are_strict(model: Path, tmp_path: Path) -> None:
    write_parts(tmp_path / "new", model, {}, {})
    set_config(tmp_path / "new", "vae", block_out_channels=[16, 32, 64])
    assert "does not fit its network" in refusal(tmp_path / "new", "vae")


# --- writing ---


def test_stages_fill_a_folder(plan: Path, tmp_path: Path) -> None:
    """Each stage finds what those before it wrote, bit by bit."""
    folder, written = plan, list[Part]()
    for i, stage in enumerate(STAGES):
        target = tmp_path / str(i)
        write_parts(target, folder, some(*stage), {"stage": str(i)})
        folder = target
        written += stage
        assert_same(read_parts(folder, written), some(*written))
        assert {n for n in PARTS if (folder / PARTS[n]).exists()} == set(written)
    for i, stage in enumerate(STAGES):
        for part in stage:
            assert read_metadata(folder / PARTS[part])["stage"] == str(i)


def test_a_new_pair_leaves_fine_tuned_models_behind(model: Path, tmp_path: Path) -> None:
    (model / "ablation-l2-forward.safetensors").write_bytes((model / PARTS["forward"]).read_bytes())
    write_parts(tmp_path / "new", model, some("forward", "backward"), {})
    assert [x.name for x in (tmp_path / "new").glob("*forward*")] == [PARTS["forward"]]
    write_parts(tmp_path / "same", model, some("backward"), {})
    assert (tmp_path / "same" / PARTS["fine_tuned"]).is_file()


def test_the_scale_of_latents(model: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    write_parts(new, model, some("vae"), {}, vae_scaling=0.75)
    assert read_blueprint(new).architecture.vae.scaling_factor == 0.75
    assert read_blueprint(model).architecture.vae.scaling_factor == 0.18215


def test_what_lies_beside_is_kept_and_the_rest_left(model: Path, tmp_path: Path) -> None:
    source, new = tmp_path / "source", tmp_path / "new"
    write_parts(source, model, {}, {})
    for name in ("perceptual.safetensors", ".hidden.safetensors", "journal.jsonl"):
        (source / name).write_bytes(b"x")
    write_parts(new, source, {}, {})
    files = {path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()}
    assert files == {*model_files(model), "perceptual.safetensors"}


def test_a_folder_may_be_written_in_place(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write_parts(folder, model, {}, {})
    doubled = jax.tree.map(lambda x: 2 * x, some("forward"))
    write_parts(folder, folder, doubled, {})
    assert_same(read_parts(folder, ["forward", "vae"]), doubled | some("vae"))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_files_are_not_lost(model: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "100").write_text("precious")
    with pytest.raises(UserError, match=r"other files than a model's, such as checkpoints/100"):
        write_parts(tmp_path, model, {}, {})
    assert (tmp_path / "checkpoints" / "100").read_text() == "precious"


# --- as any other model ---


def test_the_fine_tuned_forward_model_goes_first(model: Path) -> None:
    files = find_files(model)
    assert files.forward == model / PARTS["fine_tuned"]
    assert files.backward == model / PARTS["backward"]
    assert files.teacher == model / PARTS["unet"]
    assert find_files(model, forward=PARTS["forward"]).forward == model / PARTS["forward"]
    boundaries = (259, 519, 779, 999)
    facts = facts_before_loading(str(model)), facts_before_loading(str(model), PARTS["forward"])
    assert [x.start_timestep for x in facts] == [0, 19]
    assert {x.boundaries for x in facts} == {boundaries}


def test_a_full_folder_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path))
    pipeline = load_pipeline(str(model))
    assert pipeline.architecture == read_blueprint(model).architecture
    assert_same(pipeline.weights.forward, small_parts()["fine_tuned"])
    for part in ("unet", "vae", "text_encoder", "backward"):
        assert_same(getattr(pipeline.weights, part), small_parts()[part])


def test_a_base_model_of_sdxl(tmp_path: Path) -> None:
    parts = write_sdxl(tmp_path / "base")
    base = read_base(tmp_path / "base")
    for found, part in zip((base.unet, base.vae, *base.texts), parts, strict=True):
        assert_same(found, parts[part])
    assert [path.name for path in base.tokenizers] == ["tokenizer", "tokenizer_2"]
    assert base.zero_negative


def test_a_base_model_in_a_single_file(tmp_path: Path) -> None:
    """UNet and first text encoder in the original's names, read without what else is in the file;
    the rest beside it."""
    folder = tmp_path / "base"
    parts = write_sdxl(folder)
    tensors: dict[str, Any] = {"unwanted": np.zeros(1)}
    for name, x in upstream(parts["unet"], UNET).items():
        module, _, leaf = name.rpartition(".")
        tensors[f"model.diffusion_model.{originals(module, 1)[0]}.{leaf}"] = x
    for name, x in upstream(parts["text_encoder"], TEXT_ENCODER).items():
        tensors[f"conditioner.embedders.0.transformer.text_model.{name}"] = x
    for part in ("unet", "text_encoder"):
        (folder / part / f"{STEMS[part][0]}.fp16.safetensors").unlink()
    save_file(tensors, folder / "sd_xl_base_1.0.safetensors")
    base = read_base(folder)
    for found, part in zip((base.unet, base.vae, *base.texts), parts, strict=True):
        assert_same(found, parts[part])
    prefixes = ("conditioner.embedders.0.",)
    some = read_tensors(folder / "sd_xl_base_1.0.safetensors", prefixes)
    assert all(name.startswith(prefixes) for name in some)


def test_what_a_base_model_lacks_is_said_at_once(tmp_path: Path) -> None:
    write_sdxl(tmp_path)
    for name in ("text_encoder_2/config.json", "tokenizer_2/merges.txt", "unet/config.json"):
        (tmp_path / name).unlink()
    (tmp_path / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        read_base(tmp_path)
    names = ("text_encoder_2/config.json", "tokenizer_2/merges.txt", "unet/config.json")
    for name in (*names, "unet/diffusion_pytorch_model.safetensors"):
        assert name in str(caught.value)
    assert "vae" not in str(caught.value)
    with pytest.raises(UserError, match="not a folder"):
        read_base(tmp_path / "none")


@pytest.mark.parametrize(
    ("file", "change", "named"),
    [
        (INDEX, {"_class_name": "StableDiffusion3Pipeline"}, "StableDiffusion3Pipeline"),
        ("text_encoder_2/config.json", {"projection_dim": 16}, "pooled text of width 12, not 16"),
        ("text_encoder_2/config.json", {"architectures": ["CLIPTextModel"]}, "12, not 0"),
        ("text_encoder/config.json", {"hidden_size": 16}, "text of width 56, not 40"),
    ],
)
def test_base_models_that_do_not_fit(tmp_path: Path, file: str, change: Any, named: str) -> None:
    write_sdxl(tmp_path)
    (tmp_path / file).write_text(json.dumps(json.loads((tmp_path / file).read_text()) | change))
    with pytest.raises(UserError, match=named):
        read_base(tmp_path)
