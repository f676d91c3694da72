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

from ie_jax.errors import UserError
from ie_jax.files import folder_appearing_whole, sha256
from ie_jax.weights.convert import flatten, unflatten
from ie_jax.weights.download import fetch, fetch_files, home, verify
from ie_jax.weights.embedded import EMBEDDED, check_sums, embedded_files
from ie_jax.weights.facts import NOTHING, Facts, facts_of, header
from ie_jax.weights.folder import (
    Pipeline,
    Weights,
    architecture,
    base_facts,
    base_pipeline,
    convert_files,
    read_configs,
)
from ie_jax.weights.formats import mapped_tensors, read_json, read_metadata, write_tensors
from ie_jax.weights.layout import (
    contents,
    find_files,
    is_base,
    lacks_tokenizer,
    network_file,
    tokenizer_files,
)
from ie_jax.weights.lora_files import file_of, read_fitting
from ie_jax.weights.published import BASES, PUBLISHED, Files
from ie_jax.weights.untrained import UNTRAINED, random_pipeline

RANDOM = "random"
FORMAT = 2  # of the cache: raised when conversion changes what it writes
SUMS = "sums.json"
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
        model: `random`, a name in `EMBEDDED`, `PUBLISHED` or `BASES`, or a folder of upstream files
            (see `layout`).
        forward, backward: for any model, path of a LoRA to take in the place of its own, with a
            folder in it (`./lora.safetensors`); or file names of the LoRAs in a folder of upstream
            files, or an embedded model, that holds several.
        offline: never use the network.
        progress: show download bars.

    Raises:
        UserError: unknown name, missing, damaged or unfitting files, or no place for the cache.
    """
    base = facts_before_loading(model, forward, backward) if is_a_base(model) else None
    own = {part: path for part, name in pair(forward, backward) if (path := lora_file(name))}
    names = {part: name for part, name in pair(forward, backward) if part not in own}
    try:
        pipeline = load(model, names.get("forward"), names.get("backward"), offline, progress)
        loras = {
            part: read_fitting(path, pipeline.weights.unet, model) for part, path in own.items()
        }
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"cannot use the cache folder {home()}: {error}: name another in IE_JAX_HOME"
        ) from error
    if base is not None:
        facts = base
    elif "forward" in own:
        facts = with_own_forward(pipeline.facts, own["forward"])
    else:
        facts = pipeline.facts
    return replace(pipeline, weights=replace(pipeline.weights, **loras), facts=facts)


def load(
    model: str, forward: str | None, backward: str | None, offline: bool, progress: bool
) -> Pipeline:
    """`load_pipeline` with the model's own files."""
    name = forward or backward
    if name and (model == RANDOM or model in PUBLISHED or is_a_base(model)):
        raise UserError(
            f"no LoRA file {name!r}: give a path with a folder in it, such as ./{Path(name).name}"
        )
    if model == RANDOM:
        return random_pipeline()
    if model in EMBEDDED:  # so small that converting it again is as quick as a cache
        check_sums()
        files = embedded_files(model, forward, backward)
        return with_facts(Pipeline(*convert_files(files), files.pipeline / "tokenizer"), files)
    if model in PUBLISHED:
        source, folder = PUBLISHED[model], home() / "published"
        files = fetch(source, folder, offline=offline, progress=progress)
        pipeline = converted(files, check=lambda: verify(folder, source))
        return replace(pipeline, facts=source.facts)
    if is_a_base(model):  # read as it is: a converted copy would take as much room again
        return base_pipeline(base_folder(model, offline, progress))
    files = find_files(model_folder(model), forward=forward, backward=backward)
    return with_facts(converted(files), files)


def is_a_base(model: str) -> bool:
    """Whether a name or path is a base model's."""
    return model in BASES or is_base(Path(model).expanduser())


def base_folder(model: str, offline: bool, progress: bool) -> Path:
    """The diffusers folder of a base model, downloaded where it is published.

    Raises:
        UserError: it cannot be had, or has changed since.
    """
    if model not in BASES:
        return Path(model).expanduser().absolute()
    source, folder = BASES[model], home() / "published"
    fetch_files(source, folder, offline=offline, progress=progress)
    verify(folder, source)
    return folder / source.folder


def model_folder(model: str) -> Path:
    """The folder of this path.

    Raises:
        UserError: it is neither a folder nor a name.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        names = ", ".join([RANDOM, *EMBEDDED, *PUBLISHED, *BASES])
        raise UserError(f"no model or folder named {model!r}: give one of {names}, or a folder")
    return folder


def with_facts(pipeline: Pipeline, files: Files) -> Pipeline:
    """A pipeline with what its files tell."""
    return replace(pipeline, facts=facts_of_pair(files))


def facts_of_pair(files: Files) -> Facts:
    """What a pair's files tell."""
    return facts_of(files.forward, files.backward, len(contents(files.pipeline).tokenizers))


def pair(forward: str | None, backward: str | None) -> list[tuple[str, str | None]]:
    """The two LoRAs by their part of `Weights`."""
    return [("forward", forward), ("backward", backward)]


def with_own_forward(facts: Facts, path: Path) -> Facts:
    """A model's facts where a forward LoRA of the user's own starts its inversion.

    Raises:
        UserError: it was trained for other boundaries.
    """
    path = file_of(path)
    boundaries = header(path).get("boundaries")
    if boundaries and facts.data != NOTHING and boundaries != facts.boundaries:
        model = read_metadata(path).get("model")
        raise UserError(
            f"{path}: was trained for boundaries {[int(t) for t in boundaries]}, not for this "
            f"model's {list(facts.boundaries)}" + (f": take --model {model}" if model else "")
        )
    # Without a word of it, what this program trains starts at 0.
    own = facts_of(path, path)
    return replace(facts, start_timestep=own.start_timestep, start_noise=own.start_noise)


def facts_before_loading(
    model: str, forward: str | None = None, backward: str | None = None
) -> Facts:
    """The facts that `load_pipeline` will give, from what is on this machine: nothing is
    downloaded or converted.

    Raises:
        UserError: the model's files are missing or damaged, or a LoRA does not fit.
    """
    if is_a_base(model):
        if forward:
            raise UserError(f"--forward: {model} is no pair of models: it takes --backward alone")
        facts = BASES[model].facts if model in BASES else base_facts(Path(model).expanduser())
        return replace(facts, few_steps=facts.few_steps or backward is not None)
    own = lora_file(forward)
    forward, backward = (None if lora_file(x) else x for x in (forward, backward))
    if model in EMBEDDED:
        files = embedded_files(model, forward, backward)
        facts = facts_of_pair(files)
    elif model in PUBLISHED:
        facts = PUBLISHED[model].facts
    elif model == RANDOM:
        facts = UNTRAINED
    else:
        files = find_files(model_folder(model), forward=forward, backward=backward)
        facts = facts_of_pair(files)
    return with_own_forward(facts, own) if own else facts


def facts_of_pair_before_loading(
    model: str, forward: str | None = None, backward: str | None = None
) -> Facts:
    """`facts_before_loading` of what training takes.

    Raises:
        UserError: as there; or the model is no pair.
    """
    facts = facts_before_loading(model, forward, backward)
    if not facts.pair:
        raise UserError(
            f"{model} is a base model: training takes pairs, such as icd-sd15 or icd-sdxl"
        )
    return facts


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


# --- The cache ------------------------------------------------------------------------------------


def cache_key(files: Files) -> str:
    """The `fingerprint` of all source files."""
    weights = (files.teacher, files.forward, files.backward)
    held = contents(files.pipeline)
    configs = (files.pipeline / name for name in held.configs.values())
    networks = (network_file(files.pipeline, part) for part in held.networks)
    return fingerprint([*weights, *configs, *networks, *tokenizer_files(files.pipeline)])


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
            with (new / "weights.safetensors").open("wb") as file:
                write_tensors(file, flat)
            (new / "configs.json").write_text(json.dumps(configs), encoding="utf-8")
            for path in tokenizer_files(files.pipeline):
                (new / path.parent.name).mkdir(exist_ok=True)
                shutil.copy(path, new / path.parent.name / path.name)
            (new / SUMS).write_text(json.dumps(sums_of(new)), encoding="utf-8")
    forget_oldest(folder.parent, keep=KEPT)
    return cached_pipeline(folder)


def cached_pipeline(folder: Path) -> Pipeline:
    """A pipeline from the cache, its weights mapped into memory: they need none of their own."""
    arch = architecture(read_json(folder / "configs.json"), str(folder))
    weights = Weights(**unflatten(mapped_tensors(folder / "weights.safetensors")))
    second = folder / "tokenizer_2" if arch.text_2 else None
    return Pipeline(arch, weights, folder / "tokenizer", tokenizer_2=second)


def sums_of(folder: Path) -> dict[str, str]:
    """The hashes of all files of a converted pipeline."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def read_cache(folder: Path) -> Pipeline:
    """A converted pipeline.

    Raises anything if it is not as it was written.
    """
    if sums_of(folder) != read_json(folder / SUMS):
        raise ValueError(f"{folder} has changed")
    pipeline = cached_pipeline(folder)
    if any(map(lacks_tokenizer, pipeline.tokenizers)):
        raise FileNotFoundError(folder / "tokenizer")
    return pipeline


def forget_oldest(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` converted models."""
    models = sorted(
        (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")),
        key=lambda path: path.stat().st_mtime,
    )
    for path in models[:-keep]:
        shutil.rmtree(path, ignore_errors=True)
