"""What a model folder holds, and where.

    stable-diffusion-v1-5/           configs, tokenizer, autoencoder and text encoder, as diffusers
                                     writes them; where a model is trained from nothing also its
                                     UNet before guidance distillation
    sd15_cfg_distill.safetensors     the guidance-distilled UNet, base of both consistency models
    *forward*.safetensors            LoRA of the forward model; finetuned_forward_model.safetensors,
                                     where it is there, goes before others
    *reverse*.safetensors            LoRA of the backward model

A pair of SDXL has `stable-diffusion-xl-base-1.0` and `sdxl_cfg_distill` in the place of the first
two.
These are the published names. What training writes has them too.

A base model, of SD1.x or SDXL, is one such diffusers folder with the UNet in it, wherever it lies.
"""

import glob
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from ie_jax.errors import UserError
from ie_jax.weights.download import files_like, home, unpack
from ie_jax.weights.formats import VARIANTS, names, read_json, weight_file
from ie_jax.weights.original import is_checkpoint
from ie_jax.weights.published import (
    FINE_TUNED,
    FORWARDS,
    HUB_SD15,
    HUB_SDXL,
    TEACHER,
    TEACHER_SDXL,
    Files,
)

PIPELINE, PIPELINE_SDXL = (hub.rpartition("/")[2] for hub in (HUB_SD15, HUB_SDXL))
KINDS = {PIPELINE: (TEACHER, "iCD-SD15"), PIPELINE_SDXL: (TEACHER_SDXL, "iCD-SDXL")}
"""Of a pair by its pipeline's folder: what the UNet is called, and how archives of LoRAs begin."""
CONFIGS = {
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "text_encoder": "text_encoder/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}
SECOND = {"text_encoder_2": "text_encoder_2/config.json"}
"""What SDXL has beside them."""
INDEX = "model_index.json"
DIFFUSERS, TRANSFORMERS = ("diffusion_pytorch_model",), ("model", "pytorch_model")
STEMS = {
    "unet": DIFFUSERS,
    "vae": DIFFUSERS,
    "text_encoder": TRANSFORMERS,
    "text_encoder_2": TRANSFORMERS,
}
"""How the weights of the networks in the pipeline's folder are called, without their ends."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
)

Part = Literal[
    "vae",
    "text_encoder",
    "text_encoder_2",
    "denoiser",
    "unet",
    "forward",
    "backward",
    "fine_tuned",
]
PARTS: dict[Part, str] = {
    "vae": f"{PIPELINE}/vae/diffusion_pytorch_model.safetensors",
    "text_encoder": f"{PIPELINE}/text_encoder/model.safetensors",
    "denoiser": f"{PIPELINE}/unet/diffusion_pytorch_model.safetensors",
    "unet": f"{TEACHER}.safetensors",
    "forward": "iCD-world-forward_19_259_519_779.safetensors",
    "backward": "iCD-world-reverse_259_519_779_999.safetensors",
    "fine_tuned": FINE_TUNED,
}
"""Where training writes each part of a model. `denoiser` is the UNet before guidance distillation,
`unet` the one after it; `fine_tuned` is the forward model after cycle fine-tuning."""


@dataclass(frozen=True)
class Contents:
    """What a diffusers folder should hold, as paths in it."""

    configs: Mapping[str, str]
    tokenizers: tuple[str, ...]

    @property
    def networks(self) -> list[str]:
        """Those that a pair of models takes from it."""
        return [name for name in self.configs if name not in ("unet", "scheduler")]

    def lacking(self, pipeline: Path, networks: Iterable[str]) -> list[str]:
        """Its configs, tokenizers and weights of `networks` that are not there, in words."""
        lacks = [name for name in self.configs.values() if not (pipeline / name).is_file()]
        for part in networks:
            try:
                network_file(pipeline, part)
            except UserError as error:
                lacks.append(str(error).removeprefix(f"{pipeline}/"))
        for name in self.tokenizers:
            lacks += [f"{name}/{file}" for file in lacks_tokenizer(pipeline / name)]
        return lacks


ONE_TEXT = Contents(CONFIGS, ("tokenizer",))
TWO_TEXTS = Contents(CONFIGS | SECOND, ("tokenizer", "tokenizer_2"))
CLASSES = {
    "StableDiffusionPipeline": ONE_TEXT,
    "StableDiffusionImg2ImgPipeline": ONE_TEXT,
    "LatentConsistencyModelPipeline": ONE_TEXT,
    "StableDiffusionXLPipeline": TWO_TEXTS,
    "StableDiffusionXLImg2ImgPipeline": TWO_TEXTS,
}


def contents(pipeline: Path) -> Contents:
    """By the class that the folder's index names, where it has one, else by its folders.

    Raises:
        UserError: the index is damaged or names another class.
    """
    if not (pipeline / INDEX).is_file():
        return TWO_TEXTS if (pipeline / "text_encoder_2").is_dir() else ONE_TEXT
    name = read_json(pipeline / INDEX).get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        raise UserError(
            f"{pipeline / INDEX}: _class_name = {name!r} is not supported (only "
            f"{', '.join(CLASSES)})"
        )
    return CLASSES[name]


def is_base(folder: Path) -> bool:
    """Whether this is a base model's diffusers folder, and not one of a pair."""
    return any((folder / name).is_file() for name in (INDEX, CONFIGS["unet"]))


def find_files(folder: Path, *, forward: str | None = None, backward: str | None = None) -> Files:
    """Finds everything one pair of models is converted from in a folder that the user filled.

    Weight files may lie one folder deeper than this file's head shows, or still in their archives,
    such as `sd15_cfg_distill*.tar.gz` and `iCD-SD15*.tar.gz`: these are unpacked under
    `download.home()`, so that `folder` is never written to. The UNet may be a `.pt` file.

    Args:
        folder: the user's folder.
        forward: file name of the forward LoRA, where the usual choice is not wanted.
        backward: file name of the backward LoRA, likewise.

    Raises:
        UserError: one line with all that is missing or ambiguous; or a damaged archive.
    """
    folder = folder.expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    kind = next((name for name in KINDS if (folder / name).is_dir()), PIPELINE)
    pipeline, (unet, archive) = folder / kind, KINDS[kind]
    held = contents(pipeline)
    problems = [f"{kind}/{name}" for name in held.lacking(pipeline, held.networks)]

    def choose(archives: str, *preferences: str) -> Path:
        """The one file that matches the first preference that any file matches."""
        found = first_match(preferences, shallow_files(folder))
        if not found:
            unpacked = [unpacked_folder(path) for path in sorted(folder.glob(archives))]
            found = first_match(
                preferences, [f for root in unpacked for f in files_like(root, "*")]
            )
        if len(found) != 1:
            names = ", ".join(str(path.name) for path in found)
            problems.append(" or ".join(preferences) + (f" (choose from {names})" if found else ""))
        return found[0] if found else folder

    teacher = choose(f"{unet}*.tar.gz", f"{unet}.safetensors", f"{unet}.pt")
    forwards = [glob.escape(forward)] if forward else [FINE_TUNED, FORWARDS]
    backwards = [glob.escape(backward)] if backward else ["*reverse*.safetensors"]
    files = Files(
        pipeline=pipeline,
        teacher=teacher,
        forward=choose(f"{archive}*.tar.gz", *forwards),
        backward=choose(f"{archive}*.tar.gz", *backwards),
    )
    if problems:
        raise UserError(f"{folder} has missing or ambiguous files: {'; '.join(problems)}")
    return files


def shallow_files(folder: Path) -> list[Path]:
    """Files of the folder and of its folders, sorted, without the pipeline's and hidden ones."""
    found = [*folder.glob("*.*"), *folder.glob("*/*.*")]
    return sorted(
        path
        for path in found
        if path.is_file() and path.parent.name not in KINDS and path.name[0] != "."
    )


def first_match(patterns: tuple[str, ...], paths: list[Path]) -> list[Path]:
    """All paths that match the first pattern that any of them matches."""
    for pattern in patterns:
        if found := [path for path in paths if path.match(pattern)]:
            return found
    return []


def unpacked_folder(archive: Path) -> Path:
    """The folder that holds the archive's content, unpacked now or by an earlier call."""
    state = archive.stat()
    version = hashlib.sha256(f"{archive} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()
    target = home() / "unpacked" / f"{archive.name.partition('.')[0]}-{version[:12]}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(target.parent / ".lock"):
            if not target.is_dir():
                unpack(archive, target)
    except OSError as error:
        raise UserError(f"cannot unpack {archive} under {home()}: {error}") from error
    return target


def network_file(pipeline: Path, part: str) -> Path:
    """The weights of a part of `STEMS` in a diffusers folder, or else a single-file checkpoint
    there or beside it.

    Raises:
        UserError: there are none; the message says what lies there.
    """
    folder, stems = pipeline / part, STEMS[part]
    if (path := weight_file(folder, *stems)) is not None:
        return path
    for path in sorted([*pipeline.glob("*.*"), *pipeline.parent.glob("*.*")]):
        if path.suffix == ".ckpt" or (path.suffix == ".safetensors" and is_checkpoint(names(path))):
            return path
    here = sorted(x.name for x in folder.iterdir()) if folder.is_dir() else []
    raise UserError(
        f"{folder}/{stems[0]}.safetensors is missing (or {', '.join(VARIANTS[1:])}); there is "
        f"{', '.join(here) or 'nothing'}"
    )


def lacks_tokenizer(folder: Path) -> list[str]:
    """What a tokenizer's folder lacks: transformers 5 writes one file, versions before it two."""
    here = {name for name in TOKENIZER_FILES if (folder / name).is_file()}
    pair = {"vocab.json", "merges.txt"}
    return [] if "tokenizer.json" in here else sorted(pair - here)


def tokenizer_files(pipeline: Path) -> list[Path]:
    """Those that are there, of one tokenizer or two."""
    folders = (pipeline / name for name in contents(pipeline).tokenizers)
    paths = (folder / name for folder in folders for name in TOKENIZER_FILES)
    return [path for path in paths if path.is_file()]


def model_files(folder: Path) -> list[str]:
    """Which files of a folder belong to a model, as paths in it: configs, tokenizer, parts, and
    whatever weights lie beside them."""
    named = [*CONFIGS.values(), *(f"tokenizer/{name}" for name in TOKENIZER_FILES)]
    beside = (path.name for path in folder.glob("*.safetensors") if path.name[0] != ".")
    names = {*(f"{PIPELINE}/{name}" for name in named), *PARTS.values(), *beside}
    return sorted(name for name in names if (folder / name).is_file())


def copy_model_files(source: Path, target: Path) -> None:
    """Copy the `model_files` into another folder."""
    for name in model_files(source):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def check_replaceable(folder: Path) -> None:
    """Raise UserError if a folder that is to become a model holds anything that is none."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if others := sorted(files - set(model_files(folder))):
        raise UserError(
            f"{folder} holds other files than a model's, such as {others[0]}: name another folder"
        )
