"""The command: train a stage, be it cycle fine-tuning or what comes before it."""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import yaml
from jax.sharding import Mesh

from ie_jax.cli import print_line, run
from ie_jax.config import parse, plain
from ie_jax.data.latents import Latents, fingerprint
from ie_jax.data.loader import Loader
from ie_jax.data.open import open_data
from ie_jax.devices import Processes, join, make_mesh
from ie_jax.errors import UserError
from ie_jax.files import alone_in, appearing_whole
from ie_jax.models.tokenizer import tokenize_by
from ie_jax.progress import Stages
from ie_jax.training.checkpoints import complete
from ie_jax.training.journal import EVENTS, METRICS, PICTURES, writing
from ie_jax.training.loop import CHECKPOINTS, FAILURE, HeldOut, Plan, train
from ie_jax.training.recipe import LORA, MODEL, Recipe
from ie_jax.training.stage import initial_state
from ie_jax.training.stages import TrainConfig, build
from ie_jax.weights.folder import Pipeline
from ie_jax.weights.load import use_compilation_cache

DESCRIPTION = """Train. The default stage, cycle, fine-tunes the forward model, image to noise, so
that an image inverted and generated again is the image; it writes the trained LoRA in the published
format: forward_lora.safetensors (the last), forward_lora_best.safetensors (the best on held-out
images), each with _ema too where a moving average is kept. The other stages make a model from
nothing; each writes model/, the folder that --model of the next one takes. All write checkpoints,
metrics and pictures."""

CONFIG = "config.yaml"
SMALLEST_PATCH = 16
"""Side of what is left a pixel by the four poolings of VGG16."""
FREE = {
    *("steps", "evaluate_every", "save_every", "keep", "log_every", "pictures"),
    *("accumulate", "execution", "mesh", "data.workers", "data.max_broken", "data.path"),
}
"""Settings that may change when a run is resumed: they do not change what a step computes."""


@dataclass(frozen=True)
class TrainRequest(Processes):
    """Where the run goes, and which processes take part."""

    output: str | None = None
    """The folder of the run."""
    resume: bool = False
    """Go on from the newest checkpoint in the folder, or begin if there is none."""
    overwrite: bool = False
    """Remove the run that is in the folder."""
    offline: bool = False
    """Never use the network."""
    quiet: bool = False
    """Show no progress."""


def fine_tune(argv: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: bad input; or the run failed in a way that the user can mend.
    """
    request, config, _ = parse(argv, DESCRIPTION, TrainRequest, TrainConfig)
    if request.output is None:
        raise UserError("--output is missing: name a folder for the run")
    folder = Path(request.output).expanduser()
    check_folder(folder, request)
    join(request)
    main = jax.process_index() == 0
    mesh = make_mesh(config.mesh.fsdp)
    check_batch(config, jax.device_count())
    use_compilation_cache()
    stages = Stages(request.quiet or not main)
    settings = plain(config)
    with claimed(folder) if main else nullcontext():
        run_in(folder, request, config, settings, mesh, stages)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """A folder for this run alone. Where a start fails before its first checkpoint, what was not
    there before is removed.

    Raises:
        UserError: another run is there, or the folder cannot be made.
    """
    made, empty = not folder.exists(), not folder.exists() or not any(folder.iterdir())
    with ExitStack() as stack:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone_in(folder))
        try:
            yield
        finally:
            if empty and not complete(folder / CHECKPOINTS):
                remove_run(folder)
                (folder / CONFIG).unlink(missing_ok=True)
            if made:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()


def run_in(
    folder: Path,
    request: TrainRequest,
    config: TrainConfig,
    settings: Mapping[str, Any],
    mesh: Mesh,
    stages: Stages,
) -> None:
    """Train in a folder.

    Raises:
        UserError: see `fine_tune`.
    """
    main = jax.process_index() == 0

    def accept(saved: Mapping[str, Any]) -> None:
        require_same(saved, settings)
        if main:
            write_config(folder, settings)

    with stages(f"load {config.model}"):
        recipe = build(config, request.offline, not stages.quiet)
    loader, held_out = open_loaders(config, recipe)
    if main:
        prepare_folder(folder, request, settings)
    train(
        recipe.stage,
        initial_state(recipe.stage, recipe.params),
        recipe.frozen,
        mesh,
        loader,
        folder=folder,
        plan=plan_of(config, recipe.best),
        key=jax.random.key(config.seed),
        held_out=held_out,
        settings=settings,
        accept=accept,
        export=lambda state, best: recipe.export(
            folder, state, best, held_out.batches if held_out else None
        ),
        compiler_options=config.execution.compiler_options,
        announce=stages,
        say=say if main else silent,
        quiet=stages.quiet,
    )
    if main:
        print(f"wrote {', '.join(map(str, written(folder)))}")


def written(folder: Path) -> list[Path]:
    """What a run leaves for other programs."""
    names = (f"{LORA}.safetensors", MODEL)
    return [folder / name for name in names if (folder / name).exists()]


def say(line: str) -> None:
    """What happens, beside the progress."""
    print_line("train", line, sys.stderr)


def silent(_: str) -> None:
    """Say nothing."""


def check_batch(config: TrainConfig, devices: int) -> None:
    """Raise UserError if the batch cannot be shared."""
    parts = devices * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"batch_size {config.batch_size} must divide by {devices} devices times accumulate "
            f"{config.accumulate}"
        )


def check_folder(folder: Path, request: TrainRequest) -> None:
    """Raise UserError if there is something in the folder and nothing was said of it."""
    if request.resume and request.overwrite:
        raise UserError("--resume and --overwrite contradict each other: give one")
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise UserError(f"cannot read the output folder {folder}: {error.strerror}") from error
    if taken and not folder.is_dir():
        raise UserError(f"--output {folder} is a file: name a folder")
    if taken and not (request.resume or request.overwrite):
        raise UserError(f"{folder} is not empty: give --resume, --overwrite or another --output")


def prepare_folder(folder: Path, request: TrainRequest, settings: Mapping[str, Any]) -> None:
    """Make the folder, remove an old run if asked to, and write the config."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if request.overwrite:
            remove_run(folder)  # not before the new run is known to start
        elif (folder / CHECKPOINTS).is_dir() and any((folder / CHECKPOINTS).iterdir()):
            return  # the config is replaced once it is known to fit
        write_config(folder, settings)


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """The settings as a file for --config."""
    with writing(folder), appearing_whole(folder / CONFIG) as file:
        file.write(yaml.safe_dump(dict(settings), sort_keys=False).encode())


def remove_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (CHECKPOINTS, PICTURES, EVENTS, MODEL):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    for path in [*folder.glob(f"{LORA}*.safetensors"), *(folder / n for n in (METRICS, FAILURE))]:
        path.unlink(missing_ok=True)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, Mapping)
        result |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return result


def require_same(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise UserError if a setting that decides what is computed has changed."""
    old, new = flat(saved), flat(settings)
    free = {name for name in {*old, *new} for root in FREE if f"{name}.".startswith(f"{root}.")}
    changed = sorted(n for n in {*old, *new} - free if old.get(n) != new.get(n))
    if changed:
        told = "; ".join(f"{n} was {old.get(n)!r} and is {new.get(n)!r}" for n in changed)
        raise UserError(f"cannot resume with other settings: {told}")


def plan_of(config: TrainConfig, best: str | None) -> Plan:
    """The plan of a config."""
    return Plan(
        config.steps,
        config.evaluate_every,
        config.save_every,
        config.log_every,
        config.keep,
        config.accumulate,
        config.pictures,
        best=best,
    )


def open_loaders(config: TrainConfig, recipe: Recipe) -> tuple[Loader, HeldOut | None]:
    """This process's part of the training batches, and of what is held out.

    Raises:
        UserError: the data cannot be used, or do not fit the model.
    """
    architecture = recipe.architecture
    tokenize = tokenize_by(recipe.tokenizers, architecture.text.max_position_embeddings)
    size = config.data.size or architecture.image_size
    if size % architecture.latent_factor:
        raise UserError(f"data.size {size} must divide by {architecture.latent_factor}")
    patch = config.cycle.patch_size
    needs_patches = config.stage == "cycle" and config.cycle.distance == "lpips"
    if needs_patches and not SMALLEST_PATCH <= patch <= size:
        raise UserError(
            f"cycle.patch_size {patch} must be from {SMALLEST_PATCH} to the images' {size} pixels"
        )
    open_part: Callable[..., Loader] = partial(
        open_data,
        config.data,
        tokenize,
        size,
        config.batch_size,
        jax.process_index(),
        jax.process_count(),
        config.seed,
    )
    loader = open_part()
    if isinstance(loader.dataset, Latents):
        check_latents(config, loader.dataset, recipe.pipeline)
    if not config.data.validation:
        return loader, None
    held_out = open_part(training=False)
    return loader, HeldOut(held_out, len(held_out.indices))


def check_latents(config: TrainConfig, latents: Latents, pipeline: Pipeline | None) -> None:
    """Raise UserError if cached latents are another model's, or lack what the config needs."""
    if pipeline is None:
        raise UserError(f"stage {config.stage} needs images, not cached latents")
    weights = pipeline.weights
    if latents.index.config.model != fingerprint(weights.vae, weights.texts):
        raise UserError(f"{config.data.path} holds latents of another model: cache them again")
    if latents.index.config.pixels:
        return
    lack = f"{config.data.path} holds no pixels: cache them too (--pixels)"
    if config.cycle.target == "image":
        raise UserError(f"cycle.target image: {lack}")
    if config.data.validation:
        raise UserError(f"data.validation {config.data.validation}: {lack}, or set it to 0")


def main() -> None:
    """The console command."""
    run(fine_tune)
