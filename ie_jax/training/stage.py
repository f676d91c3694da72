"""What the loop knows of a training stage: a trainable tree, frozen trees, losses, an optimiser."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

Tree = Any
Metrics = dict[str, Float[Array, ""]]
Prepare = Callable[[Tree, Mapping[str, Array], Array], Tree]
"""(frozen, batch, keys) -> example: whatever all losses of a batch share, draws included, without
gradient. `keys` holds one key per item, so that no draw depends on how a batch is split."""
Loss = Callable[[Tree, Tree, Tree], tuple[Float[Array, ""], Metrics]]
"""(params, frozen, example) -> (loss, metrics), means over the example's items."""
Evaluate = Callable[[Tree, Tree, Mapping[str, Array]], tuple[dict[str, Array], dict[str, Array]]]
"""(params, frozen, batch) -> (metrics per item, uint8 pictures per item)."""


@dataclass(frozen=True)
class Stage:
    """One kind of training. Static: what a step is compiled for."""

    prepare: Prepare
    losses: Mapping[str, Loss]
    """Each makes one update per batch, in this order. Names name the metrics."""
    optimiser: optax.GradientTransformation
    """One state for all updates."""
    evaluate: Evaluate | None = None
    ema: float | None = None
    """Decay of the moving average of the parameters, per batch."""


@struct.dataclass
class State:
    """What training changes."""

    step: Int[Array, ""]
    """Batches done."""
    params: Tree
    """float32."""
    opt_state: Tree
    """Of the parameters as one vector (`jax.flatten_util.ravel_pytree`)."""
    ema: Tree | None
    """Moving average of the parameters, where the stage keeps one."""


def initial_state(stage: Stage, params: Tree) -> State:
    """The state before the first batch. Owns its arrays: a step may donate them."""
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    ema = None if stage.ema is None else jax.tree.map(jnp.copy, params)
    return State(jnp.int32(0), params, stage.optimiser.init(ravel_pytree(params)[0]), ema)
