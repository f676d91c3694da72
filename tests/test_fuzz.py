"""Readers end in success or in one line, within bounds of time and memory, whatever a file holds.

Sound small files are cut, spliced and changed by bytes and by their lengths; texts are drawn. More
than `make test` takes: `make fuzz MINUTES=10`.
"""

import io
import itertools
import json
import os
import random
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from ie_jax.config import read_yaml
from ie_jax.data.captions import read_table, text_captions
from ie_jax.data.images import load_image
from ie_jax.data.latents import Latents, write_part
from ie_jax.editing.jobs import jobs_of_list
from ie_jax.models.networks import Architecture
from ie_jax.models.shapes import unet_shapes
from ie_jax.weights.download import unpack
from ie_jax.weights.formats import read_json, read_tensors
from ie_jax.weights.judges import read_h5
from ie_jax.weights.lora_files import lora_tensors_peft, read_lora
from ie_jax.weights.untrained import random_pipeline
from tests.bounds import bounded
from tests.tiny import SMALLEST_MODEL

SECONDS = float(os.environ.get("FUZZ_SECONDS", 12))
"""For all readers together."""
Draw = Callable[[random.Random], bytes]


# --- Sound files ---


def pictures() -> list[bytes]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 16, 3), np.uint8))
    found = []
    for name, options in [
        *(("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})),
        *(("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {})),
        *(("AVIF", {}), ("TIFF", {"compression": "tiff_adobe_deflate"})),
    ]:
        file = io.BytesIO()
        image.save(file, name, **options)  # type: ignore[arg-type]
        found.append(file.getvalue())
    return found


def numbers() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "features.0.weight": rng.normal(size=(2, 3, 3, 3)).astype(np.float32),
        "features.0.bias": rng.normal(size=2).astype(np.float16),
    }


def h5_files() -> list[bytes]:
    found = []
    for options in ({}, {"chunks": True, "compression": "gzip", "fletcher32": True}):
        file = io.BytesIO()
        with h5py.File(file, "w") as content:
            for name, x in numbers().items():
                content.create_dataset(f"conv/{name}", data=x, **options)
        found.append(file.getvalue())
    return found


def torch_files() -> list[bytes]:
    torch = pytest.importorskip("torch")
    found = []
    for zipped in (True, False):
        file = io.BytesIO()
        tensors = {name: torch.from_numpy(x) for name, x in numbers().items()}
        torch.save(tensors, file, _use_new_zipfile_serialization=zipped)
        found.append(file.getvalue())
    return found


def archives() -> list[bytes]:
    found = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as content:
            for name in ("folder/a", "b" * 120, "é"):
                info = tarfile.TarInfo(name)
                info.size = 700
                content.addfile(info, io.BytesIO(bytes(700)))
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.LNKTYPE, "folder/a"
            content.addfile(link)
        found.append(file.getvalue())
    return found


def lora() -> list[bytes]:
    tensors = lora_tensors_peft(random_pipeline().weights.forward)
    some = dict(itertools.islice(tensors.items(), 6))
    told = {"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 4, "alpha_pattern": {}}'}
    return [save(some, told)]


def part() -> list[bytes]:
    arrays = {name: np.ones((2, 2, 1), np.float16) for name in ("mean", "std", "context")}
    records = [save(arrays | {"name": np.frombuffer(name, np.uint8)}) for name in (b"a", b"b")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part"
        write_part(path, records)
        return [path.read_bytes()]


LATENTS: dict[str, Any] = {
    "config": {
        **{"model": "m", "source": "s", "length": 2, "size": 16, "captions": "first"},
        **{"dtype": "float16", "pixels": False, "shard": 2, "format": 2},
    },
    "counts": [2],
}
YAML = b"""a: &a [1, 2.5, x]\nb: {c: *a, <<: {d: 2024-01-01}}\ne: |\n  text\nf: !!int '3'\n"""
JSON = b'{"a": [1, -2.5e3, "\\u00e9\\ud83d", null], "weight_map": {"a": "b.bin"}}'
JSONL = b'{"image": "a.png", "source": "a", "target": ["b", "c"], "seed": 3, "name": "x"}\n'
ROWS = b'{"file_name": "a.png", "text": ["a cat", "b"]}\n{"file_name": "b.png", "text": "c"}\n'
CSV = b'file_name,text\na.png,"a ""cat"", here"\r\nb.png,c, d\n'


# --- Readers ---


def read_gz(path: Path) -> None:
    """An archive, packed only now: a change of a packed byte is seen by its checksum."""
    import gzip

    packed = path.with_name("a.tar.gz")
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    unpack(packed, path.with_name("out"))


def read_latents(path: Path) -> None:
    """All of a folder with one file."""
    (path.parent / "index.json").write_text(json.dumps(LATENTS))
    latents = Latents(path.parent)
    rng = np.random.default_rng(0)
    latents.batch([latents.read(i, rng)[1] for i in range(len(latents))])


def read_index(path: Path) -> None:
    """A folder's index, beside a sound file."""
    (path.parent / "00000.array_record").write_bytes(part()[0])
    Latents(path.parent)


def arch() -> Architecture:
    return SMALLEST_MODEL


READERS: dict[str, tuple[str, Callable[[], list[bytes]], Callable[[Path], Any]]] = {
    "image": ("a.png", pictures, lambda path: load_image(path, 16)),
    "yaml": ("a.yaml", lambda: [YAML], read_yaml),
    "json": ("a.json", lambda: [JSON], read_json),
    "index": ("a.index.json", lambda: [JSON], read_tensors),
    "safetensors": ("a.safetensors", lambda: [save(numbers(), {"a": "b"})], read_tensors),
    "torch": ("a.pt", torch_files, read_tensors),
    "h5": ("a.h5", h5_files, read_h5),
    "tar": ("a.tar", archives, read_gz),
    "list": ("a.jsonl", lambda: [JSONL], lambda path: jobs_of_list(path, 0)),
    "table": ("metadata.jsonl", lambda: [ROWS], read_table),
    "csv": ("metadata.csv", lambda: [CSV], read_table),
    "caption": ("a.txt", lambda: ["\ufeffa cat\n é".encode()], text_captions),
    "lora": ("a.safetensors", lora, lambda path: read_lora(path, unet_shapes(arch().unet))),
    "latents": ("00000.array_record", part, read_latents),
    "latent index": ("index.json", lambda: [json.dumps(LATENTS).encode()], read_index),
}


# --- Changes ---

SPECIAL = [0, 1, 127, 128, 255]
WORDS = [b"[", b"]", b"{", b"}", b'"', b"\\", b"*a", b"&a ", b"!!int ", b"\n", b"\0", b"9" * 30]
WORDS += [b"\xff", b"\\ud800", b"null", b"-1", b"1e999", b"..", b"/", b",", b"\r", b"\xef\xbb\xbf"]


def changed(content: bytes, draw: random.Random) -> bytes:
    """A file with a few changes: bytes, lengths, words, parts of itself, its end."""
    found = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        # Headers are at the start.
        place = draw.randrange(max(1, draw.choice([len(found), min(len(found), 200)])))
        match draw.randrange(7):
            case 0 if found:
                found[place] ^= 1 << draw.randrange(8)
            case 1 if found:
                found[place] = draw.choice(SPECIAL)
            case 2:
                size = draw.choice([1, 2, 4, 8])
                value = draw.choice([0, 1, 2**7, 2 ** (8 * size - 1), 2 ** (8 * size) - 1])
                order = draw.choice(["little", "big"])
                found[place : place + size] = value.to_bytes(size, order)
            case 3:
                found[place : place + draw.choice([0, 1, 4])] = draw.choice(WORDS)
            case 4:
                other = draw.randrange(len(found) + 1)
                found[place:place] = found[other : other + draw.randrange(64)]
            case 5:
                del found[place : place + draw.randrange(64)]
            case 6:
                del found[place:]
    return bytes(found)


@pytest.fixture(scope="module")
def until() -> Iterator[Callable[[str], float]]:
    """When the time of a reader is over."""
    yield lambda name: time.monotonic() + SECONDS / len(READERS) / 2


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", READERS)
def test_changed_files_are_read_or_refused(
    name: str, until: Callable[[str], float], tmp_path: Path
) -> None:
    file, sound, read = READERS[name]
    sources, path = sound(), tmp_path / file
    for content in sources:  # so that what is changed comes to the reader, and all is imported
        path.write_bytes(content)
        read_or_refuse(read, path)
    start = int(os.environ.get("FUZZ_SEED", 0))
    end = until(name)
    for number in itertools.count(start):
        draw = random.Random(f"{name} {number}")
        path.write_bytes(changed(draw.choice(sources), draw))
        try:
            bounded(lambda: read(path))
        except BaseException as error:
            error.add_note(f"FUZZ_SEED={number} pytest tests/test_fuzz.py -k '{name}'")
            raise
        if time.monotonic() > end:
            return


def read_or_refuse(read: Callable[[Path], Any], path: Path) -> None:
    """Read without bounds."""
    from ie_jax.errors import UserError

    try:
        read(path)
    except UserError:
        return


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=8,
)
KEYS = ["image", "source", "target", "seed", "name", "file_name", "text", "config", "counts"]


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["yaml", "json", "list", "table", "csv", "latent index"])
def test_drawn_texts_are_read_or_refused(
    name: str, until: Callable[[str], float], tmp_path: Path
) -> None:
    file, _, read = READERS[name]
    end = until(name)
    objects = st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), VALUES).map(json.dumps)
    lines = st.lists(objects, max_size=3).map("\n".join)

    drawn = st.one_of(objects, lines, st.text(), VALUES.map(json.dumps))
    usual = settings(
        max_examples=25,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )

    def check(text: str) -> None:
        (tmp_path / file).write_bytes(text.encode("utf-8", "surrogatepass"))
        bounded(lambda: read(tmp_path / file))

    for number in itertools.count(int(os.environ.get("FUZZ_SEED", 0))):
        seed(number)(usual(given(drawn)(check)))()
        if time.monotonic() > end:
            return
