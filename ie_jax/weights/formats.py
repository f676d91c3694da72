"""Reading of published weight and config files into plain numpy and Python objects."""

import importlib.util
import json
import math
import mmap
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from ie_jax.errors import UserError
from ie_jax.files import MOST_JSON, need_file, parse_json, read_bytes

TORCH_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt"}
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")
VARIANTS = (
    *(".safetensors", ".fp16.safetensors"),
    *(".safetensors.index.json", ".safetensors.index.fp16.json"),
    *(".bin", ".fp16.bin", ".bin.index.json"),
)
"""Ends of what a network's weights are called in a diffusers folder, the wanted ones first."""
MOST_WEIGHTS, MOST_HEADER = 40_000_000_000, 20_000_000
"""Bytes of a weight file, and of the header of a `.safetensors` file."""
MOST_STRETCH = 4
"""So many times as large as its file may be what it declares: tensors can share their numbers."""
KINDS = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"},
    **{
        f"{sign}{bits}": f"{sign[0].upper()}{bits}"
        for sign in ("int", "uint")
        for bits in (8, 16, 32, 64)
    },
}
"""Types of numbers, by their names in numpy: what a `.safetensors` file calls them."""
PREFIXES = ("module.", "_orig_mod.", "unet.")
"""What wrappers (data parallel, compiled, a pipeline) put before every name."""


def read_tensors(path: Path, prefixes: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file, a torch `.pt`, `.pth` or `.bin` state dict, or the parts that an
    index (`.index.json`) names.

    Tensors keep their names, shapes and dtypes (bfloat16 is `ml_dtypes.bfloat16`). No pickled
    code is run: torch files are read with `weights_only=True`.

    Args:
        prefixes: of a `.safetensors` file only the tensors whose names begin so, if there are any.

    Raises:
        UserError: the file is missing, damaged, of another format or holds something that is
            not a tensor; or it is a torch file and torch is not installed.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file")
    need_file(path, MOST_WEIGHTS)
    if _INDEX.search(path.name):
        tensors = _read_parts(path)
    elif path.suffix == ".safetensors":
        tensors = _read_safetensors(path, prefixes)
    elif path.suffix in TORCH_SUFFIXES:
        tensors = _read_torch(path)
    else:
        raise UserError(f"{path} is not a weight file: expected .safetensors, .pt, .pth or .bin")
    if not tensors:
        raise UserError(f"{path} holds no tensors")
    return tensors


def weight_file(folder: Path, *stems: str) -> Path | None:
    """The file with a network's weights in a diffusers folder, whichever variant is there."""
    names = (f"{stem}{end}" for end in VARIANTS for stem in stems)
    return next((folder / name for name in names if (folder / name).is_file()), None)


def unprefixed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what a wrapper put before every name."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return unprefixed({name.removeprefix(prefix): x for name, x in tensors.items()})
    return tensors


def _read_parts(index: Path) -> dict[str, np.ndarray]:
    """The tensors of all files that an index names; they lie beside it."""
    parts = read_json(index).get("weight_map")
    names = {str(name) for name in parts.values()} if isinstance(parts, dict) else set()
    plain = (Path(x).name == x and not x.endswith(".json") for x in names)
    if not names or not all(plain):
        raise UserError(f"{index} is no index of weight files beside it")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(names):
        tensors |= read_tensors(index.parent / name)
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds one object.

    Raises:
        UserError: the file is missing, not JSON, or holds something else than an object.
    """
    try:
        content = parse_json(read_bytes(path, MOST_JSON))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_metadata(path: Path) -> dict[str, str]:
    """The free texts in the header of a `.safetensors` file; none for other formats."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with opened(path) as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error}") from error


def opened(path: Path) -> Any:
    """A `.safetensors` file, mapped into memory.

    Raises:
        UserError: it is none that can be.
        OSError, safetensors.SafetensorError: it cannot be read, or is damaged.
    """
    need_file(path, MOST_WEIGHTS)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER:
        raise safetensors.SafetensorError("its header is too long")
    return safetensors.safe_open(path, framework="numpy")


def names(path: Path) -> list[str]:
    """The names of a `.safetensors` file's tensors; none of a file that is damaged."""
    try:
        return list(opened(path).keys())
    except (UserError, OSError, safetensors.SafetensorError):
        return []


def write_tensors(
    file: BinaryIO, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file, equal bytes for equal content, one tensor after the other: the
    library's own holds all of them a second time, and has the texts of its header in any order."""
    texts = dict(sorted((metadata or {}).items()))
    if not all(isinstance(text, str) for text in texts.values()):  # what no reader would take
        raise TypeError(f"not texts alone: {texts}")
    header: dict[str, Any] = {"__metadata__": texts} if texts else {}
    # Wide numbers first, so that each lies at a multiple of its own width.
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    end = 0
    for name in order:
        x = tensors[name]
        start, end = end, end + x.nbytes
        kind = {"dtype": KINDS[x.dtype.name], "shape": list(x.shape)}
        header[name] = kind | {"data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


def mapped_tensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a sound `.safetensors` file, mapped into memory: the system reads of them what
    is used, and can forget it again. Changes stay in memory."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8))
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    header.pop("__metadata__", None)
    numbers = {kind: np.dtype(name) for name, kind in KINDS.items()}
    return {
        name: np.frombuffer(
            content,
            numbers[x["dtype"]],
            math.prod(x["shape"]),
            start + x["data_offsets"][0],
        ).reshape(x["shape"])
        for name, x in header.items()
    }


def number_types(path: Path) -> set[str]:
    """The types of numbers in a sound `.safetensors` file, by their names in its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}


def _read_safetensors(path: Path, prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    try:
        with opened(path) as file:
            names = list(file.keys())
            wanted = [name for name in names if name.startswith(prefixes)] or names
            return {name: file.get_tensor(name) for name in wanted}
    except (AttributeError, KeyError, TypeError) as error:  # of a type that numpy lacks
        kinds = ", ".join(sorted(number_types(path)))
        raise UserError(
            f"{path} holds numbers of a type that is not supported ({kinds}): save it with "
            "float32, float16 or bfloat16"
        ) from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged or not a safetensors file: {error}") from error
    except (OSError, ValueError) as error:  # the latter for sides that no array has
        raise UserError(f"cannot read {path}: {error}") from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    need_torch(path.name)
    import torch

    try:
        packed = zipfile.is_zipfile(path)
        if packed:
            with zipfile.ZipFile(path) as parts:
                if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                    raise ValueError("its parts are compressed, which torch does not write")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a torch state dict, or holds Python objects beside tensors, which are "
            "refused because loading them could run code"
        ) from error
    except Exception as error:  # torch has no common base class for what a damaged file causes
        reason = first_line(error)
        raise UserError(f"{path} is damaged or not a torch file: {reason}") from error

    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state dict")
    others = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"{path} has entries that are not tensors: {', '.join(others[:5])}")

    declared = sum(x.numel() * x.element_size() for x in content.values())
    if declared > MOST_STRETCH * path.stat().st_size:
        raise UserError(f"{path} declares {declared} bytes, many more than it holds")

    def to_numpy(tensor: Any) -> np.ndarray:
        if tensor.dtype == torch.bfloat16:  # numpy has no such type of its own
            return tensor.detach().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
        return tensor.detach().resolve_conj().resolve_neg().numpy()

    try:
        return {str(name): to_numpy(tensor) for name, tensor in content.items()}
    except Exception as error:  # sparse, quantised, without numbers
        reason = first_line(error)
        raise UserError(f"{path} has a tensor of a type that numpy lacks: {reason}") from error


def need_torch(what: str, extra: str = "convert", doing: str = "reading") -> None:
    """Raise UserError if torch is not installed, without importing it."""
    try:
        found = importlib.util.find_spec("torch")
    except ValueError:  # it is kept from being imported
        found = None
    if found is None:
        raise UserError(f"{doing} {what} needs torch: pip install 'ie_jax[{extra}]'")


def first_line(error: Exception) -> str:
    """What an error of torch says, without the C++ that follows."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
