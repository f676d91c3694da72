"""Training of the networks that look at the embedded world: attribute classifier, LPIPS' VGG."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ie_jax.data.world import ATTRIBUTES
from ie_jax.errors import UserError
from ie_jax.models.classifier import classify
from ie_jax.models.pixels import from_uint8
from ie_jax.training.stage import Metrics, Stage, Tree


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


def classifier_stage(optimiser: optax.GradientTransformation) -> Stage:
    """Trains the tree of `classify`."""
    return Stage(
        prepare=prepare,
        updates={"classifier": cross_entropy},
        optimiser=optimiser,
        evaluate=evaluate,
    )
