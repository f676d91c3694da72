import shutil
import tarfile
from pathlib import Path

import pytest

from ie_jax.errors import UserError
from ie_jax.weights.layout import find_files
from ie_jax.weights.published import FINE_TUNED
from tests.weights.server import REVERSE, TEACHER, make_up_checkpoints, publish

FORWARD = "iCD-SD15-forward_19_259_519_779.safetensors"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    make_up_checkpoints(tmp_path / "local")
    return tmp_path / "local"


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        find_files(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_plain_files(folder: Path) -> None:
    (folder / "._hidden_forward.safetensors").touch()
    files = find_files(folder)
    assert files.pipeline == folder / "stable-diffusion-v1-5"
    assert files.teacher == folder / TEACHER
    assert files.forward == folder / FINE_TUNED
    assert files.backward == folder / REVERSE


def test_files_one_folder_deeper(folder: Path) -> None:
    for name in (TEACHER, FINE_TUNED, REVERSE):
        (folder / f"{name}-folder").mkdir()
        (folder / name).rename(folder / f"{name}-folder" / name)
    files = find_files(folder)
    assert files.teacher == folder / f"{TEACHER}-folder" / TEACHER
    assert files.forward.name == FINE_TUNED
    assert files.backward.name == REVERSE


def test_a_converted_teacher_is_preferred(folder: Path) -> None:
    (folder / "sd15_cfg_distill.safetensors").touch()
    assert find_files(folder).teacher.name == "sd15_cfg_distill.safetensors"


def test_the_choice_of_a_lora(folder: Path) -> None:
    shutil.copy(folder / FINE_TUNED, folder / FORWARD)
    shutil.copy(folder / REVERSE, folder / "other_reverse.safetensors")
    message = refusal(folder)
    assert f"choose from {REVERSE}, other_reverse.safetensors" in message
    files = find_files(folder, forward=FORWARD, backward="other_reverse.safetensors")
    assert files.forward == folder / FORWARD
    assert files.backward == folder / "other_reverse.safetensors"
    assert find_files(folder, backward=REVERSE).forward == folder / FINE_TUNED
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        find_files(folder, forward="absent.safetensors", backward=REVERSE)


def test_all_that_is_missing_is_said_at_once(folder: Path) -> None:
    for name in (TEACHER, REVERSE, "stable-diffusion-v1-5/tokenizer/merges.txt"):
        (folder / name).unlink()
    message = refusal(folder)
    for name in ("sd15_cfg_distill.pt", "reverse", "stable-diffusion-v1-5/tokenizer/merges.txt"):
        assert name in message
    assert "vae" not in message
    assert "not a folder" in refusal(folder / "absent")


def test_archives_are_unpacked_elsewhere(folder: Path, tmp_path: Path) -> None:
    served = publish(folder, folder)
    for name in (TEACHER, REVERSE, FINE_TUNED):
        (folder / name).rename(tmp_path / name)
    for path in served.values():
        if "4steps_2" in path.name or "3steps" in path.name:
            path.unlink()
    before = sorted(folder.rglob("*"))
    files = find_files(folder)
    assert files.teacher.read_bytes() == (tmp_path / TEACHER).read_bytes()
    assert files.forward.name == FORWARD
    assert files.backward.read_bytes() == (tmp_path / REVERSE).read_bytes()
    assert all(tmp_path / "home" in path.parents for path in (files.teacher, files.forward))
    assert sorted(folder.rglob("*")) == before

    inode = files.teacher.stat().st_ino
    assert find_files(folder) == files
    assert files.teacher.stat().st_ino == inode


def test_a_replaced_archive_is_unpacked_again(folder: Path) -> None:
    (folder / TEACHER).write_bytes(b"new")
    with tarfile.open(folder / f"{TEACHER}.tar.gz", "w:gz") as packed:
        packed.add(folder / TEACHER, TEACHER)
    (folder / TEACHER).unlink()
    assert find_files(folder).teacher.read_bytes() == b"new"
    (folder / f"{TEACHER}.tar.gz").write_bytes(b"damaged")
    assert f"{TEACHER}.tar.gz is damaged" in refusal(folder)
    assert (folder / f"{TEACHER}.tar.gz").exists()
