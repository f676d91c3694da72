"""Training of the networks that look at the embedded world: attribute classifier, LPIPS' VGG."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ie_jax.data.world.scenes import ATTRIBUTES
from ie_jax.errors import UserError
from ie_jax.models.classifier import classify
from ie_jax.models.pixels import from_uint8
from ie_jax.models.shapes import draw
from ie_jax.training.config import RunConfig
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.recipe import MODEL, Batches, Recipe, metadata, model_folder, newest
from ie_jax.training.stage import Metrics, Stage, State, Tree
from ie_jax.weights.folder import read_blueprint, write_parts
from ie_jax.weights.judges import (
    classifier_shapes,
    save_classifier,
    save_lpips,
    with_even_heads,
)


@dataclass(frozen=True)
class ClassifierConfig:
    """What the network is, and what for."""

    purpose: Literal["classifier", "perceptual"] = "classifier"
    """classifier: it is kept whole, to judge edits. perceptual: its convolutions are kept, as
    LPIPS. Two networks, so that what is judged was not trained to please its judge."""
    widths: tuple[int, ...] = (16, 32, 64, 64)
    """Channels by block."""
    depths: tuple[int, ...] = (1, 2, 2, 2)
    """Convolutions by block."""

    def __post_init__(self) -> None:
        if not self.widths or len(self.widths) != len(self.depths):
            raise UserError("classifier: widths and depths need a value for each block")
        if min(*self.widths, *self.depths) < 1:
            raise UserError("classifier: widths and depths must be positive")


def prepare(frozen: Tree, batch: Mapping[str, Array], keys: Array) -> dict[str, Array]:
    """Images in [-1, 1] and their labels; nothing is drawn."""
    return {"x": from_uint8(batch["pixels"]), "labels": batch["labels"]}


def by_attribute(labels: Array) -> dict[str, Array]:
    """Columns of labels by their names."""
    return {name: labels[:, i] for i, name in enumerate(ATTRIBUTES)}


def cross_entropy(
    params: Tree, frozen: Tree, example: Mapping[str, Array]
) -> tuple[Float[Array, ""], Metrics]:
    """The sum over attributes, and each one's share of wrong answers."""
    logits, labels = classify(params, example["x"]), by_attribute(example["labels"])
    losses = [
        optax.softmax_cross_entropy_with_integer_labels(x, labels[name]).mean()
        for name, x in logits.items()
    ]
    wrong = {f"wrong_{name}": jnp.mean(x.argmax(-1) != labels[name]) for name, x in logits.items()}
    return jnp.sum(jnp.stack(losses)), wrong


def evaluate(
    params: Tree, frozen: Tree, batch: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Whether each attribute of held-out scenes is told right, 0 or 1, and whether all are."""
    logits, labels = classify(params, from_uint8(batch["pixels"])), by_attribute(batch["labels"])
    right = {name: x.argmax(-1) == labels[name] for name, x in logits.items()}
    right["all"] = jnp.all(jnp.stack(list(right.values())), axis=0)
    return {f"right_{name}": x.astype(jnp.float32) for name, x in right.items()}, {}


def build(run: RunConfig, config: ClassifierConfig, offline: bool, progress: bool) -> Recipe:
    """Trains the tree of `classify`, beside the chain.

    Raises:
        UserError: the model's folder cannot be read, or the run should start from its judge.
    """
    if run.start == "model":
        raise UserError("start: a classifier is trained from nothing: leave --start out")
    folder = model_folder(run, "classifier")
    blueprint = read_blueprint(folder)
    name = f"{config.purpose}.safetensors"

    def export(target: Path, state: State, best: bool, held_out: Batches) -> None:
        if best:
            return
        write_parts(target / MODEL, folder, {}, {})
        params = jax.tree.map(np.asarray, newest(state))
        facts = metadata(run, "classifier", state)
        if config.purpose == "perceptual":
            save_lpips(target / MODEL / name, with_even_heads(params["vgg"]), facts)
        else:
            save_classifier(target / MODEL / name, params, facts)

    params = draw(classifier_shapes(config.widths, config.depths), run.seed)
    return Recipe(
        Stage(
            prepare, {"classifier": cross_entropy}, optimiser_of(run.optimiser, params), evaluate
        ),
        params,
        {},
        blueprint.architecture,
        (blueprint.tokenizer,),
        export,
    )
