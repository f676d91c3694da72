"""One batch of training as one program, on any number of devices."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from ie_jax.devices import DATA, is_cut
from ie_jax.training.stage import Loss, Metrics, Stage, State, Tree

Step = Callable[[State, Tree, Mapping[str, Array], Array], tuple[State, Metrics]]


def make_step(stage: Stage, mesh: Mesh, accumulate: int = 1) -> Step:
    """`step(state, frozen, batch, key) -> (state, metrics)`, to be jitted with `state` donated.

    The batch is split over the mesh's data axis by hand, so that gradients of the parameters cross
    devices once per update, whatever the loss does; its fsdp axis is left to the compiler. An
    update whose loss or gradient is not finite leaves the state as it was (the metrics tell).

    Args:
        accumulate: micro-batches that a device's share of a batch is computed in.
    """

    # XLA for GPUs fails where one axis, of length 1, is split by hand and the other one by itself.
    split = not is_cut(mesh) or mesh.shape[DATA] > 1

    def on_device(
        state: State, frozen: Tree, batch: Mapping[str, Array], keys: Array
    ) -> tuple[State, Metrics]:
        examples = micro_batches(
            lambda part: stage.prepare(frozen, *part), (batch, keys), accumulate
        )
        metrics: Metrics = {}
        # Parameters and gradients go through the optimiser as one vector: compilers compare the
        # operations on hundreds of leaves pair by pair, for many minutes.
        params, tree = ravel_pytree(state.params)
        opt_state = state.opt_state
        for name, loss in stage.losses.items():
            value, extra, grads = mean_gradient(loss, tree(params), frozen, examples, accumulate)
            if split:
                value, extra, grads = lax.pmean((value, extra, grads), DATA)
            norm = optax.tree.norm(grads)
            updates, new_state = stage.optimiser.update(grads, opt_state, params)
            finite = jnp.isfinite(value) & jnp.isfinite(norm)
            new = params + updates, new_state
            params, opt_state = choose(finite, new, (params, opt_state))
            metrics |= {f"{name}/loss": value, f"{name}/gradient_norm": norm}
            metrics |= {f"{name}/{key}": x for key, x in extra.items()}
        ema = state.ema
        if stage.ema is not None:
            ema = optax.incremental_update(tree(params), ema, 1.0 - stage.ema)
        return State(state.step + 1, tree(params), opt_state, ema), metrics

    def step(
        state: State, frozen: Tree, batch: Mapping[str, Array], key: Array
    ) -> tuple[State, Metrics]:
        keys = jax.random.split(key, jax.tree.leaves(batch)[0].shape[0])
        if not split:
            return on_device(state, frozen, batch, keys)
        sharded = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(P(), P(), P(DATA), P(DATA)),
            out_specs=P(),
            axis_names={DATA} if is_cut(mesh) else set(mesh.axis_names),
            check_vma=False,
        )
        return sharded(state, frozen, batch, keys)

    return step


def micro_batches(function: Callable[[Any], Tree], batch: Any, count: int) -> Tree:
    """`function` of each of `count` parts of a batch, stacked; of the whole where that is one."""
    if count == 1:
        return function(batch)
    return lax.map(function, jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch))


def mean_gradient(
    loss: Loss, params: Tree, frozen: Tree, examples: Tree, count: int
) -> tuple[Array, Metrics, Array]:
    """Loss, metrics and gradient (one vector), as means over `count` stacked micro-batches."""
    of_part = jax.value_and_grad(loss, has_aux=True)
    if count == 1:
        (value, extra), grads = of_part(params, frozen, examples)
        return value, extra, ravel_pytree(grads)[0]

    def add(total: Tree, example: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, of_part(params, frozen, example)), None

    part = jax.tree.map(lambda x: x[0], examples)
    shapes = jax.eval_shape(of_part, params, frozen, part)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    ((value, extra), grads), _ = lax.scan(add, zeros, examples)
    return jax.tree.map(lambda x: x / count, (value, extra, ravel_pytree(grads)[0]))


def choose(condition: Array, yes: Tree, no: Tree) -> Tree:
    """One tree or the other."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
