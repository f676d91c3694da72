"""The optimiser of a config."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers, muon

from ie_jax.training.config import OptimiserConfig
from ie_jax.training.stage import Tree

ROOT_MEAN_SQUARE = 0.2
"""Of Muon's updates, so that a learning rate means about what it means to AdamW (Liu et al., "Muon
is Scalable for LLM Training", 2025)."""


def optimiser_of(config: OptimiserConfig, params: Tree) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW or Muon, of the parameters as one vector.

    Args:
        params: what is trained; only shapes are read.
    """
    rate: float | optax.Schedule = config.learning_rate
    if config.warmup_steps:
        rate = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    if config.decay_steps:
        rate = optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, config.warmup_steps, config.decay_steps
        )
    b1, b2 = config.betas
    if config.name == "muon":
        by_matrix = muon(
            rate,
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=matrices,
            consistent_rms=ROOT_MEAN_SQUARE,
        )
        update = of_vector(by_matrix, params)
    else:
        update = optax.adamw(rate, b1, b2, config.eps, weight_decay=config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(config.clip), update)


def matrices(params: Tree) -> Tree:
    """How Muon sees each array as a matrix, of all inputs by outputs; None: it does not."""

    def matrix(x: Any) -> MuonDimensionNumbers | None:
        return MuonDimensionNumbers(range(x.ndim - 1), x.ndim - 1) if x.ndim > 1 else None

    return jax.tree.map(matrix, params)


def of_vector(
    optimiser: optax.GradientTransformation, params: Tree
) -> optax.GradientTransformation:
    """An optimiser of trees like `params` as one of vectors (see `ie_jax.training.step`)."""
    leaves, structure = jax.tree.flatten(params)
    shapes = [leaf.shape for leaf in leaves]
    ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1]

    def tree(vector: Array) -> Tree:
        parts = zip(jnp.split(vector, ends), shapes, strict=True)
        return jax.tree.unflatten(structure, [part.reshape(shape) for part, shape in parts])

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = optimiser.update(tree(grads), state, tree(params))
        return ravel_pytree(updates)[0], state

    return optax.GradientTransformation(lambda params: optimiser.init(tree(params)), update)
