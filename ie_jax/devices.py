"""Devices as a mesh of two axes, how trees lie on it, and programs over it. No other file knows.

`data`: devices on it hold the same weights and different images. `fsdp`: each large leaf of weights
and optimiser state is cut into as many pieces, which the compiler collects where a layer needs
them; the images are split over it too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ie_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
BATCH: Any = P((DATA, FSDP))
"""Items, along the first axis of an array."""
LATER: Any = P(None, (DATA, FSDP))
"""Items along the second axis."""
WHOLE: Any = P()
"""The whole array on every device."""
PATIENCE = 7 * 24 * 3600
"""Seconds that processes wait for each other at the end."""
SMALLEST = 2**16
"""Numbers in a leaf from which it is worth cutting."""


def make_mesh(fsdp: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """All devices, `fsdp` of them in a row sharing one copy of the frozen weights.

    Raises:
        UserError: the number of devices does not divide by fsdp.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise UserError(f"mesh.fsdp {fsdp} must divide the number of devices, {len(devices)}")
    grid = np.asarray(devices).reshape(-1, fsdp)
    return Mesh(grid, (DATA, FSDP), axis_types=(AxisType.Auto,) * 2)


def batch_size(mesh: Mesh, asked: int | None) -> int:
    """How many images a batch has: as many as asked for, else one for each device.

    Raises:
        UserError: they cannot be shared out evenly.
    """
    size = mesh.size if asked is None else asked
    if size < 1 or size % mesh.size:
        raise UserError(f"--batch-size {size} must be a multiple of the {mesh.size} devices")
    return size


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, WHOLE)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Items over all devices."""
    return NamedSharding(mesh, BATCH)


def cut(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """A leaf of weights: its largest axis that divides is cut into fsdp pieces."""
    pieces = mesh.shape[FSDP]
    sizes = [size if size % pieces == 0 else 0 for size in shape]
    if pieces == 1 or math.prod(shape) < SMALLEST or not any(sizes):
        return replicated(mesh)
    axis = int(np.argmax(sizes))
    return NamedSharding(mesh, P(*(FSDP if i == axis else None for i in range(len(shape)))))


def is_cut(mesh: Mesh) -> bool:
    """Whether devices share copies of the weights, which the compiler then sees to. Else all that a
    device does is written down by hand, as kernels need it."""
    return bool(mesh.shape[FSDP] > 1)


def weight_shardings(mesh: Mesh, tree: Any) -> Any:
    """`cut` for every leaf."""
    return jax.tree.map(lambda x: cut(mesh, x.shape), tree)


def place(tree: Any, shardings: Any) -> Any:
    """Host arrays, equal on all processes, as global arrays."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        array = np.asarray(x)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda x: put(x, shardings), tree)
    return jax.tree.map(put, tree, shardings)


def place_batch(mesh: Mesh, batch: Any) -> Any:
    """This process' part of a batch as part of the global batch."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def gathered(mesh: Mesh, tree: Any) -> Any:
    """A tree that may be cut, whole on the host; all processes must ask for it."""
    return jax.tree.map(np.asarray, to_all(mesh)(tree))


@cache
def to_all(mesh: Mesh) -> Any:
    """A program that gives every device all of a tree: compiled once for trees of one shape."""
    return jax.jit(lambda x: x, out_shardings=replicated(mesh))


def over_devices(
    function: Callable[..., Any], mesh: Mesh, arguments: Sequence[Any], results: Any
) -> Callable[..., Any]:
    """A function of batches that computes every device's items on that device alone: whatever it
    is, nothing crosses devices.

    Args:
        arguments, results: where the items are (`BATCH`, `LATER`), or `WHOLE`: one for each
            argument, or a tree of them.
    """
    if mesh.size == 1:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=tuple(arguments), out_specs=results, check_vma=False
    )


def local_mesh(count: int | None = None) -> Mesh:
    """This process's own devices, or so many of them: for work that no other takes part in.

    Raises:
        UserError: there are fewer.
    """
    devices = jax.local_devices()
    if count is not None and not 1 <= count <= len(devices):
        raise UserError(f"there are {len(devices)} devices here, not {count}")
    return make_mesh(devices=devices[:count])


@dataclass(frozen=True)
class Processes:
    """How several processes that do one piece of work find each other: options of a command."""

    distributed: bool = False
    """Several processes share the work, told by the environment (SLURM, TPU pods, GKE)."""
    coordinator: str | None = None
    """host:port of process 0, where the environment does not tell."""
    processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""


def join(given: Processes) -> None:
    """Join the other processes, if there are any.

    Raises:
        UserError: where the environment does not tell of them, coordinator, number or this one's
            number is missing; or the others cannot be found.
    """
    address = given.coordinator, given.processes, given.process_id
    if not given.distributed and address == (None, None, None):
        return
    if not given.distributed and None in address:
        raise UserError("--coordinator, --processes and --process-id go together: one is missing")
    try:
        jax.distributed.initialize(*address, shutdown_timeout_seconds=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"cannot join the other processes: {error}") from error


def process_zero_first(work: Callable[[], None]) -> None:
    """Let process 0 do something while all others wait for it.

    Raises:
        UserError: process 0 could not do it.
    """
    if jax.process_count() == 1:
        return work()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    problem: UserError | None = None
    if jax.process_index() == 0:
        try:
            work()
        except UserError as error:
            problem = error
    failed = bool(broadcast_one_to_all(np.asarray(problem is not None)))
    if problem or failed:
        raise problem or UserError("process 0 could not begin: see what it says")


def part() -> None:
    """Wait until all processes are done: the first one to end would take the others along."""
    if jax.process_count() > 1:
        jax.distributed.shutdown()
