"""Weights of the networks that judge pictures: LPIPS, and the world's attribute classifier."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import filelock
import h5py
import jax
import numpy as np

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, need_file, sha256
from ie_jax.models.lpips import DEPTHS, WIDTHS, alex_shapes, lpips_shapes, squeeze_shapes
from ie_jax.models.shapes import draw
from ie_jax.weights.convert import convert, find, flatten, unflatten
from ie_jax.weights.download import fetch_files, home, verify
from ie_jax.weights.formats import MOST_STRETCH, MOST_WEIGHTS, read_tensors, write_tensors
from ie_jax.weights.load import fingerprint
from ie_jax.weights.names import LPIPS, LPIPS_ALEX, LPIPS_SQUEEZE
from ie_jax.weights.published import JUDGE_FILES, LPIPS_FILES, HubFile, Published, single_files

VGG16 = "vgg16"
PERCEPTUAL, CLASSIFIER = "perceptual.safetensors", "classifier.safetensors"
"""In a model folder of the world."""
SUFFIXES = (".safetensors", ".pth", ".pt", ".h5")

Params = dict[str, Any]


def load_lpips(source: str, offline: bool = False, progress: bool = True) -> Params:
    """The parameters of `ie_jax.models.lpips`, numpy float32.

    Args:
        source: `vgg16`, `alex` or `squeeze` for the published weights, downloaded once and kept
            converted; or a file that `save_lpips` wrote; or a folder with nothing but the weight
            files of one network: torchvision's `vgg16-397923af.pth` and the `lpips` package's
            `vgg.pth`, or lpips-j's `vgg16_weights.h5` and `lpips_lin.h5`, or the former two as
            `.safetensors`; likewise of AlexNet and SqueezeNet. Widths of VGG are free.
        offline: never use the network.
        progress: show download bars.

    Raises:
        UserError: files are missing, damaged or do not make up one network.
    """
    if source in LPIPS_FILES:
        return published(LPIPS_FILES[source], offline, progress)
    path = Path(source).expanduser()
    if path.is_file():
        return read([path])
    if not path.is_dir():
        names = ", ".join(map(repr, LPIPS_FILES))
        raise UserError(f"no LPIPS weights at {source!r}: give {names}, a file or a folder")
    files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if not files:
        raise UserError(f"{path} holds no weight files of LPIPS ({', '.join(SUFFIXES)})")
    return read(files)


def published(source: Published, offline: bool, progress: bool) -> Params:
    """Published weights, from the cache if they were converted before."""
    folder = home() / "published"
    fetch_files(source, folder, offline=offline, progress=progress)
    files = [folder / file.path for file in single_files(source)]
    cache = home() / "lpips" / f"{fingerprint(files)}.safetensors"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(cache.with_suffix(".lock")):
            sums = cache.with_suffix(".sha256")
            if cache.is_file():
                try:
                    if sums.read_text() == sha256(cache):
                        return read([cache])
                except (OSError, ValueError, UserError):  # damaged: convert again
                    pass
            verify(folder, source)
            params = read(files)
            save_lpips(cache, params)
            sums.write_text(sha256(cache))
            return params
    except OSError as error:
        raise UserError(
            f"cannot use the cache folder {home()}: {error}: name another in IE_JAX_HOME"
        ) from error


def read(files: Sequence[Path]) -> Params:
    """One network from all of these files.

    Raises:
        UserError: they hold more or less than one network.
    """
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        found = read_h5(file) if file.suffix == ".h5" else read_tensors(file)
        if twice := tensors.keys() & found.keys():
            names = ", ".join(path.name for path in files)
            raise UserError(
                f"{file.parent} holds {min(twice)} twice (in {names}): keep one network"
            )
        tensors |= found
    return from_upstream(tensors, str(files[0] if len(files) == 1 else files[0].parent))


def read_h5(path: Path) -> dict[str, np.ndarray]:
    """All datasets of an HDF5 file by their full names, without the leading slash.

    Raises:
        UserError: the file is damaged, not an HDF5 file, or holds more than floating numbers.
    """
    datasets: dict[str, np.ndarray] = {}

    def collect(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset):
            check_dataset(item, name, str(path), path.stat().st_size)
            datasets[name] = item[()]

    try:
        need_file(path, MOST_WEIGHTS)
        with h5py.File(path) as file:
            file.visititems(collect)
    except UserError:
        raise
    except Exception as error:  # nearly any type
        raise UserError(f"{path} is damaged or not an HDF5 file: {error}") from error
    return datasets


def check_dataset(item: h5py.Dataset, name: str, where: str, size: int) -> None:
    """Raise UserError unless a dataset's numbers lie in its own file, of `size` bytes, and are not
    many more than that holds."""
    if item.dtype.kind != "f" or item.shape is None:
        raise UserError(f"{where} has other entries than floating numbers: {name}")
    if item.is_virtual or item.external:
        raise UserError(f"{where} has numbers in another file, which is not read: {name}")
    chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
    held = min(item.id.get_storage_size(), size)
    if max(item.nbytes, chunk) > MOST_STRETCH * held:
        raise UserError(f"{where} holds {held} of the {item.nbytes} bytes of {name}")


def from_upstream(tensors: Mapping[str, np.ndarray], where: str) -> Params:
    """The parameter tree of named tensors.

    Raises:
        UserError: all that is missing, superfluous or misshapen; `where` names the files.
    """
    if any(name.startswith(("fire", "features.3.squeeze")) for name in tensors):
        return convert(tensors, LPIPS_SQUEEZE, squeeze_shapes(), where)
    if "conv1/kernel" in tensors or tensors.get("features.0.weight", np.empty(0)).shape[-1] == 11:
        return convert(tensors, LPIPS_ALEX, alex_shapes(), where)
    return convert(tensors, LPIPS, lpips_shapes(*structure(tensors)), where)


def structure(tensors: Mapping[str, np.ndarray]) -> tuple[Sequence[int], Sequence[int]]:
    """Widths and depths of the network that tensors belong to, as their biases tell. A network in
    upstream naming has VGG16's depths, whatever it lacks."""
    blocks: dict[int, list[int]] = {}
    for name, x in tensors.items():
        with suppress(LookupError):
            bias = re.fullmatch(r"conv(\d+)_\d+/bias", find(LPIPS, name)[1] or "")
            if bias:
                blocks.setdefault(int(bias[1]), []).append(x.size)
    if any(name.endswith("/kernel") for name in tensors):
        layers = [blocks[block] for block in sorted(blocks)]
        return [outs[0] for outs in layers], [len(outs) for outs in layers]
    return [blocks.get(i, [width])[0] for i, width in enumerate(WIDTHS, start=1)], DEPTHS


def save_lpips(
    path: Path, params: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Write parameters as one `.safetensors` file that `load_lpips` reads."""
    tensors = {name: np.asarray(x, np.float32) for name, x in flatten(params).items()}
    with appearing_whole(path) as file:
        write_tensors(file, tensors, metadata)


def with_even_heads(vgg: Mapping[str, Any]) -> Params:
    """A trained network's convolutions as LPIPS in which all channels of all blocks count alike:
    the mean over blocks of the squared distance of unit features (Zhang et al. 2018, the variant
    without learned heads)."""
    count = sum(name.endswith("_1") for name in vgg)
    widths = [vgg[f"conv{block}_1"]["bias"].size for block in range(1, count + 1)]
    heads = {
        f"lin{i}": {"weight": np.full(width, 1 / count, np.float32)}
        for i, width in enumerate(widths)
    }
    return {**vgg, **heads}


def random_lpips(seed: int, widths: Sequence[int] = WIDTHS) -> Params:
    """Random weights of VGG16's depth, for tests and trials. The heads are not negative, as those
    of a distance must be."""
    params = draw(lpips_shapes(widths), seed)
    rng = np.random.default_rng(seed)
    for layer, width in enumerate(widths):
        weight = rng.uniform(0, 2 / np.sqrt(width), width)
        params[f"lin{layer}"] = {"weight": weight.astype(np.float32)}
    return params


# --- Networks that torch runs ---------------------------------------------------------------------


def judge_files(
    name: str, folder: Path | None = None, offline: bool = False, progress: bool = True
) -> list[Path]:
    """Where the files of a network of `JUDGE_FILES` lie.

    Args:
        folder: holds them as the hub does, with or without the owner's name: such as
            `openai/clip-vit-large-patch14/config.json` or `clip-vit-large-patch14/config.json`.
            None: they are downloaded once.

    Raises:
        UserError: they cannot be had.
    """
    source = JUDGE_FILES[name]
    files = single_files(source)
    if folder is None:
        place = home() / "published"
        fetch_files(source, place, offline=offline, progress=progress)
        verify(place, source)
        return [place / file.path for file in files]
    found = []
    for file in files:
        owned = f"{file.repo}/{file.name}" if isinstance(file, HubFile) else file.path
        both = [folder / owned, folder / file.path]
        # Which of a network's weight files there is, its reader sees.
        found.append(next((path for path in both if path.parent.is_dir()), both[1]))
        if not found[-1].parent.is_dir():
            raise UserError(f"{folder} lacks the folder {file.path.rpartition('/')[0]} of {name}")
    return found


# --- The classifier -------------------------------------------------------------------------------

VALUES: Mapping[str, int] = {
    **{"shape": 6, "colour": 9, "surface": 4, "background": 6},
    **{"right_shape": 6, "right_colour": 9, "right_surface": 4},
}
"""How many values each attribute of the world takes."""


def classifier_shapes(widths: Sequence[int], depths: Sequence[int]) -> dict[str, Any]:
    """The parameters of `classify`, as shapes: `depths[i]` convolutions of `widths[i]` channels in
    block i."""

    def shape(*sides: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sides, np.float32)

    vgg = {name: x for name, x in lpips_shapes(widths, depths).items() if "conv" in name}
    pooled = 4 * widths[-1]
    heads = {name: {"kernel": shape(pooled, n), "bias": shape(n)} for name, n in VALUES.items()}
    return {"vgg": vgg, "heads": heads}


def save_classifier(path: Path, params: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Write the parameters of `classify` as one `.safetensors` file."""
    tensors = {name: np.ascontiguousarray(x, np.float32) for name, x in flatten(params).items()}
    with appearing_whole(path) as file:
        write_tensors(file, tensors, metadata)


def load_classifier(path: Path) -> dict[str, Any]:
    """The parameters of `classify`, numpy float32.

    Raises:
        UserError: the file is missing, damaged, or not a classifier of the world.
    """
    tensors = read_tensors(path)
    blocks: dict[str, list[int]] = {}
    for name in sorted(tensors):
        if name.startswith("vgg/conv") and name.endswith("/bias"):
            blocks.setdefault(name.split("_")[0], []).append(tensors[name].size)
    found = {name: x.shape for name, x in tensors.items()}
    widths, depths = [x[0] for x in blocks.values()], [len(x) for x in blocks.values()]
    wanted = flatten(classifier_shapes(widths, depths)) if blocks else {}
    if not wanted or found != {name: x.shape for name, x in wanted.items()}:
        raise UserError(f"{path} is not a classifier of the embedded world")
    return unflatten({name: np.asarray(x, np.float32) for name, x in tensors.items()})
