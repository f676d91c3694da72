"""A model by name or folder: fetch, convert once, start from the converted cache ever after."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import filelock
import jax
import safetensors
from safetensors.numpy import load_file, save_file

from ie_jax.errors import UserError
from ie_jax.files import folder_appearing_whole
from ie_jax.weights.convert import flatten
from ie_jax.weights.download import fetch, home, verify
from ie_jax.weights.embedded import EMBEDDED, check_sums, embedded_files
from ie_jax.weights.formats import read_json
from ie_jax.weights.local import local_files
from ie_jax.weights.lora_files import file_of, origin_of, read_fitting
from ie_jax.weights.pipeline import (
    CONFIGS,
    NETWORKS,
    TOKENIZER_FILES,
    Pipeline,
    Weights,
    architecture,
    convert_files,
    lacks_tokenizer,
    network_file,
    read_configs,
    unflatten_weights,
)
from ie_jax.weights.random import random_pipeline
from ie_jax.weights.sources import PUBLISHED, Files, timesteps, trained_grid

RANDOM = "random"
FORMAT = 1  # of the cache: raised when conversion changes what it writes
KEPT = 3  # converted models; each is as large as its sources


def use_compilation_cache() -> None:
    """Keep compiled programs on disk, unless the user has chosen a place for them."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(home() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def load_pipeline(
    model: str,
    forward: str | None = None,
    backward: str | None = None,
    offline: bool = False,
    progress: bool = True,
) -> Pipeline:
    """Everything an edit needs.

    Args:
        model: `random`, a name in `EMBEDDED` or `PUBLISHED`, or a folder of upstream files (see
            `local_files`).
        forward, backward: for any model, path of a LoRA to take in the place of its own, with a
            folder in it (`./lora.safetensors`); or file names of the LoRAs in a folder of upstream
            files, or an embedded model, that holds several.
        offline: never use the network.
        progress: show download bars.

    Raises:
        UserError: unknown name, missing, damaged or unfitting files, or no place for the cache.
    """
    names = {"forward": forward, "backward": backward}
    own = {part: path for part, name in names.items() if (path := lora_file(name))}
    names |= dict.fromkeys(own)
    try:
        pipeline = load(model, names["forward"], names["backward"], offline, progress)
        base = pipeline.weights.unet
        loras = {part: read_fitting(path, base, model) for part, path in own.items()}
        return replace(pipeline, weights=replace(pipeline.weights, **loras)) if own else pipeline
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"cannot use the cache folder {home()}: {error}: name another in IE_JAX_HOME"
        ) from error


def load(
    model: str, forward: str | None, backward: str | None, offline: bool, progress: bool
) -> Pipeline:
    """`load_pipeline`, without a clear error where the cache folder cannot be used."""
    name = forward or backward
    if name and (model == RANDOM or model in PUBLISHED):
        raise UserError(
            f"no LoRA file {name!r}: give a path with a folder in it, such as ./{Path(name).name}"
        )
    if model == RANDOM:
        return random_pipeline()
    if model in EMBEDDED:  # so small that converting it again is as quick as a cache
        check_sums()
        files = embedded_files(model, forward, backward)
        return Pipeline(*convert_files(files), files.pipeline / "tokenizer")
    if model in PUBLISHED:
        source, folder = PUBLISHED[model], home() / "published"
        files = fetch(source, folder, offline=offline, progress=progress)
        return converted(files, check=lambda: verify(folder, source))
    if not Path(model).expanduser().is_dir():
        names = ", ".join([RANDOM, *EMBEDDED, *PUBLISHED])
        raise UserError(f"no model or folder named {model!r}: give one of {names}, or a folder")
    return converted(local_files(Path(model), forward=forward, backward=backward))


def is_fetched(model: str) -> bool:
    """Whether all files of a published model are on this machine."""
    try:
        fetch(PUBLISHED[model], home() / "published", offline=True, progress=False)
    except (UserError, OSError):
        return False
    return True


def lora_file(name: str | None) -> Path | None:
    """The path of a LoRA of the user's own; None for what may be a name in a model's folder."""
    path = file_of(Path(name or "").expanduser())
    return path if len(path.parts) > 1 and path.is_file() else None


def grid(model: str, forward: str | None, backward: str | None) -> tuple[int, tuple[int, ...]]:
    """Start timestep and boundaries that a model was trained for; nothing is downloaded."""
    if own := lora_file(forward):
        origin, boundaries = origin_of(own), grid(model, None, backward)[1]
        if origin.boundaries and origin.boundaries != boundaries:
            hint = f": take --model {origin.model}" if origin.model else ""
            raise UserError(
                f"{own}: was trained for boundaries {list(origin.boundaries)}, {model} has "
                f"{list(boundaries)}{hint}"
            )
        # Without a word of it, what this program trains starts at 0.
        start = origin.start_timestep
        return next(iter(timesteps(own)), 0) if start is None else start, boundaries
    if lora_file(backward):
        return grid(model, forward, None)
    if model in EMBEDDED:
        return trained_grid(embedded_files(model, forward, backward))
    if model in PUBLISHED:
        return PUBLISHED[model].start_timestep, PUBLISHED[model].boundaries
    if model != RANDOM and Path(model).expanduser().is_dir():
        return trained_grid(local_files(Path(model), forward=forward, backward=backward))
    return 0, (259, 519, 779, 999)


def cache_key(files: Files) -> str:
    """The `fingerprint` of all source files."""
    weights = (files.teacher, files.forward, files.backward)
    configs = (files.pipeline / name for name in CONFIGS.values())
    networks = (network_file(files.pipeline, part) for part in NETWORKS)
    return fingerprint([*weights, *configs, *networks, *tokenizer_files(files.pipeline)])


def tokenizer_files(pipeline: Path) -> list[Path]:
    """Those that are there."""
    paths = (pipeline / "tokenizer" / name for name in TOKENIZER_FILES)
    return [path for path in paths if path.is_file()]


def fingerprint(paths: Iterable[Path]) -> str:
    """Changes when any of the files does. From names, sizes and times: nothing is read."""
    facts = [
        (str(path.resolve()), stat.st_size, stat.st_mtime_ns)
        for path in paths
        for stat in (path.stat(),)
    ]
    return hashlib.sha256(json.dumps([FORMAT, facts]).encode()).hexdigest()[:32]


def converted(files: Files, check: Callable[[], object] = lambda: None) -> Pipeline:
    """The pipeline of upstream files, from the cache if it was converted before.

    Args:
        check: called before the sources are read; raises if they are not what they should be.
    """
    folder = home() / "converted" / cache_key(files)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if folder.is_dir():
            try:
                return read_cache(folder)
            except Exception:  # damaged in whatever way: convert again
                shutil.rmtree(folder)
        for left in folder.parent.glob(f".{folder.name}.*.part"):
            shutil.rmtree(left)  # of a conversion that was killed: this one holds the lock
        check()
        arch, weights = convert_files(files)
        configs = read_configs(files.pipeline)
        configs["unet"]["time_cond_proj_dim"] = arch.unet.time_cond_proj_dim
        flat = {
            f"{part}/{path}": leaf
            for part in Weights.__dataclass_fields__
            for path, leaf in flatten(getattr(weights, part)).items()
        }
        with folder_appearing_whole(folder) as new:
            save_file(flat, new / "weights.safetensors")
            (new / "configs.json").write_text(json.dumps(configs), encoding="utf-8")
            (new / "tokenizer").mkdir()
            for path in tokenizer_files(files.pipeline):
                shutil.copy(path, new / "tokenizer" / path.name)
    forget_oldest(folder.parent, keep=KEPT)
    return Pipeline(arch, weights, folder / "tokenizer")


def read_cache(folder: Path) -> Pipeline:
    """A converted pipeline."""
    arch = architecture(read_json(folder / "configs.json"), str(folder))
    weights = unflatten_weights(load_file(folder / "weights.safetensors"))
    if lacks_tokenizer(folder / "tokenizer"):
        raise FileNotFoundError(folder / "tokenizer")
    return Pipeline(arch, weights, folder / "tokenizer")


def forget_oldest(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` converted models."""
    models = sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
    )
    for path in models[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
