"""Latents on disk: what is stored, that work is never done twice, and bad folders."""

import json
import resource
import shutil
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from ie_jax.data import latents
from ie_jax.data.latents import Latents, cache_latents, fingerprint, read_index
from ie_jax.data.loader import BrokenImage, Loader
from ie_jax.data.pictures import Pictures
from ie_jax.data.sources import folder
from ie_jax.errors import UserError
from tests.data.pictures import number_of, tokenize, write_folder


@dataclass
class Encoders:
    """Encoders that make it plain what they were given."""

    encoded: list[int] = field(default_factory=list)
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    scale: float = 1.0
    stop_at: int | None = None

    def encode(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = number_of(pixels)
        if self.stop_at in numbers:
            raise KeyboardInterrupt
        self.encoded += numbers.tolist()
        self.shapes.add(pixels.shape)
        mean = np.broadcast_to(numbers[:, None, None, None], (len(numbers), 1, 2, 3))
        return mean * self.scale, mean + 0.5

    def embed(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {"context": ids[:, :, None] * np.ones(2)}


def pictures(path: Path, count: int = 10, size: int = 8) -> Pictures:
    if not path.exists():
        write_folder(path, count)
    return Pictures(folder(path), tokenize, size)


def cache(data: Pictures, out: Path, encoders: Encoders | None = None, **options: Any) -> Any:
    use = encoders or Encoders()
    settings: dict[str, Any] = {
        "model": "m",
        "batch_size": 3,
        "shard": 4,
        "progress": False,
    } | options
    return cache_latents(data, out, use.encode, use.embed, **settings)


def read_numbers(path: Path) -> list[int]:
    data = Latents(path)
    rng = np.random.default_rng()
    return [int(data.read(i, rng)[1]["mean"].flat[0]) for i in range(len(data))]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("pixels", [False, True])
def test_all_is_read_as_it_was_written(dtype: Any, pixels: bool, tmp_path: Path) -> None:
    encoders = Encoders()
    data = pictures(tmp_path / "in")
    index = cache(data, tmp_path / "out", encoders, dtype=dtype, pixels=pixels)
    assert index.counts == (4, 4, 2) and index == read_index(tmp_path / "out")
    assert encoders.shapes == {(3, 8, 8, 3)}  # one shape: one compilation

    read = Latents(tmp_path / "out")
    loader = Loader(read, range(len(read)), 5, training=False)
    numbers = []
    for batch in loader:
        assert set(batch) == {"mean", "std", "context", *(["pixels"] if pixels else [])}
        assert [batch[k].dtype for k in ("mean", "std", "context")] == [np.dtype(dtype)] * 3
        assert batch["mean"].shape == batch["std"].shape == (5, 1, 2, 3)
        assert batch["context"].shape == (5, 4, 2)
        found = batch["mean"][:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(batch["std"][:, 0, 1, 2], found + 0.5)
        np.testing.assert_array_equal(batch["context"][:, 0, 0], found)
        assert loader.names == tuple(str(tmp_path / "in" / f"{n:04}.png") for n in found)
        if pixels:
            assert batch["pixels"].dtype == np.uint8
            np.testing.assert_array_equal(number_of(batch["pixels"]), found)
        numbers += found.tolist()
    assert numbers == list(range(10))


def test_what_was_done_is_not_done_again(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        cache(data, out, Encoders(stop_at=9))
    assert sorted(p.name for p in out.iterdir()) == [
        *("00000.array_record", "00001.array_record", "index.json")
    ]
    with pytest.raises(UserError, match="holds no finished latents"):
        Latents(out)
    rest, none = Encoders(), Encoders()
    cache(data, out, rest)
    assert set(rest.encoded) == {8, 9}
    cache(data, out, none)
    assert none.encoded == [] and read_numbers(out) == list(range(10))


def test_a_killed_run_leaves_nothing_that_counts(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / ".00000.array_record.1234.part").write_bytes(b"half")
    cache(data, out)
    assert sorted(p.suffix for p in out.iterdir()) == [*[".array_record"] * 3, ".json"]


def test_broken_pictures_are_left_out(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    for number in (0, 5):
        (tmp_path / "in" / f"{number:04}.png").write_bytes(b"broken")
    with pytest.warns(BrokenImage) as caught:
        index = cache(data, out, max_broken=0.5)
    assert len(caught) == 2 and index.counts == (3, 3, 2)
    assert read_numbers(out) == [1, 2, 3, 4, 6, 7, 8, 9]


def test_a_shard_of_broken_pictures_only(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    for number in range(4, 8):
        (tmp_path / "in" / f"{number:04}.png").write_bytes(b"broken")
    with pytest.warns(BrokenImage):
        index = cache(data, out, max_broken=0.5)
    assert index.counts == (4, 0, 2) and read_numbers(out) == [0, 1, 2, 3, 8, 9]


def test_too_many_broken_pictures_stop(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", 3)
    (tmp_path / "in" / "0000.png").write_bytes(b"broken")
    with pytest.warns(BrokenImage):  # one is not many
        assert cache(data, tmp_path / "one").counts == (2,)
    (tmp_path / "in" / "0001.png").write_bytes(b"broken")
    with pytest.warns(BrokenImage), pytest.raises(UserError, match=r"2 of 3 images.*0000\.png"):
        cache(data, tmp_path / "out")
    for number in range(3):
        (tmp_path / "in" / f"{number:04}.png").write_bytes(b"broken")
    with pytest.warns(BrokenImage), pytest.raises(UserError, match="all images are broken"):
        cache(data, tmp_path / "all", max_broken=1.0)


def test_what_was_broken_before_an_interruption_counts(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    for number in (0, 1):
        (tmp_path / "in" / f"{number:04}.png").write_bytes(b"broken")
    with pytest.warns(BrokenImage), pytest.raises(KeyboardInterrupt):
        cache(data, out, Encoders(stop_at=5), max_broken=0.15)
    with pytest.raises(UserError, match=r"2 of 10 images are broken.*earlier"):
        cache(data, out, max_broken=0.15)
    assert cache(data, out, max_broken=0.2).counts == (2, 4, 2)


@pytest.mark.parametrize(
    "change",
    [{"model": "n"}, {"dtype": "float32"}, {"pixels": True}, {"shard": 5}, {"size": 9}],
)
def test_other_settings_do_not_mix(change: dict[str, Any], tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    cache(data, out)
    if "size" in change:
        data, change = replace(data, size=change["size"]), {}
    with pytest.raises(UserError, match=r"index\.json: was made with \w+ .* another folder"):
        cache(data, out, **change)
    assert read_numbers(out) == list(range(10))


def test_what_does_not_fit_the_number_type_is_refused(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    with pytest.raises(UserError, match=r"mean of one of .*float32"):
        cache(data, out, Encoders(scale=1e5))
    cache(data, out, Encoders(scale=1e5), dtype="float32")  # nothing was kept of the first


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in", 1)
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UserError, match="cannot be written"):
            cache(data, place)


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    monkeypatch.setattr(latents.os, "fsync", fail)
    with pytest.raises(UserError, match="No space left"):
        cache(data, out)
    assert not list(out.glob("*.array_record")) and not list(out.glob(".*"))


def test_a_disk_that_fills_up_is_told_in_one_line(tmp_path: Path) -> None:
    data = pictures(tmp_path / "in")
    with bounded_files(100_000), pytest.raises(UserError, match=r"cannot be written: .*too large"):
        cache(data, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.array_record"))


@contextmanager
def bounded_files(most: int) -> Iterator[None]:
    """No file grows over so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def damage_index(content: str) -> Any:
    return lambda out: (out / "index.json").write_text(content)


def change_index(**values: Any) -> Any:
    def change(out: Path) -> None:
        index = json.loads((out / "index.json").read_text())
        index["config"] |= values.pop("config", {})
        (out / "index.json").write_text(json.dumps(index | values))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: shutil.rmtree(out), "there is no such folder"),
        (lambda out: (out / "index.json").unlink(), "holds no finished latents"),
        (damage_index("{"), "cannot be read"),
        (damage_index("[]"), "index.json"),
        (damage_index("{}"), "missing"),
        (change_index(config={"format": 99}), "format 99, not 2"),
        (change_index(counts=[4, 4, 1]), "or not what index.json says"),
        (lambda out: (out / "00001.array_record").unlink(), "00001.array_record: is missing"),
        (lambda out: (out / "00001.array_record").write_bytes(b"short"), "is missing, damaged"),
    ],
)
def test_bad_folders_are_refused(damage: Any, message: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache(pictures(tmp_path / "in"), out)
    damage(out)
    with pytest.raises(UserError, match=message) as caught:
        Latents(out)
    assert "\n" not in str(caught.value)


def test_a_damaged_file_is_made_again(tmp_path: Path) -> None:
    data, out, encoders = pictures(tmp_path / "in"), tmp_path / "out", Encoders()
    cache(data, out)
    (out / "00001.array_record").write_bytes(b"short")
    cache(data, out, encoders)
    assert set(encoders.encoded) == {4, 5, 6, 7} and read_numbers(out) == list(range(10))


def test_files_of_another_origin_are_left_alone(tmp_path: Path) -> None:
    data, out = pictures(tmp_path / "in"), tmp_path / "out"
    out.mkdir()
    (out / "00000.array_record").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holds records without index\.json: name another"):
        cache(data, out)
    assert (out / "00000.array_record").read_bytes() == b"mine"


def test_a_picture_whose_bytes_have_changed_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cache(pictures(tmp_path / "in"), out)
    path = out / "00001.array_record"
    content = path.read_bytes()
    start = content.index(b"(\xb5/\xfd") + 20  # zstd's magic number: the first picture's
    path.write_bytes(content[:start] + bytes([content[start] ^ 1]) + content[start + 1 :])
    with pytest.raises(UserError, match="image 4 of the latents: Corrupted"):
        read_numbers(out)


def test_the_fingerprint_knows_names_shapes_types_and_values() -> None:
    def tree(values: Sequence[float], dtype: Any = np.float32, name: str = "w") -> dict[str, Any]:
        return {"layer": {name: np.array(values, dtype), "scalar": np.float32(1)}}

    known = fingerprint(tree([1, 2]))
    assert fingerprint(tree([1, 2])) == known
    others = [
        fingerprint(other)
        for other in (
            tree([1, 3]),
            tree([[1, 2]]),  # type: ignore[list-item]
            tree([1, 2], np.float64),
            tree([1, 2], ml_dtypes.bfloat16),
            tree([1, 2], name="v"),
        )
    ]
    assert len({known, *others, fingerprint(tree([1, 2]), tree([1, 2]))}) == 7
