"""Program of tests/test_devices.py: a step of the smallest real model on one device and
on eight, in a process of its own, since the number of devices is fixed when JAX starts.

Prints {what: relative difference to one device} as JSON.
"""

import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

from ie_jax import devices as sharding
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.networks import Networks
from ie_jax.training.stage import initial_state
from ie_jax.training.stages.cycle import CycleConfig, Frozen, cycle_schedule, cycle_stage
from ie_jax.training.step import make_step
from ie_jax.weights.untrained import random_pipeline
from tests.tiny import shrink

MESHES = {"1": (1, 1), "4 x 2": (8, 2)}
"""Devices, and how many of them share a copy of the weights."""


def main() -> None:
    """The program."""
    shrink()
    sharding.SMALLEST = 1  # cut every leaf that can be
    pipeline = random_pipeline()
    weights, arch = pipeline.weights, pipeline.architecture
    # The cycle alone, of latents: two programs that are sooner compiled.
    alone = CycleConfig("sum", "l2", distillation_weight=0.0, preservation_weight=0.0)
    config = replace(alone, boundaries=(519, 999))
    execution = Execution().resolve(Precision())
    networks = Networks(arch, execution=execution, lora="low_rank")
    frozen = Frozen(
        unet=weights.unet,
        backward=weights.backward,
        vae=weights.vae,
        text_encoder=weights.text_encoder,
        perceptual=None,
        schedule=cycle_schedule(config, arch.betas),
    )
    rng = np.random.default_rng(0)
    batch = {
        "pixels": rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8),
        "ids": rng.integers(0, 512, (8, 77), dtype=np.int32),
    }
    # With this optimiser the change of the parameters is the gradient.
    stage = cycle_stage(config, networks, optax.sgd(1.0))

    def run(devices: int, fsdp: int) -> tuple[dict[str, float], np.ndarray]:
        mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
        placed = sharding.place(frozen, sharding.weight_shardings(mesh, frozen))
        cut = sum(not x.is_fully_replicated for x in jax.tree.leaves(placed))
        assert (cut > 100) == (fsdp > 1), cut
        start = initial_state(stage, weights.forward)
        state = sharding.place(start, sharding.replicated(mesh))
        step = jax.jit(make_step(stage, mesh))
        after, metrics = step(state, placed, sharding.place_batch(mesh, batch), jax.random.key(5))
        change = jax.tree.map(
            lambda a, b: np.asarray(a - b), start.params, jax.device_get(after.params)
        )
        gradient = np.concatenate([x.ravel() for x in jax.tree.leaves(change)])
        return {name: float(x) for name, x in metrics.items()}, gradient

    results: dict[str, Any] = {name: run(*shape) for name, shape in MESHES.items()}
    (expected, gradient), (metrics, other) = results["1"], results["4 x 2"]
    errors = {what: abs(x - expected[what]) / abs(expected[what]) for what, x in metrics.items()}
    errors["gradient"] = float(np.linalg.norm(other - gradient) / np.linalg.norm(gradient))
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
