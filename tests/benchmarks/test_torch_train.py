"""The PyTorch counterpart of the training step computes what ours computes."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import steps
from benchmarks.models import pipeline_of
from ie_jax.devices import make_mesh
from ie_jax.models.execution import Execution
from ie_jax.training.config import OptimiserConfig
from ie_jax.training.optimiser import optimiser_of
from ie_jax.training.stage import initial_state
from ie_jax.training.stages import TrainConfig
from ie_jax.training.stages.cycle import CycleConfig, cycle_stage, frozen_of, prepare
from ie_jax.training.stages.cycle import losses as losses_of
from ie_jax.training.step import make_step

REASON = "the PyTorch counterpart needs it: pip install 'ie_jax[dev]'"
for package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(package, reason=REASON)

from benchmarks.torch_train import TorchTrainer, torch  # noqa: E402

CONFIG = TrainConfig(
    model="random",
    batch_size=2,
    cycle=CycleConfig(order="sum", patch_size=16, patch_stride=8, guidance=3.0),
    execution=Execution(),
)
SIZE, SEED = 32, 3


def both(config: TrainConfig) -> tuple[tuple[Any, ...], TorchTrainer, tuple[Any, Any]]:
    """Frozen weights, LoRA, batch and networks of ours; the trainer, its batch and draws."""
    task = steps.Task(config, SIZE, SEED)
    pipeline, perceptual = pipeline_of("random"), steps.perceptual_of(config)
    frozen = frozen_of(config, config.cycle, pipeline, perceptual)
    networks = steps.networks_of(config, pipeline.architecture)
    batch = steps.batch_of(task, pipeline.architecture)
    draws = steps.draws_of(task, pipeline.architecture, frozen)
    trainer = TorchTrainer(config, pipeline, perceptual)
    lora = jax.tree.map(jnp.asarray, pipeline.weights.forward)
    ours = networks, frozen, lora, jax.tree.map(jnp.asarray, batch)
    return ours, trainer, (trainer.place(batch), trainer.place(draws))


@pytest.mark.slow
def test_losses_are_ours() -> None:
    (networks, frozen, lora, batch), trainer, theirs = both(CONFIG)

    @jax.jit
    def losses(keys: jax.Array) -> dict[str, jax.Array]:
        example = prepare(CONFIG.cycle, networks, frozen, batch, keys)
        (of_sum,) = losses_of(CONFIG.cycle, networks).values()
        return of_sum(lora, frozen, example)[1]

    found = losses(jax.random.split(jax.random.key(SEED), CONFIG.batch_size))
    with torch.no_grad():
        example = trainer.prepare(*theirs)
        for name, (_weight, loss) in trainer.losses.items():
            assert float(loss(example)) == pytest.approx(float(found[name]), rel=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("order", ["in_turn", "sum"])
def test_steps_are_ours(order: Any) -> None:
    """Two steps, large enough that the second one's losses show the first."""
    config = replace(
        CONFIG,
        cycle=replace(CONFIG.cycle, order=order),
        optimiser=OptimiserConfig(learning_rate=1e-3, eps=1e-3),
        execution=Execution(remat="block"),
        accumulate=2,
    )
    (networks, frozen, lora, batch), trainer, theirs = both(config)
    stage = cycle_stage(config.cycle, networks, optimiser_of(config.optimiser, lora))
    step = jax.jit(make_step(stage, make_mesh(devices=jax.devices()[:1]), config.accumulate))
    state = initial_state(stage, lora)
    first: dict[str, float] = {}
    for _ in range(2):
        state, ours = step(state, frozen, batch, jax.random.key(SEED))
        found, _seconds = trainer(*theirs)
        for name, value in found.items():
            assert float(ours[name]) == pytest.approx(value, rel=1e-4), name
        changed = [abs(found[name] / value - 1) for name, value in first.items()]
        assert not changed or np.max(changed) > 1e-3
        first = found
