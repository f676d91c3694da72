"""What a stage of training reads and writes beside what it computes, and the parts of that which
several stages share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.errors import UserError
from ie_jax.models.execution import DType, dtype
from ie_jax.models.networks import Architecture, Networks, vae_precision
from ie_jax.models.tokenizer import Tokenizer
from ie_jax.training.config import RunConfig
from ie_jax.training.stage import Stage, State, Tree
from ie_jax.weights.embedded import folder_of
from ie_jax.weights.folder import Blueprint, Pipeline, write_parts
from ie_jax.weights.judges import PERCEPTUAL, load_lpips, random_lpips
from ie_jax.weights.layout import Part
from ie_jax.weights.load import RANDOM

LORA = "forward_lora"
MODEL = "model"
NONE, OWN = "none", "model"
NARROW = (8, 8, 16, 16, 16)
"""Widths of a random LPIPS."""

Batches = Iterable[Mapping[str, np.ndarray]] | None
Export = Callable[[Path, State, bool, Batches], None]
"""(folder, state, whether it is the best by validation, held-out batches) -> files."""


@dataclass(frozen=True)
class Recipe:
    """A stage with its inputs."""

    stage: Stage
    params: Tree
    """To start from."""
    frozen: Tree
    architecture: Architecture
    tokenizers: tuple[Path, ...]
    """One for each text encoder."""
    export: Export
    best: str | None = None
    """The metric of validation by which the best checkpoint is told, the smaller the better."""
    pipeline: Pipeline | None = None
    """Of a stage that can be trained on cached latents."""


def networks_of(config: RunConfig, architecture: Architecture) -> Networks:
    """The networks, run as the config says."""
    return Networks(
        architecture,
        config.precision,
        vae_precision(architecture, config.vae_precision),
        config.execution.resolve(config.precision, cut=config.mesh.fsdp > 1),
        config.lora,
    )


def cast(tree: Any, name: DType) -> Any:
    """A tree on the host in a number type."""
    return jax.tree.map(lambda x: np.asarray(x, dtype(name)), tree)


def model_folder(config: RunConfig, stage: str) -> Path:
    """The folder that a stage of the chain starts from.

    Raises:
        UserError: there is none.
    """
    folder = folder_of(config.model)
    if not folder.is_dir():
        raise UserError(
            f"stage {stage} starts from a folder of upstream files: there is none at "
            f"{config.model!r}"
        )
    return folder


def metadata(config: RunConfig, stage: str, state: State, best: bool = False) -> dict[str, str]:
    """What a file says of how it was trained, and whether it was stopped before its end; of the
    best by validation, which may lie before it, not the latter."""
    facts = {
        "stage": stage,
        "steps": int(state.step),
        "batch_size": config.batch_size,
        "data": config.data.source,
        "seed": config.seed,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    unfinished = {"unfinished": f"{state.step} of {config.steps} steps"}
    told = facts | (unfinished if int(state.step) < config.steps and not best else {})
    return {name: str(value) for name, value in told.items()}


def newest(state: State) -> Tree:
    """What a stage has trained: the moving average, where one is kept."""
    return state.params if state.ema is None else state.ema


def model_export(
    source: Path,
    facts: Callable[[State], Mapping[str, str]],
    parts: Callable[[Tree], Mapping[Part, Tree]] = lambda params: params,
) -> Export:
    """An export of the whole model at the end of a run: the folder that it started from, with the
    parts that were trained.

    Args:
        facts: what the new files say of themselves.
        parts: the parts of the trained tree.
    """

    def export(folder: Path, state: State, best: bool, held_out: Batches) -> None:
        if not best:
            write_parts(folder / MODEL, source, parts(newest(state)), facts(state))

    return export


def empty_caption(blueprint: Blueprint) -> jax.Array:
    """Token ids of no words."""
    length = blueprint.architecture.text.max_position_embeddings
    return jnp.asarray(Tokenizer(blueprint.tokenizer)([""], length)[0])


def load_perceptual(config: RunConfig, offline: bool, progress: bool) -> Any:
    """The parameters of LPIPS; None where the config does without.

    Raises:
        UserError: there are none, or they are damaged.
    """
    if config.perceptual == OWN:
        return load_lpips(str(folder_of(config.model) / PERCEPTUAL), offline, progress)
    if config.perceptual == NONE:
        return None
    if config.perceptual == RANDOM:
        return random_lpips(config.seed, NARROW)
    return load_lpips(config.perceptual, offline, progress)
