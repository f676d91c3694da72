"""Files that would take all time or memory, or lead elsewhere, end in one line at once."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from ie_jax.config import build, parse, parse_yaml, read_yaml
from ie_jax.data.captions import read_table, text_captions
from ie_jax.data.images import load_image
from ie_jax.data.latents import Latents
from ie_jax.editing.command import EditRequest
from ie_jax.editing.config import EditConfig
from ie_jax.editing.images import check_writable
from ie_jax.editing.jobs import jobs_of_list
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.products import read_record
from ie_jax.weights.download import unpack
from ie_jax.weights.formats import read_json, read_metadata, read_tensors
from ie_jax.weights.judges import read_h5
from tests.bounds import bounded, refused

READERS: dict[str, Callable[[Path], Any]] = {
    "a.png": lambda path: load_image(path, 64),
    "a.yaml": read_yaml,
    "a.json": read_json,
    "a.jsonl": lambda path: jobs_of_list(path, 0),
    "metadata.jsonl": read_table,
    "metadata.csv": read_table,
    "a.txt": text_captions,
    "a.safetensors": read_tensors,
    "b.safetensors": read_metadata,
    "a.pt": read_tensors,
    "a.h5": read_h5,
    "a.tar.gz": lambda path: unpack(path, path.with_name("unpacked")),
    "index.json": lambda path: Latents(path.parent),
    "vocab.json": lambda path: Tokenizer(path.parent),
}


# --- No ordinary files, or larger than any ---


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_pipe_a_device_and_a_folder_are_refused(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    refused(lambda: READERS[name](path))


@pytest.mark.parametrize("name", READERS)
def test_a_file_of_a_terabyte_is_refused(name: str, tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(10**12)
    refused(lambda: READERS[name](tmp_path / name))


def test_a_result_does_not_take_the_place_of_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.png")
    refused(lambda: check_writable(tmp_path / "out.png"), "is no ordinary file")


def test_a_record_that_is_a_pipe_or_too_large_is_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    assert bounded(lambda: read_record(tmp_path / "a.json")) == {}
    (tmp_path / "b.json").write_bytes(b"[" * 10**6)
    assert bounded(lambda: read_record(tmp_path / "b.json")) == {}


# --- YAML, JSON and numbers ---

LAUGHS = "a: &a [x, x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, here in zip("abcdefghijk", "bcdefghijkl", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{here}: &{here}\n  <<: [{', '.join([f'*{before}'] * 9)}]\n"
    for before, here in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


@pytest.mark.parametrize(
    "text",
    [
        *(LAUGHS, MERGES, "&a [*a]", "&a {b: *a}", "[" * 5000, "? " * 5000),
        *("[" + "[]," * 30000 + "]", "- 1\n" * 25000, "a: " + "x" * 200_000),
        *("!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!!set [1]", "!!omap x"),
        *("!!binary é", "!!python/object:os.system x", "? [a]\n: 1", "9" * 5000),
    ],
    ids=lambda text: text[:12],
)
def test_yaml_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    refused(lambda: read_yaml(tmp_path / "a.yaml"), "a.yaml: not valid YAML|a.yaml: has over")


def test_yaml_with_an_alias_is_read() -> None:
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc:\n  <<: {d: 3}") == {
        **{"a": [1, 2], "b": [1, 2]},
        "c": {"d": 3},
    }


@pytest.mark.parametrize("value", ["9" * 30, "-" + "9" * 12, "9" * 5000, "0x" + "f" * 9000])
@pytest.mark.parametrize("option", ["--seed", "--size", "--start-timestep", "--execution.unroll"])
def test_huge_integers_are_refused(option: str, value: str) -> None:
    refused(lambda: parse([f"{option}={value}"], "", EditRequest, EditConfig))


def test_huge_integers_in_json_are_refused(tmp_path: Path) -> None:
    for seed in ("9" * 30, "9" * 5000):
        line = f'{{"image": "a.png", "source": "a", "target": "b", "seed": {seed}}}'
        (tmp_path / "a.jsonl").write_text(line)
        refused(lambda: jobs_of_list(tmp_path / "a.jsonl", 0), "line 1: ")
    refused(lambda: build(EditConfig, {"size": 10**30}, "here"), "larger than any")


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**5, "[" + "[]," * 1_400_000 + "[]]", '{"a": ' + "9" * 9999]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "metadata.jsonl", "index.json"])
def test_deep_and_huge_json_is_refused(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    refused(lambda: READERS[name](tmp_path / name))


# --- Weights ---


def test_hdf5_that_declares_more_than_it_holds(tmp_path: Path) -> None:
    for options in (
        {},  # never written
        {"chunks": (10**6,)},
        {"chunks": (10**6,), "compression": "gzip"},
    ):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("a", (10**11,), "f4", **options)
        refused(lambda: read_h5(tmp_path / "a.h5"), "a.h5 holds 0 of the")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", data=np.zeros(10**6, "f4"), chunks=(10**5,), compression="gzip")
    refused(lambda: read_h5(tmp_path / "a.h5"), "a.h5 holds .* of the 4000000 bytes of a")


def test_hdf5_that_reads_other_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(400))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (100,), "f4", external=[(str(tmp_path / "secret"), 0, 400)])
    refused(lambda: read_h5(tmp_path / "a.h5"), "in another file, which is not read: a")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.ones(100, "f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.VirtualLayout((100,), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "a", (100,))
        file.create_virtual_dataset("a", layout)
    refused(lambda: read_h5(tmp_path / "a.h5"), "in another file, which is not read: a")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = h5py.ExternalLink("other.h5", "a")
        file["b"] = h5py.Empty("f4")
    refused(lambda: read_h5(tmp_path / "a.h5"), "other entries than floating numbers: b")


def test_a_damaged_chunk_of_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        data = np.random.default_rng(0).normal(size=1000)
        file.create_dataset("a", data=data, chunks=(500,), compression="gzip", fletcher32=True)
        place = file["a"].id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 50] ^= 1
    path.write_bytes(content)
    refused(lambda: read_h5(path), "a.h5 is damaged")


def safetensors_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of(
            b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}', b"1234"
        ),
        safetensors_of(b'{"a":{"dtype":"F32","shape":[0,1e400],"data_offsets":[0,0]}}'),
        safetensors_of(
            b'{"a":{"dtype":"F32","shape":[0,%d,%d],"data_offsets":[0,0]}}' % (2**62, 2**62)
        ),
        safetensors_of(b"[" * 10**6),
        safetensors_of(b" " * 30_000_000),
        struct.pack("<Q", 2**63) + b"{}",
        b"",
    ],
    ids=range(7),
)
@pytest.mark.parametrize("name", ["a.safetensors", "b.safetensors"])
def test_safetensors_that_declare_too_much(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    bounded(lambda: READERS[name](tmp_path / name))
    refused(lambda: read_tensors(tmp_path / name), name)


def test_torch_tensors_without_numbers_of_their_own(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    one = torch.ones(1)
    for tensor in (
        one.expand(10**6, 10**6),
        torch.ones(4).to_sparse(),
        torch.empty(10**9, device="meta"),
    ):
        torch.save({"a": tensor}, tmp_path / "a.pt")
        refused(lambda: read_tensors(tmp_path / "a.pt"), "a.pt")


def test_conjugate_views_of_torch_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([1 + 2j, 3 - 1j])
    torch.save({"a": x.conj(), "b": x.conj().imag.clone()}, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")
    np.testing.assert_array_equal(found["a"], [1 - 2j, 3 + 1j])
    np.testing.assert_array_equal(found["b"], [-2, 1])


def test_a_compressed_torch_file_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.namelist():
            packed.writestr(part, plain.read(part))
    refused(lambda: read_tensors(tmp_path / "a.pt"), "its parts are compressed")


# --- Archives ---


def member(name: str, content: bytes = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (member("/absolute"), "not safe"),
        (member("a/../b"), "not safe"),
        (member("../b"), "not safe"),
        (member("a", type=tarfile.LNKTYPE, linkname="missing"), "is not there"),
        (member("a", type=tarfile.LNKTYPE, linkname="a"), "is not there"),
        (member("a", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "not safe"),
        (member("a", type=tarfile.FIFOTYPE), "not safe"),
        (member("a", type=tarfile.CHRTYPE), "not safe"),
        (member("a" * 300), "a.tar.gz"),
        (member("nul", pax_headers={"path": "a\0b"}), "a.tar.gz"),
    ],
)
def test_archives_that_lead_elsewhere(
    info: tuple[tarfile.TarInfo, bytes], told: str, tmp_path: Path
) -> None:
    path = archive(tmp_path / "a.tar.gz", info)
    refused(lambda: unpack(path, tmp_path / "out"), told)
    assert list(tmp_path.iterdir()) == [path]


def test_an_archive_with_a_link_to_a_member_is_unpacked(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tar.gz",
        member("./a", b"content"),
        member("b", type=tarfile.LNKTYPE, linkname="a"),
    )
    unpack(path, tmp_path / "out")
    assert (tmp_path / "out" / "b").read_bytes() == b"content"


def test_archives_that_unpack_to_too_much(tmp_path: Path) -> None:
    zeros = bytes(10**6)
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as file:
        info, _ = member("a")
        info.size = 10**12
        file.write(info.tobuf())
    refused(lambda: unpack(tmp_path / "a.tar.gz", tmp_path / "out"), "bytes or")
    path = archive(tmp_path / "b.tar.gz", *(member(str(i)) for i in range(501)))
    refused(lambda: unpack(path, tmp_path / "out"), "or 500 files")
    with gzip.open(tmp_path / "c.tar.gz", "wb", 1) as file:
        info, _ = member("a", type=tarfile.XHDTYPE)  # a header that is read whole
        info.size = 10**9
        file.write(info.tobuf())
        for _ in range(60):
            file.write(zeros)
    refused(lambda: unpack(tmp_path / "c.tar.gz", tmp_path / "out"), "many times its size")
    assert not (tmp_path / "out").exists()


# --- Pictures ---


def test_pictures_are_bounded_by_what_they_take_decoded(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 7000, 7000, 16, 0, 0, 0, 0)  # 49 megapixels of 16 bits
    chunk = b"IHDR" + header
    path = tmp_path / "a.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    )  # fmt: skip
    refused(lambda: load_image(path, 64), "392 MB decoded")


def test_a_tiff_that_lacks_most_of_its_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.new("RGB", (16, 24)).save(path)
    content = path.read_bytes()
    height = struct.pack("<HHI", 257, 4, 1)  # tag, type and count, before the value
    at = content.index(height) + len(height)
    path.write_bytes(content[:at] + struct.pack("<I", 3_000_000) + content[at + 4 :])
    refused(lambda: load_image(path, 64), "holds 24 of its 3000000 rows")


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("L", (4000, 4000)).save(path, progressive=True)
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:-2] + content[last:-2] * 2000 + b"\xff\xd9")
    refused(lambda: load_image(path, 64), "more scans than any photo")


def test_a_progressive_jpeg_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.jpg", progressive=True)
    assert load_image(tmp_path / "a.jpg", 64).shape == (64, 64, 3)
