"""Devices as a mesh of two axes, and how trees lie on it.

`data`: devices on it hold the same weights and different images. `fsdp`: each leaf of the frozen
weights is cut into as many pieces, which the compiler collects where a layer needs them; the images
are split over it too.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ie_jax.errors import UserError

DATA, FSDP = "data", "fsdp"
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


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Items over all devices."""
    return NamedSharding(mesh, P((DATA, FSDP)))


def cut(mesh: Mesh, shape: Sequence[int]) -> NamedSharding:
    """A leaf of frozen weights: its largest axis that divides is cut into fsdp pieces."""
    pieces = mesh.shape[FSDP]
    sizes = [size if size % pieces == 0 else 0 for size in shape]
    if pieces == 1 or math.prod(shape) < SMALLEST or not any(sizes):
        return replicated(mesh)
    axis = int(np.argmax(sizes))
    return NamedSharding(mesh, P(*(FSDP if i == axis else None for i in range(len(shape)))))


def shardings_of_frozen(mesh: Mesh, tree: Any) -> Any:
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
