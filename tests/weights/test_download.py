import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.weights import download
from ie_jax.weights.download import fetch, home, verify
from ie_jax.weights.facts import Facts
from ie_jax.weights.formats import read_tensors
from ie_jax.weights.layout import PIPELINE_SDXL
from ie_jax.weights.load import load_pipeline
from ie_jax.weights.published import (
    BASES,
    FINE_TUNED,
    HUB_CYCLE,
    HUB_SD15,
    HUB_SDXL,
    PUBLISHED,
    REVISIONS,
    TEACHER_SDXL,
)
from tests.weights.models import write_sdxl, write_sdxl_pair
from tests.weights.server import (
    ARCHIVE_PATH,
    COMMIT,
    Server,
    make_up_checkpoints,
    publish,
    recorded_checkpoints,
)

SD15 = PUBLISHED["sd15"]
TEACHER_ARCHIVE = "sd15_cfg_distill.pt.tar.gz"
TEACHER_PATH = ARCHIVE_PATH + TEACHER_ARCHIVE
LORA_PATH = f"/{HUB_CYCLE}/resolve/main/finetuned_forward_model.safetensors"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    make_up_checkpoints(checkpoints)
    return publish(checkpoints, tmp_path_factory.mktemp("archives"))


@pytest.fixture
def server(published: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("IE_JAX_OFFLINE", "HF_HUB_OFFLINE", "IE_JAX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_RETRY_PAUSES", (0.0, 0.0))
    with Server() as running:
        running.files |= published
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("IE_JAX_ICD_URL", running.url + ARCHIVE_PATH)
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "downloads"


def get(folder: Path, name: str = "sd15", **options: bool) -> download.Files:
    return fetch(PUBLISHED[name], folder, progress=False, **options)


def user_error(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def leftovers(folder: Path) -> list[str]:
    """Files outside the record, without locks and the hub client's own notes."""
    recorded = verify(folder)
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [
        path.as_posix()
        for path in files
        if path.as_posix() not in {*recorded, "hashes.json", ".lock"} and ".cache" not in path.parts
    ]


def test_fetches_all_files_of_every_source(server: Server, folder: Path) -> None:
    checkpoints = server.files[LORA_PATH].parent
    reverse = (checkpoints / "iCD-SD15-reverse_259_519_779_999.safetensors").read_bytes()
    for name, source in PUBLISHED.items():
        if source.facts.texts > 1:
            continue
        files = get(folder, name)
        assert files.teacher.read_bytes() == (checkpoints / "sd15_cfg_distill.pt").read_bytes()
        assert files.forward.read_bytes() == server.files[LORA_PATH].read_bytes()
        assert files.backward.read_bytes() == reverse
        assert "_".join(map(str, source.facts.boundaries)) in files.backward.name
        for file in source.pipeline:
            expected = checkpoints / "stable-diffusion-v1-5" / file.name
            assert (files.pipeline / file.name).read_bytes() == expected.read_bytes()
    # Shared files came once; nothing but the wanted files is kept.
    asked = [request.path for request in server.gets() if request.path in server.files]
    assert sorted(asked) == sorted(server.files)
    assert leftovers(folder) == []


def test_a_base_model_is_fetched_once_and_read_as_it_is(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, home = BASES["sdxl-turbo"], tmp_path / "home"
    parts = write_sdxl(tmp_path / "upstream")
    server.files = {
        f"/stabilityai/sdxl-turbo/resolve/main/{file.name}": tmp_path / "upstream" / file.name
        for file in source.hub_files
    }
    monkeypatch.setenv("IE_JAX_HOME", str(home))
    pipeline = load_pipeline("sdxl-turbo", progress=False)
    assert pipeline.facts == source.facts
    for part, tree in parts.items():
        jax.tree.map(np.testing.assert_array_equal, getattr(pipeline.weights, part), tree)
    assert {x.dtype for x in jax.tree.leaves(pipeline.weights)} == {np.dtype(np.float16)}
    asked = len(server.gets())
    assert asked == len(source.hub_files)
    load_pipeline("sdxl-turbo", offline=True, progress=False)
    assert len(server.gets()) == asked and not (home / "converted").exists()
    weights = home / "published" / "sdxl-turbo" / "vae/diffusion_pytorch_model.fp16.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "has changed" in user_error(lambda: load_pipeline("sdxl-turbo", offline=True))


def test_a_pair_of_sdxl(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the published names, from downloads to the converted cache."""
    torch = pytest.importorskip("torch")
    source, upstream = PUBLISHED["icd-sdxl-2"], tmp_path / "upstream"
    parts = write_sdxl_pair(upstream)
    teacher = read_tensors(upstream / f"{TEACHER_SDXL}.safetensors")
    torch.save({name: torch.tensor(x) for name, x in teacher.items()}, tmp_path / "teacher.pt")
    server.files = {
        f"/{HUB_SDXL}/resolve/main/{file.name}": upstream / PIPELINE_SDXL / file.name
        for file in source.hub_files
    }
    loras = {path.name: path for path in upstream.glob("iCD-*")}
    for archive, members in {
        f"{TEACHER_SDXL}.pt.tar.gz": {f"{TEACHER_SDXL}.pt": tmp_path / "teacher.pt"},
        "iCD-SDXL_4steps_2.tar.gz": loras,
    }.items():
        with tarfile.open(tmp_path / archive, "w:gz") as packed:
            for name, path in members.items():
                packed.add(path, name)
        server.files[ARCHIVE_PATH + archive] = tmp_path / archive
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    pipeline = load_pipeline("icd-sdxl-2", progress=False)
    for part, tree in parts.items():
        jax.tree.map(np.testing.assert_array_equal, getattr(pipeline.weights, part), tree)
    assert pipeline.facts == Facts(19, (249, 499, 699, 999), (0.0, 7.0, 7.0, 7.0), texts=2)
    again = load_pipeline("icd-sdxl-2", offline=True, progress=False)
    jax.tree.map(np.testing.assert_array_equal, again.weights, pipeline.weights)
    assert [path.name for path in again.tokenizers] == ["tokenizer", "tokenizer_2"]
    # A folder of the same files is the same model.
    assert load_pipeline(str(upstream)).facts == pipeline.facts


def test_fetches_the_recorded_checkpoints(server: Server, folder: Path, tmp_path: Path) -> None:
    checkpoints = recorded_checkpoints()
    (tmp_path / "archives").mkdir()
    server.files = publish(checkpoints, tmp_path / "archives")
    files = get(folder)
    for path, name in (
        (files.forward, "finetuned_forward_model.safetensors"),
        (files.backward, "iCD-SD15-reverse_259_519_779_999.safetensors"),
    ):
        fetched, expected = read_tensors(path), read_tensors(checkpoints / name)
        assert fetched.keys() == expected.keys()
        assert all((fetched[key] == expected[key]).all() for key in expected)
    assert files.teacher.read_bytes() == (checkpoints / "sd15_cfg_distill.pt").read_bytes()


def test_a_second_fetch_asks_nothing(server: Server, folder: Path) -> None:
    first = get(folder)
    server.requests.clear()
    assert get(folder) == first
    assert server.requests == []


def test_verify_returns_the_hashes_of_a_source(server: Server, folder: Path) -> None:
    files = get(folder)
    get(folder, "icd-sd15-2")
    hashes = verify(folder, SD15)
    assert len(hashes) == 10 + 1 + 1 + 2  # pipeline, LoRA, teacher, both files of the archive
    for path in (files.teacher, files.forward, files.backward):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert hashes[path.relative_to(folder).as_posix()] == digest
    assert len(verify(folder)) == len(hashes) + 2
    assert "iCD-SD15_3steps.tar.gz" in user_error(
        lambda: verify(folder, PUBLISHED["icd-sd15-3steps"])
    )


@pytest.mark.parametrize("path", [TEACHER_PATH, LORA_PATH])
def test_a_broken_connection_is_resumed(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    # Of what had arrived, at most one chunk is asked for again.
    monkeypatch.setattr(download, "_CHUNK", 1000)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    broken_at = server.files[path].stat().st_size // 2
    server.breaks[path] = [broken_at]
    files = get(folder)
    first, resumed = server.gets(path)
    assert first.start is None
    assert resumed.start is not None
    assert broken_at - 1001 <= resumed.start <= broken_at
    checkpoints = server.files[LORA_PATH].parent
    assert files.teacher.read_bytes() == (checkpoints / "sd15_cfg_distill.pt").read_bytes()
    assert files.forward.read_bytes() == server.files[LORA_PATH].read_bytes()
    assert leftovers(folder) == []


def test_a_later_run_resumes(server: Server, folder: Path) -> None:
    size = server.files[TEACHER_PATH].stat().st_size
    server.breaks[TEACHER_PATH] = [size // 2, 1000, 1000]
    message = user_error(lambda: get(folder))
    assert TEACHER_PATH in message
    part = folder / f"{TEACHER_ARCHIVE}.part"
    assert part.stat().st_size < size
    assert part.read_bytes() == server.files[TEACHER_PATH].read_bytes()[: part.stat().st_size]
    assert not (folder / "sd15_cfg_distill").exists()

    server.requests.clear()
    start = part.stat().st_size - 1
    files = get(folder)
    (request,) = server.gets(TEACHER_PATH)
    assert request.start == start
    original = server.files[LORA_PATH].parent / "sd15_cfg_distill.pt"
    assert files.teacher.read_bytes() == original.read_bytes()
    assert leftovers(folder) == []


def test_a_server_without_ranges_starts_over(server: Server, folder: Path) -> None:
    server.ignore_ranges = True
    server.breaks[TEACHER_PATH] = [300_000]
    get(folder)
    assert len(server.gets(TEACHER_PATH)) == 2
    assert leftovers(folder) == []


@pytest.mark.parametrize(("excess", "requests"), [(0, 1), (10, 2)])
def test_a_part_that_needs_no_more_bytes(
    server: Server, folder: Path, excess: int, requests: int
) -> None:
    """It is complete, or longer than the file that is published now."""
    folder.mkdir()
    part = server.files[TEACHER_PATH].read_bytes() + bytes(excess)
    (folder / f"{TEACHER_ARCHIVE}.part").write_bytes(part)
    get(folder)
    assert len(server.gets(TEACHER_PATH)) == requests
    assert leftovers(folder) == []


def test_a_hub_file_without_the_announced_hash_is_refused(server: Server, folder: Path) -> None:
    server.etags[LORA_PATH] = "0" * 64
    assert "hash" in user_error(lambda: get(folder))
    assert not list(folder.rglob("finetuned_forward_model.safetensors"))
    del server.etags[LORA_PATH]
    get(folder)
    assert leftovers(folder) == []


@pytest.mark.parametrize("wanted", ["teacher", "forward", "backward"])
def test_a_changed_file_is_named(server: Server, folder: Path, wanted: str) -> None:
    path: Path = getattr(get(folder), wanted)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for call in (lambda: verify(folder), lambda: verify(folder, SD15)):
        message = user_error(call)
        assert str(path) in message
        assert "delete it" in message
    path.write_bytes(content[:-1])
    assert str(path) in user_error(lambda: get(folder, offline=True))
    path.unlink()
    assert str(path) in user_error(lambda: verify(folder))
    get(folder)
    assert path.read_bytes() == content
    verify(folder)


@pytest.mark.parametrize(("path", "found"), [(LORA_PATH, "forward"), (TEACHER_PATH, "teacher")])
def test_a_republished_file_is_refused_until_the_record_goes(
    server: Server, folder: Path, tmp_path: Path, path: str, found: str
) -> None:
    local: Path = getattr(get(folder), found)
    local.unlink()
    if path == TEACHER_PATH:
        server.files[path] = archive(tmp_path, tarfile.TarInfo("sd15_cfg_distill.pt"))
    else:
        server.files[path] = tmp_path / "new"
        server.files[path].write_bytes(b"new")
    for _ in range(2):
        message = user_error(lambda: get(folder))
        assert str(local) in message
        assert "hashes.json" in message
        assert not local.exists()
    (folder / "hashes.json").unlink()
    assert getattr(get(folder), found).read_bytes() in {b"", b"new"}


def test_all_of_a_repository_comes_from_one_commit(
    server: Server, folder: Path, tmp_path: Path
) -> None:
    """The one that is known; or else the newest, from then on."""
    get(folder)
    record = json.loads((folder / "hashes.json").read_text())
    assert record["Cycle-consistency/finetuned_forward_model.safetensors"]["commit"] == COMMIT
    assert record["stable-diffusion-v1-5/vae/config.json"]["commit"] == REVISIONS[HUB_SD15]
    assert "commit" not in record["sd15_cfg_distill/sd15_cfg_distill.pt"]
    assert {x.commit for x in server.gets(HUB_SD15)} == {REVISIONS[HUB_SD15]}

    server.commit = "f" * 40
    forward = get(folder).forward
    forward.unlink()
    server.requests.clear()
    assert get(folder).forward.is_file()
    assert [x.commit for x in server.gets(LORA_PATH)] == [COMMIT]

    forward.unlink()
    server.gone.add(COMMIT)
    message = user_error(lambda: get(folder))
    assert "404" in message and f"delete {folder / 'hashes.json'}" in message
    (folder / "hashes.json").unlink()
    get(folder)
    record = json.loads((folder / "hashes.json").read_text())
    assert record["Cycle-consistency/finetuned_forward_model.safetensors"]["commit"] == "f" * 40


def test_a_record_without_commits_is_as_good(server: Server, folder: Path) -> None:
    get(folder)
    path = folder / "hashes.json"
    record = json.loads(path.read_text())
    for entry in record.values():
        entry.pop("commit", None)
    path.write_text(json.dumps(record))
    server.requests.clear()
    get(folder, offline=True)
    verify(folder, SD15)
    get(folder).forward.unlink()
    get(folder)
    assert [x.path for x in server.gets()] == [LORA_PATH]


def test_another_commit_than_the_one_asked_for_is_refused(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(REVISIONS, HUB_CYCLE, "refs/pr/1")
    server.files["/" + HUB_CYCLE + "/resolve/refs%2Fpr%2F1/" + FINE_TUNED] = server.files[LORA_PATH]
    assert f"the hub answers with commit {COMMIT}" in user_error(lambda: get(folder))
    assert not list(folder.rglob(FINE_TUNED))


@pytest.mark.parametrize("path", [f"/{HUB_SD15}/resolve/main/vae/config.json", TEACHER_PATH])
def test_404(server: Server, folder: Path, path: str) -> None:
    del server.files[path]
    message = user_error(lambda: get(folder))
    assert server.url + path.replace("main", REVISIONS[HUB_SD15]) in message
    assert "404" in message
    assert len(server.gets(path)) <= 1
    wanted = "stable-diffusion-v1-5/vae/config.json" if "vae" in path else "sd15_cfg_distill"
    assert not (folder / wanted).exists()
    assert not any(name.startswith(wanted) for name in verify(folder))


def test_server_down(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Server() as stopped:
        url = stopped.url
    monkeypatch.setenv("IE_JAX_ICD_URL", url)
    assert f"cannot download {url}" in user_error(lambda: get(folder))
    monkeypatch.setenv("HF_ENDPOINT", url)
    (folder / "hashes.json").unlink()
    assert f"cannot download {url}" in user_error(lambda: get(folder))


def test_torch_is_asked_for_before_anything_is_fetched(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "pip install 'ie_jax[convert]'" in user_error(lambda: get(folder / "empty"))
    assert server.requests == [] and not (folder / "empty").exists()


@pytest.mark.parametrize("variable", [None, "HF_HUB_OFFLINE", "IE_JAX_OFFLINE"])
def test_offline(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    get(folder)
    server.requests.clear()
    if variable:
        monkeypatch.setenv(variable, "1")
    offline = variable is None
    assert get(folder, offline=offline).teacher.is_file()
    message = user_error(lambda: get(folder, "icd-sd15-2", offline=offline))
    assert "lacks iCD-SD15_4steps_2.tar.gz:" in message
    message = user_error(lambda: get(folder / "empty", offline=offline))
    assert "stable-diffusion-v1-5/vae/config.json" in message
    assert TEACHER_ARCHIVE in message
    assert server.requests == []
    assert not (folder / "empty").exists()


def test_two_processes_fetch_each_file_once(server: Server, folder: Path) -> None:
    code = (
        "import sys, pathlib; from ie_jax.weights import download, published;"
        "print('ready', flush=True); sys.stdin.readline();"
        "download.fetch(published.PUBLISHED['sd15'], pathlib.Path(sys.argv[1]), progress=False)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    asked = [request.path for request in server.gets() if request.path in server.files]
    assert len(asked) == len(set(asked)) == 13
    assert leftovers(folder) == []


def archive(folder: Path, member: tarfile.TarInfo) -> Path:
    path = folder / "made.tar.gz"
    with tarfile.open(path, "w:gz") as packed:
        packed.addfile(member, io.BytesIO(bytes(member.size)))
    return path


def outside() -> tarfile.TarInfo:
    member = tarfile.TarInfo("../evil")
    member.size = 4
    return member


def link(kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo("sd15_cfg_distill.pt")
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    "member",
    [
        outside(),
        link(tarfile.SYMTYPE, "/etc/hostname"),
        link(tarfile.SYMTYPE, "../hashes.json"),
        link(tarfile.LNKTYPE, "../hashes.json"),
        link(tarfile.CHRTYPE, ""),
    ],
    ids=["path", "absolute-link", "relative-link", "hard-link", "device"],
)
def test_unsafe_archives(
    server: Server, folder: Path, tmp_path: Path, member: tarfile.TarInfo
) -> None:
    server.files[TEACHER_PATH] = archive(tmp_path, member)
    message = user_error(lambda: get(folder))
    assert "not safe to unpack" in message
    assert TEACHER_ARCHIVE in message
    assert not list(tmp_path.rglob("evil"))
    assert not list(folder.glob("*sd15_cfg_distill*"))
    assert leftovers(folder) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "checksum", "text", "empty"])
def test_damaged_archives(server: Server, folder: Path, tmp_path: Path, damage: str) -> None:
    content = bytearray(server.files[TEACHER_PATH].read_bytes())
    if damage == "truncated":
        content = content[:-100_000]
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    elif damage == "checksum":
        content[-8] ^= 1
    else:
        content = bytearray(b"<html>" if damage == "text" else b"")
    intact = server.files[TEACHER_PATH]
    server.files[TEACHER_PATH] = tmp_path / "damaged"
    server.files[TEACHER_PATH].write_bytes(content)
    message = user_error(lambda: get(folder))
    assert "damaged" in message
    assert TEACHER_ARCHIVE in message
    assert not list(folder.glob("*sd15_cfg_distill*"))
    server.files[TEACHER_PATH] = intact
    get(folder)
    assert leftovers(folder) == []


def test_an_archive_without_the_wanted_file(server: Server, folder: Path, tmp_path: Path) -> None:
    server.files[TEACHER_PATH] = archive(tmp_path, tarfile.TarInfo("other.pt"))
    assert "sd15_cfg_distill.pt" in user_error(lambda: get(folder))


def test_a_run_that_ended_before_unpacking(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / TEACHER_ARCHIVE).write_bytes(server.files[TEACHER_PATH].read_bytes())
    (folder / ".sd15_cfg_distill.unpacking").mkdir()
    (folder / ".sd15_cfg_distill.unpacking" / "half").touch()
    get(folder)
    assert server.gets(TEACHER_PATH) == []
    assert leftovers(folder) == []


def test_a_bad_record(server: Server, folder: Path) -> None:
    folder.mkdir()
    for content in ("{", "[]", '{"a": 1}'):
        (folder / "hashes.json").write_text(content)
        assert "hashes.json" in user_error(lambda: get(folder))


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot write" in user_error(lambda: get(tmp_path / "file" / "folder"))


def test_progress_goes_to_stderr(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(SD15, folder)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "100%" in shown.err
    get(folder, "icd-sd15-2")
    assert capsys.readouterr().err == ""


def test_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IE_JAX_HOME", "~/somewhere")
    assert home() == Path(os.path.expanduser("~/somewhere"))
    monkeypatch.delenv("IE_JAX_HOME")
    assert home().name == "ie_jax"
