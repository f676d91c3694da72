"""LoRA files of any tool, as trees in which alpha is 8 whatever the rank (method 1).

A tensor's name tells the module, the factor and sometimes the adapter, in the ways of PEFT,
diffusers and kohya's tools. How strong the LoRA is stands in one of four places: an alpha beside
the factors, PEFT's config in the header, the same in `adapter_config.json` beside the file, or
nowhere. kohya then means the rank; in all other namings it is 8, as in the published files.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ie_jax.errors import UserError
from ie_jax.files import appearing_whole, parse_json
from ie_jax.models.lora import ALPHA, lora_shapes
from ie_jax.weights.convert import as_upstream, convert, flatten
from ie_jax.weights.formats import read_json, read_metadata, read_tensors, write_tensors
from ie_jax.weights.names import KOHYA, LORA, kohya, local, peft
from ie_jax.weights.original import originals

Tree = Any
Tensors = Mapping[str, np.ndarray]

NAMES = (
    re.compile(r"(?P<module>.+)\.lora_(?P<part>A|B|down|up)(\.(?P<adapter>[^.]+))?\.weight"),
    re.compile(
        r"(?P<module>.+?)(\.|_|\.processor\.)lora(_linear_layer)?\.(?P<part>down|up)\.weight"
    ),
    re.compile(r"(?P<module>.+)\.(?P<part>alpha)"),
)
FACTORS = {"A": "down", "B": "up"}
PREFIX = re.compile(
    rf"(unet\.|base_model\.model\.|(model\.)?diffusion_model\.|module\.|_orig_mod\.|{KOHYA})*"
)
ADAPTER, CONFIG = "adapter_model", "adapter_config.json"
IN_FOLDERS = (f"{ADAPTER}.safetensors", "pytorch_lora_weights.safetensors", f"{ADAPTER}.bin")
"""What PEFT and diffusers call the file where they write a folder."""
WEIGHT_FILES = {".safetensors", ".bin", ".pt", ".pth"}


@dataclass
class Module:
    """What a file holds of one module."""

    name: str
    """As upstream has it, with dots."""
    tensors: dict[str, np.ndarray]
    """`down`, `up`, `alpha`."""
    files: list[str]
    """Their names in the file."""


def read_lora(path: Path, base: Tree) -> Tree:
    """A LoRA for the base weights of these shapes, in any naming (see this file's head).

    Where a file has another alpha than 8, `up` is multiplied so that the weights change as the file
    wants; where ranks differ, the smaller factors are filled with zeros.

    Args:
        path: the file, or the folder that PEFT or diffusers wrote it to.

    Raises:
        UserError: missing, damaged, not a LoRA of all target modules, or of a kind that is not
            supported.
    """
    path = file_of(path)
    tensors, where = read_tensors(path), str(path)
    config = config_of(path, where)
    modules, rest = modules_of(tensors, base, where)
    if not modules:
        raise UserError(f"{where}: no LoRA in the naming of PEFT, diffusers or kohya's tools")
    rank = max(x.tensors["down"].shape[0] for x in modules)
    for module in modules:
        convolution = is_convolution(module.name, base)
        down, up = brought_to(rank, module, config, where, convolution)
        here = module.name.replace(".", "/")
        rest[peft(here, "down")], rest[peft(here, "up")] = down, up
    return convert(rest, LORA, lora_shapes(base, rank), where)


def file_of(path: Path) -> Path:
    """The file in a folder of PEFT or diffusers; any other path as it is."""
    return next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)


# --- Where it comes from --------------------------------------------------------------------------

TEXT_WIDTHS = {768: "SD1.x", 1024: "SD2.x", 2048: "SDXL"}
"""What a base model's text embeddings are as wide as."""


def read_fitting(path: Path, base: Tree, model: str) -> Tree:
    """`read_lora` for a model of this name.

    Raises:
        UserError: as `read_lora`; where it is another model's, the message says whose.
    """
    try:
        return read_lora(path, base)
    except UserError as error:
        own = read_metadata(file_of(path)).get("model")
        if own and own != model:
            raise UserError(f"{path}: belongs to another model: take --model {own}") from error
        widths = {
            x.shape[1]
            for name, x in read_tensors(file_of(path)).items()
            if re.search(r"attn2[._]to_k[._].*(A|down)\b", name) and x.ndim > 1
        }
        wanted = base["mid_block"]["attentions_0"]["transformer_blocks_0"]["attn2"]["to_k"]
        width = wanted["kernel"].shape[0]
        if len(widths) == 1 and widths != {width}:
            (found,) = widths
            kind = TEXT_WIDTHS.get(found, "another model")
            models = {768: "icd-sd15 or sd15", 2048: "icd-sdxl"}
            hint = f": take --model {models[found]}" if found in models else ""
            raise UserError(
                f"{path}: is a LoRA for {kind} (text of width {found}), {model} has width {width}"
                f"{hint}"
            ) from error
        raise


# --- Names ----------------------------------------------------------------------------------------


def modules_of(
    tensors: Tensors, base: Tree, where: str
) -> tuple[list[Module], dict[str, np.ndarray]]:
    """The modules of which both factors are there, and all other tensors.

    Raises:
        UserError: there are several adapters, or a module has a factor twice.
    """
    known = known_modules(base)
    found: dict[str, Module] = {}
    adapters: set[str] = set()
    for name, x in tensors.items():
        match = next((m for pattern in NAMES if (m := pattern.fullmatch(name))), None)
        module = known.get(plain(match["module"])) if match else None
        if match is None or module is None:
            continue
        part = FACTORS.get(match["part"], match["part"])
        adapters |= {match.groupdict().get("adapter") or ""} - {""}
        own = found.setdefault(module, Module(module, {}, []))
        if len(adapters) > 1:
            names = ", ".join(sorted(adapters))
            raise UserError(f"{where}: holds several adapters ({names}); save one of them alone")
        if part in own.tensors:
            raise UserError(f"{where}: {name} gives {part} of {module} a second time")
        own.tensors[part] = x
        own.files.append(name)
    whole = [
        x
        for x in found.values()
        if all(part in x.tensors and x.tensors[part].ndim in (2, 4) for part in ("down", "up"))
    ]
    used = {name for module in whole for name in module.files}
    return whole, {name: x for name, x in tensors.items() if name not in used}


def known_modules(base: Tree) -> dict[str, str]:
    """Upstream names of the modules that carry LoRA, by themselves, by the names of the original
    Stable Diffusion, and by both with `_` for each dot."""
    paths = (path.rpartition("/")[0] for path in flatten(lora_shapes(base, 1)))
    names = [PREFIX.sub("", peft(path, "down"), 1).removesuffix(".lora_A.weight") for path in paths]
    layers = sum(name.startswith("resnets_") for name in base["down_blocks_0"])
    spelled = {old: name for name in names for old in originals(name, layers)}
    spelled |= {name: name for name in names}
    return {name.replace(".", "_"): module for name, module in spelled.items()} | spelled


def plain(module: str) -> str:
    """A file's name of a module without what stands around it."""
    name = PREFIX.sub("", module, 1).replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


# --- Strength -------------------------------------------------------------------------------------


def brought_to(
    rank: int, module: Module, config: Mapping[str, Any], where: str, convolution: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The factors with alpha 8 and of this rank, in PyTorch's layout for a convolution or not.

    Raises:
        UserError: the factors do not fit each other, or alpha is not one number.
    """
    down, up = module.tensors["down"], module.tensors["up"]
    own = down.shape[0]
    if not own or up.shape[1] != own:
        raise UserError(f"{where}: the factors of {module.name} have ranks {own} and {up.shape[1]}")
    alpha = alpha_of(module, own, config, where)
    factor = np.float32(alpha * rank / (own * ALPHA))
    if factor != 1:
        up = np.asarray(up.astype(np.float32) * factor)
    if own != rank:
        more = rank - own
        down = np.concatenate([down, np.zeros((more, *down.shape[1:]), down.dtype)])
        up = np.concatenate([up, np.zeros((len(up), more, *up.shape[2:]), up.dtype)], axis=1)
    return as_module(down, convolution), as_module(up, convolution)


def alpha_of(module: Module, rank: int, config: Mapping[str, Any], where: str) -> float:
    """alpha, where the change of a weight is alpha / rank times the product of the factors."""
    if (alpha := module.tensors.get("alpha")) is not None:
        if alpha.size != 1:
            name = next(name for name in module.files if name.endswith(".alpha"))
            raise UserError(f"{where}: {name} is not one number")
        return float(alpha.reshape(()))
    if config:
        pattern = config.get("alpha_pattern") or {}
        alpha = next(
            (x for key, x in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", module.name)),
            config["lora_alpha"],
        )
        return float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)
    return float(rank) if module.files[0].startswith(KOHYA) else ALPHA


def as_module(x: np.ndarray, convolution: bool) -> np.ndarray:
    """A factor of a linear layer that was saved as a 1 x 1 convolution, or the reverse."""
    if convolution and x.ndim == 2:
        return x[:, :, None, None]
    if not convolution and x.ndim == 4 and x.shape[2:] == (1, 1):
        return x[:, :, 0, 0]
    return x


def is_convolution(name: str, base: Tree) -> bool:
    """Whether a module of the base is one; of SDXL's around transformers none is."""
    for part in local(name).split("/"):
        base = base[part]
    return len(base["kernel"].shape) == 4


# --- PEFT's config --------------------------------------------------------------------------------


def config_of(path: Path, where: str) -> dict[str, Any]:
    """PEFT's config of a file: from its header, where diffusers writes it, or from beside it; empty
    if there is none.

    Raises:
        UserError: it is damaged, or asks for what a product of two factors is not.
    """
    if text := read_metadata(path).get("lora_adapter_metadata"):
        what = f"{where}: its lora_adapter_metadata"
        try:
            config = parse_json(text)
        except ValueError as error:
            raise UserError(f"{what} is not valid: {error}") from error
    elif belongs(path.parent / CONFIG, path):
        what = str(path.parent / CONFIG)
        config = read_json(path.parent / CONFIG)
    else:
        return {}
    if not isinstance(config, dict):
        raise UserError(f"{what} is not valid: it is no object")
    config = {name.removeprefix("unet."): value for name, value in config.items()}
    return checked({"lora_alpha": ALPHA} | config, what, where)  # 8 is PEFT's default too


def belongs(config: Path, path: Path) -> bool:
    """Whether a config beside a file is the file's: PEFT's two names, or there is no other file."""
    if not config.is_file():
        return False
    others = [x for x in path.parent.iterdir() if x.suffix in WEIGHT_FILES and x != path]
    return path.stem == ADAPTER or not others


def checked(config: dict[str, Any], what: str, where: str) -> dict[str, Any]:
    """The config, if it is one of a plain LoRA.

    Raises:
        UserError: it is not.
    """
    if config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{where}: {config['peft_type']} is not supported, only LoRA")
    for key in ("use_dora", "lora_bias", "use_qalora"):
        if config.get(key):
            raise UserError(f"{where}: a LoRA with {key} is not supported")
    pattern = config.get("alpha_pattern") or {}
    try:
        numbers = [config["lora_alpha"], *pattern.values()]
        finite = all(math.isfinite(float(x)) for x in numbers)
        for key in pattern:
            re.compile(key)
    except (TypeError, ValueError, AttributeError, OverflowError, re.error) as error:
        raise UserError(f"{what} is not valid: {error}") from error
    if not finite:
        raise UserError(f"{what} is not valid: alpha is no finite number")
    return config


# --- Writing --------------------------------------------------------------------------------------

Naming = Literal["peft", "kohya"]


def factors(lora: Tree, name: Callable[[str, str], str]) -> dict[str, np.ndarray]:
    """All factors, named by `name(module, "down" or "up")`."""
    split = ((path.rpartition("/"), x) for path, x in flatten(lora).items())
    return {name(module, factor): as_upstream(x) for (module, _, factor), x in split}


def lora_tensors_peft(lora: Tree) -> dict[str, np.ndarray]:
    """The names and layouts of the published LoRA files (method 1). Alpha, 8, is not in them. PEFT
    reads them once `unet.` is taken from the names; diffusers wants the other naming."""
    return factors(lora, peft)


def lora_tensors_kohya(lora: Tree) -> dict[str, np.ndarray]:
    """kohya's naming, which diffusers and most user interfaces read; alpha beside each module."""
    tensors = factors(lora, kohya)
    modules = {path.rpartition("/")[0] for path in flatten(lora)}
    alpha = np.asarray(ALPHA, np.float32)
    return tensors | {kohya(module, "alpha"): alpha for module in sorted(modules)}


NAMINGS: dict[Naming, Callable[[Tree], dict[str, np.ndarray]]] = {
    "peft": lora_tensors_peft,
    "kohya": lora_tensors_kohya,
}


def write_lora(
    path: Path, lora: Tree, naming: Naming = "peft", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a LoRA tree as a `.safetensors` file, which appears whole or not at all.

    Args:
        lora: nested dicts of `down` and `up`, numpy or JAX arrays; they keep their number type.
        naming: `peft` as the published files, `kohya` for other programs. `read_lora` takes both.
        metadata: further texts for the header, which says the rank and alpha.
    """
    rank = next(x.shape[-1] for name, x in flatten(lora).items() if name.endswith("/down"))
    header = {"format": "pt", "rank": str(rank), "alpha": str(ALPHA)} | dict(metadata or {})
    with appearing_whole(path) as file:
        write_tensors(file, NAMINGS[naming](lora), header)
