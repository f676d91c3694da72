"""Models by name or folder: fetched and converted once, then started from the converted cache."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.errors import UserError
from ie_jax.weights import download, load, lora_files
from ie_jax.weights import folder as model_folder
from ie_jax.weights.facts import Facts
from ie_jax.weights.folder import Pipeline
from ie_jax.weights.load import KEPT, facts_before_loading, forget_oldest, load_pipeline
from ie_jax.weights.lora_files import write_lora
from ie_jax.weights.published import FINE_TUNED, HUB_CYCLE, PIPELINE_FILES
from tests.weights.server import ARCHIVE_PATH, REVERSE, TEACHER, Server, publish


@pytest.fixture(scope="module", autouse=True)
def shapes_known() -> Iterator[None]:
    """The weight tree of each network is worked out once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("unet_shapes", "vae_shapes", "text_encoder_shapes"):
            patch.setattr(model_folder, name, cache(getattr(model_folder, name)))
        yield


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of its own."""
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(checkpoints: Path, tmp_path: Path, home: Path) -> Path:
    """A copy of the checkpoints to be changed."""
    shutil.copytree(checkpoints, tmp_path / "model", copy_function=shutil.copyfile)
    return tmp_path / "model"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The weight files that were read from then on."""
    paths: list[Path] = []

    def read(path: Path, *prefixes: Any) -> dict[str, np.ndarray]:
        paths.append(path)
        return original(path, *prefixes)

    original = model_folder.read_tensors
    for module in (model_folder, lora_files):
        monkeypatch.setattr(module, "read_tensors", read)
    return paths


def test_files_of_a_variant_are_the_same_model(folder: Path) -> None:
    first = load_pipeline(str(folder))
    base = folder / "stable-diffusion-v1-5"
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (base / part / f"{stem}.safetensors").rename(base / part / f"{stem}.fp16.safetensors")
    assert same(first, load_pipeline(str(folder)))
    (base / "vae/diffusion_pytorch_model.fp16.safetensors").rename(base / "vae/other.ckpt")
    message = r"diffusion_pytorch_model\.safetensors is missing \(or .*there is .*other\.ckpt"
    with pytest.raises(UserError, match=message):
        load_pipeline(str(folder))


def cached(home: Path) -> Path:
    """The one converted model, next to nothing but locks."""
    (folder,) = (path for path in (home / "converted").iterdir() if path.suffix != ".lock")
    return folder


def same(one: Pipeline, other: Pipeline) -> bool:
    if one.architecture != other.architecture:
        return False
    jax.tree.map(np.testing.assert_array_equal, one.weights, other.weights)
    return True


# --- the converted cache ---


def test_the_second_start_reads_only_the_cache(folder: Path, home: Path, reads: list[Path]) -> None:
    first = load_pipeline(str(folder))
    assert len(reads) == 5
    reads.clear()
    second = load_pipeline(str(folder))
    assert reads == [] and same(first, second)
    assert second.tokenizer == first.tokenizer
    assert second.tokenizer.is_relative_to(cached(home))


def test_a_unet_of_16_bits_stays_so(folder: Path, home: Path) -> None:
    first = load_pipeline(str(folder))
    torch = pytest.importorskip("torch")
    teacher = torch.load(folder / TEACHER, weights_only=True)
    torch.save({name: x.half() for name, x in teacher.items()}, folder / TEACHER)
    half = load_pipeline(str(folder))
    for one, other in zip(
        *map(jax.tree.leaves, (half.weights.unet, first.weights.unet)), strict=True
    ):
        assert one.dtype == np.float16
        np.testing.assert_array_equal(one, other.astype(np.float16))
    others = jax.tree.leaves(replace(half.weights, unet=None))
    assert {x.dtype for x in others} == {np.dtype(np.float32)}


def test_a_changed_source_is_converted_again(folder: Path, home: Path) -> None:
    first = load_pipeline(str(folder))
    tensors = load_file(folder / FINE_TUNED)
    save_file({name: 2 * x for name, x in tensors.items()}, folder / FINE_TUNED)
    second = load_pipeline(str(folder))
    doubled = jax.tree.map(lambda x: 2 * x, first.weights.forward)
    jax.tree.map(np.testing.assert_array_equal, second.weights.forward, doubled)
    jax.tree.map(np.testing.assert_array_equal, second.weights.unet, first.weights.unet)


@pytest.mark.parametrize("name", [TEACHER, REVERSE, *PIPELINE_FILES])
def test_every_source_file_counts(folder: Path, name: str) -> None:
    """Even if its size stays: its time tells."""
    key = load.cache_key(load.find_files(folder))
    path = folder / name if (folder / name).exists() else folder / "stable-diffusion-v1-5" / name
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert load.cache_key(load.find_files(folder)) != key


@pytest.mark.parametrize(
    "damage",
    [
        "truncated weights",
        "no weights",
        "no tokenizer",
        "other configs",
        "weights of a part",
        "one bit",
    ],
)
def test_a_damaged_cache_is_converted_again(
    folder: Path, home: Path, reads: list[Path], damage: str
) -> None:
    first = load_pipeline(str(folder))
    # They are mapped from the file that is damaged here.
    first = replace(first, weights=jax.tree.map(np.copy, first.weights))
    weights = cached(home) / "weights.safetensors"
    match damage:
        case "truncated weights":
            os.truncate(weights, weights.stat().st_size - 1)
        case "no weights":
            weights.unlink()
        case "no tokenizer":
            (cached(home) / "tokenizer" / "merges.txt").unlink()
        case "other configs":
            (cached(home) / "configs.json").write_text('{"unet": []}')
        case "weights of a part":
            tensors = load_file(weights)
            save_file({n: x for n, x in tensors.items() if n.startswith("vae/")}, weights)
        case "one bit":
            content = bytearray(weights.read_bytes())
            content[-9] ^= 1
            weights.write_bytes(content)
    reads.clear()
    second = load_pipeline(str(folder))
    assert len(reads) == 5 and same(first, second)
    reads.clear()
    assert same(first, load_pipeline(str(folder))) and reads == []


KILLED = """
import os, signal, sys
from ie_jax.weights import load

def killed(file, tensors):
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

load.write_tensors = killed
load.load_pipeline(sys.argv[1])
"""


def test_a_killed_conversion_is_swept_up(folder: Path, home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = [path for path in (home / "converted").iterdir() if path.suffix != ".lock"]
    assert len(left) == 1 and left[0].name.startswith(".")
    load_pipeline(str(folder))
    assert cached(home) != left[0]


def test_a_failed_conversion_leaves_nothing(
    folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Any, tensors: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(load, "write_tensors", full)
    with pytest.raises(UserError, match=r"cannot use the cache folder .*No space left on device"):
        load_pipeline(str(folder))
    assert [path.suffix for path in (home / "converted").iterdir()] == [".lock"]


def test_an_impossible_cache_folder_is_refused(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "file"))
    for model in ("random", str(checkpoints)):
        with pytest.raises(UserError, match=r"cannot use the cache folder .*IE_JAX_HOME"):
            load_pipeline(model)


def test_only_the_newest_models_are_kept(tmp_path: Path) -> None:
    for age in range(6):
        path = tmp_path / f"model{age}"
        path.mkdir()
        (path / "weights").touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / ".unfinished.part").mkdir()
    (tmp_path / "model5.lock").touch()
    forget_oldest(tmp_path, keep=KEPT)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {"model0", "model1", "model2", ".unfinished.part", "model5.lock"}
    forget_oldest(tmp_path, keep=KEPT)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_conversion_forgets_the_oldest(folder: Path, home: Path) -> None:
    for age in range(KEPT):
        path = home / "converted" / f"older{age}"
        path.mkdir(parents=True)
        os.utime(path, (1e9 - age, 1e9 - age))
    load_pipeline(str(folder))
    left = {path.name for path in (home / "converted").iterdir() if path.is_dir()}
    assert len(left) == KEPT and f"older{KEPT - 1}" not in left


# --- names and folders ---


def test_an_unknown_model_is_refused_with_the_known(home: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_pipeline("sd16")
    assert str(caught.value) == (
        "no model or folder named 'sd16': give one of random, world, world-icd, sd15, "
        "icd-sd15, icd-sd15-2, icd-sd15-3steps, icd-sdxl, icd-sdxl-2, icd-sdxl-3steps, "
        "sdxl-turbo, or a folder"
    )


def test_missing_files_of_a_folder_are_told(folder: Path) -> None:
    (folder / "stable-diffusion-v1-5" / "vae" / "config.json").unlink()
    (folder / REVERSE).unlink()
    with pytest.raises(UserError) as caught:
        load_pipeline(str(folder))
    message = str(caught.value)
    assert message.startswith(f"{folder} has missing or ambiguous files: ")
    assert "stable-diffusion-v1-5/vae/config.json" in message and "*reverse*" in message


@pytest.mark.parametrize("model", ["sd15", "random"])
def test_lora_names_without_a_path_are_for_folders(home: Path, model: str) -> None:
    with pytest.raises(UserError, match=r"'other.safetensors': give a path.* \./other.safetensors"):
        load_pipeline(model, forward="other.safetensors")


def test_a_lora_of_ones_own_takes_the_place_of_any_models(home: Path, tmp_path: Path) -> None:
    own, published = tmp_path / "own.safetensors", tmp_path / "forward_19_519.safetensors"
    plain = load_pipeline("random")
    for path in (own, published):
        write_lora(path, plain.weights.backward)
    pipeline = load_pipeline("random", forward=str(own))
    swapped = replace(plain.weights, forward=plain.weights.backward)
    assert same(pipeline, replace(plain, weights=swapped))
    assert facts_before_loading("icd-sd15", str(own)) == Facts()
    assert facts_before_loading("icd-sd15", str(published), str(own)) == Facts(19)


def test_the_random_model_is_the_same_every_time(home: Path) -> None:
    assert same(load_pipeline("random"), load_pipeline("random"))


# --- published sources ---


@pytest.fixture
def server(
    checkpoints: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    for name in ("IE_JAX_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_RETRY_PAUSES", (0.0, 0.0))
    (tmp_path / "archives").mkdir()
    with Server() as running:
        running.files |= publish(checkpoints, tmp_path / "archives")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("IE_JAX_ICD_URL", running.url + ARCHIVE_PATH)
        yield running


def test_a_published_model_is_fetched_verified_converted_and_kept(
    server: Server, checkpoints: Path, home: Path, reads: list[Path]
) -> None:
    editor = Editor.from_pretrained("sd15", progress=False)
    assert server.gets(FINE_TUNED) and server.gets(ARCHIVE_PATH)
    assert editor.schedule.forward_t.tolist() == [0, 259, 519, 779]
    local = Editor.from_pretrained(str(checkpoints))
    jax.tree.map(np.testing.assert_array_equal, editor.weights, local.weights)
    assert editor.models.architecture == local.models.architecture

    server.requests.clear()
    reads.clear()
    again = Editor.from_pretrained("sd15", offline=True)
    assert server.requests == [] and reads == []
    jax.tree.map(np.testing.assert_array_equal, editor.weights, again.weights)

    # What changed on this machine since it was downloaded is not converted.
    path = home / "published" / "Cycle-consistency" / FINE_TUNED
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{FINE_TUNED} has changed since it was downloaded"):
        load_pipeline("sd15", offline=True)


def test_a_published_file_that_changes_is_refused(
    server: Server, checkpoints: Path, home: Path, tmp_path: Path
) -> None:
    load_pipeline("sd15", progress=False)
    (home / "published" / "Cycle-consistency" / FINE_TUNED).unlink()
    changed = tmp_path / "changed.safetensors"
    save_file({name: x + 1 for name, x in load_file(checkpoints / FINE_TUNED).items()}, changed)
    server.files[f"/{HUB_CYCLE}/resolve/main/{FINE_TUNED}"] = changed
    with pytest.raises(UserError, match=r"is not the one recorded in hashes\.json"):
        load_pipeline("sd15", progress=False)


@pytest.mark.parametrize(
    ("model", "start", "boundaries"),
    [
        ("icd-sd15", 19, [259, 519, 779, 999]),
        ("icd-sd15-2", 19, [249, 499, 699, 999]),
        ("icd-sd15-3steps", 19, [339, 699, 999]),
    ],
)
def test_published_models_have_their_own_grids(
    server: Server, model: str, start: int, boundaries: list[int]
) -> None:
    config = EditConfig(model=model, cfg_schedule=tuple(range(len(boundaries))))
    editor = Editor.from_pretrained(config=config, progress=False)
    assert editor.schedule.forward_t.tolist() == [start, *boundaries[:-1]]
    assert editor.schedule.backward_t.tolist() == boundaries[::-1]


def test_a_schedule_that_does_not_fit_is_refused_before_anything_is_fetched(
    server: Server,
) -> None:
    config = EditConfig("icd-sd15-3steps", cfg_schedule=(0, 7, 11, 19))
    with pytest.raises(UserError, match="cfg_schedule has 4 values, but there are 3 steps"):
        Editor.from_pretrained(config=config, progress=False)
    assert server.requests == []


def test_offline_without_the_files_is_refused(server: Server) -> None:
    with pytest.raises(UserError, match=r"offline, and .* lacks stable-diffusion-v1-5/unet"):
        load_pipeline("sd15", offline=True)
    assert server.requests == []
