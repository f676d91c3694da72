import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from ie_jax.errors import UserError
from ie_jax.weights.formats import (
    mapped_tensors,
    read_json,
    read_tensors,
    unprefixed,
    weight_file,
    write_tensors,
)
from tests.weights.server import recorded_checkpoints


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    return message


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    values = np.linspace(-3, 3, 24).reshape(4, 6)
    return {
        "single": values.astype(np.float32),
        "half": values.astype(np.float16),
        "brain": values.astype(ml_dtypes.bfloat16),
        "scalar": np.array(7, np.int64),
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_safetensors(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
    assert_same(read_tensors(tmp_path / "a.safetensors"), arrays)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_torch(tmp_path: Path, arrays: dict[str, np.ndarray], zipped: bool, nested: bool) -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        name: torch.from_numpy(array.astype(np.float32)).bfloat16()
        if name == "brain"
        else torch.from_numpy(array)
        for name, array in arrays.items()
    }
    tensors["transposed"] = torch.nn.Parameter(tensors["single"].T)
    content = {"state_dict": tensors, "step": 3} if nested else tensors
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert_same(read_tensors(tmp_path / "a.pt"), arrays | {"transposed": arrays["single"].T})


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "text"])
def test_damaged_safetensors(tmp_path: Path, arrays: dict[str, np.ndarray], damage: str) -> None:
    path = tmp_path / "a.safetensors"
    content = safetensors.numpy.save(arrays)
    damaged = {
        "truncated": content[:-1],
        "header": content[:20] + b"!" + content[21:],
        "empty": b"",
        "text": b"<html>not found</html>",
    }
    path.write_bytes(damaged[damage])
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "safetensors"])
def test_damaged_torch(tmp_path: Path, arrays: dict[str, np.ndarray], damage: str) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    if damage == "truncated":
        torch.save({"a": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "safetensors":
        path.write_bytes(safetensors.numpy.save(arrays))
    else:
        path.write_bytes(b"<html>" if damage == "text" else b"")
    refusal(path)


class _Payload:
    """Leaves a trace where unpickling runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


def test_parts_by_an_index(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    names = sorted(arrays)
    for i in range(2):
        part = {name: arrays[name] for name in names[i::2]}
        safetensors.numpy.save_file(part, tmp_path / f"part{i}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    weight_map = {name: f"part{i % 2}.safetensors" for i, name in enumerate(names)}
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(read_tensors(index), arrays)
    variant = index.rename(tmp_path / "model.safetensors.index.fp16.json")
    assert_same(read_tensors(variant), arrays)
    (tmp_path / "part1.safetensors").unlink()
    with pytest.raises(UserError, match=r"part1\.safetensors is not a file"):
        read_tensors(variant)


@pytest.mark.parametrize("parts", [{}, [], {"a": "../x.safetensors"}, {"a": "m.index.json"}, None])
def test_an_index_stays_in_its_folder(tmp_path: Path, parts: Any) -> None:
    index = tmp_path / "m.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    assert "is no index of weight files" in refusal(index)


def test_what_wrappers_put_before_names_is_taken_off() -> None:
    x = np.ones(1)
    wrapped = {"module._orig_mod.unet.a.b": x, "module._orig_mod.unet.c": x}
    assert unprefixed(wrapped).keys() == {"a.b", "c"}
    assert unprefixed({"module.a": x, "b": x}).keys() == {"module.a", "b"}
    assert unprefixed({}) == {}


def test_the_wanted_variant_of_a_file_is_taken(tmp_path: Path) -> None:
    assert weight_file(tmp_path, "model") is None
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "model.safetensors"):
        (tmp_path / name).touch()
        assert weight_file(tmp_path, "model", "pytorch_model") == tmp_path / name


def test_a_type_that_numpy_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "F8_E4M3" in refusal(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    content = {"a": torch.ones(2), "b": _Payload(tmp_path / "trace")}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert "refused" in refusal(tmp_path / "a.pt")
    assert not (tmp_path / "trace").exists()
    # The payload is a real one.
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "trace").exists()


def test_torch_files_that_are_no_state_dicts(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.pt"
    torch.save({"a": torch.ones(2), "epoch": 3}, path)
    assert "epoch" in refusal(path)
    torch.save(torch.ones(2), path)
    assert "not a state dict" in refusal(path)
    torch.save({}, path)
    assert "no tensors" in refusal(path)
    torch.save({"a": torch.ones(2).to(torch.float8_e4m3fn)}, path)
    assert "numpy lacks" in refusal(path)


def test_torch_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "a.pt").touch()
    assert "pip install 'ie_jax[convert]'" in refusal(tmp_path / "a.pt")


def test_other_files(tmp_path: Path) -> None:
    assert "not a file" in refusal(tmp_path / "missing.safetensors")
    (tmp_path / "a.txt").touch()
    assert "expected .safetensors" in refusal(tmp_path / "a.txt")


def test_equal_content_is_equal_bytes(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    texts = {f"ключ {i}": f"{i}" for i in range(9)}
    written = []
    for names in (list(texts), list(reversed(texts))):
        file = io.BytesIO()
        write_tensors(file, arrays, {name: texts[name] for name in names})
        written.append(file.getvalue())
    assert written[0] == written[1]
    header = json.loads(written[0][8 : 8 + int.from_bytes(written[0][:8], "little")])
    assert list(header["__metadata__"]) == sorted(texts)
    (tmp_path / "a.safetensors").write_bytes(written[0])
    assert_same(read_tensors(tmp_path / "a.safetensors"), arrays)
    mapped = mapped_tensors(tmp_path / "a.safetensors")
    assert_same(mapped, arrays)
    mapped["single"][:] = 0  # in memory alone
    assert_same(mapped_tensors(tmp_path / "a.safetensors"), arrays)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "ü"]}', encoding="utf-8")
    assert read_json(path) == {"a": [1, "ü"]}
    for content in (b"{", b"[1]", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.json"):
            read_json(path)
    with pytest.raises(UserError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


def test_recorded_checkpoints() -> None:
    torch = pytest.importorskip("torch")
    checkpoints = recorded_checkpoints()
    teacher = read_tensors(checkpoints / "sd15_cfg_distill.pt")
    assert teacher["time_embedding.cond_proj.weight"].shape[1] == 512
    expected = torch.load(checkpoints / "sd15_cfg_distill.pt", weights_only=True)
    assert_same(teacher, {name: tensor.numpy() for name, tensor in expected.items()})
    assert len(read_tensors(checkpoints / "finetuned_forward_model.safetensors")) == 554
    pipeline = checkpoints / "stable-diffusion-v1-5"
    assert read_json(pipeline / "unet" / "config.json")["cross_attention_dim"] == 32
