"""Cycle fine-tuning on the smallest model: what is shared, what is drawn, what has gradients."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ie_jax.errors import UserError
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.networks import Networks, encode_text, vae
from ie_jax.models.pixels import from_uint8
from ie_jax.training.stage import Stage
from ie_jax.training.stages.cycle import (
    CycleConfig,
    Frozen,
    cycle_distance,
    cycle_schedule,
    cycle_stage,
    evaluate,
    losses,
    make_loss,
    prepare,
)
from ie_jax.weights.convert import flatten
from ie_jax.weights.judges import random_lpips
from ie_jax.weights.untrained import RANDOM_CONFIGS, random_pipeline
from tests.tiny import SMALLEST

# Two segments, whole-image patches: as few operations as show everything.
CONFIG = CycleConfig(boundaries=(519, 999), patch_size=16, patch_stride=16)
WIDTHS = (4, 4, 4, 4, 4)


class World:
    """Networks, weights and a batch."""

    def __init__(self) -> None:
        pipeline = random_pipeline()
        weights = jax.tree.map(jnp.asarray, pipeline.weights)
        self.networks = Networks(
            pipeline.architecture,
            execution=Execution().resolve(Precision()),
            lora="low_rank",
        )
        betas = pipeline.architecture.betas
        self.lora = weights.forward
        self.frozen = Frozen(
            unet=weights.unet,
            backward=weights.backward,
            vae=weights.vae,
            text_encoder=weights.text_encoder,
            perceptual=jax.tree.map(jnp.asarray, random_lpips(0, WIDTHS)),
            schedule=cycle_schedule(CONFIG, betas),
        )
        rng = np.random.default_rng(0)
        self.batch: dict[str, Any] = {
            "pixels": rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8),
            "ids": rng.integers(0, 512, (4, 77), dtype=np.int32),
        }
        self.keys = jax.random.split(jax.random.key(3), 4)
        self.prepare = jax.jit(partial(prepare, CONFIG, self.networks))


@pytest.fixture(scope="module")
def world() -> World:
    with pytest.MonkeyPatch.context() as patch:
        for part, changes in SMALLEST.items():
            patch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
        return World()


def test_draws_belong_to_the_images_and_not_to_the_batch(world: World) -> None:
    whole = world.prepare(world.frozen, world.batch, world.keys)
    part = {name: x[2:] for name, x in world.batch.items()}
    half = world.prepare(world.frozen, part, world.keys[2:])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[2:], b, rtol=1e-4, atol=1e-5), whole, half
    )
    np.testing.assert_array_equal(whole.noise[2:], half.noise)
    assert set(np.unique(whole.segment)) <= {0, 1}
    assert (whole.index >= 0).all() and (whole.index < 49).all()


def test_cached_posteriors_and_texts_give_the_same_example(world: World) -> None:
    moments = jax.jit(
        lambda p, x: vae(world.networks).apply({"params": p}, from_uint8(x), method="moments")
    )
    mean, std = moments(world.frozen.vae, world.batch["pixels"])
    embed = jax.jit(partial(encode_text, world.networks))
    context = embed(world.frozen.text_encoder, world.batch["ids"])
    cached = {"mean": mean, "std": std, "context": context}
    without = replace(world.frozen, text_encoder=None)
    ours = world.prepare(without, cached, world.keys)
    expected = world.prepare(world.frozen, world.batch, world.keys)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected
    )


def test_the_target_is_the_decoded_latent_or_the_image(world: World) -> None:
    decoded = world.prepare(world.frozen, world.batch, world.keys)
    expected = jax.jit(lambda p, z: vae(world.networks).apply({"params": p}, z, method="decode"))(
        world.frozen.vae, decoded.latents
    )
    np.testing.assert_allclose(decoded.target, expected, rtol=1e-4, atol=1e-4)
    of_image = partial(prepare, replace(CONFIG, target="image"), world.networks)
    image = jax.jit(of_image)(world.frozen, world.batch, world.keys)
    x = from_uint8(jnp.asarray(world.batch["pixels"]))
    np.testing.assert_allclose(image.target, x, atol=1e-6)
    of_latents = partial(prepare, replace(CONFIG, distance="l2"), world.networks)
    assert jax.jit(of_latents)(world.frozen, world.batch, world.keys).target is None


WEIGHTS = {"distillation": 1.0, "cycle": 1.0, "preservation": 1.5}


def test_the_sum_is_the_sum_though_its_calls_are_one_scan(world: World) -> None:
    example = world.prepare(world.frozen, world.batch, world.keys)
    arguments = (world.lora, world.frozen, example)
    each = losses(CONFIG, world.networks)
    assert list(each) == list(WEIGHTS)
    (together,) = losses(replace(CONFIG, order="sum"), world.networks).values()

    @jax.jit
    def all_four(*arguments: Any) -> Any:
        return together(*arguments), {name: loss(*arguments)[0] for name, loss in each.items()}

    (value, parts), values = all_four(*arguments)
    for name, weight in WEIGHTS.items():
        np.testing.assert_allclose(parts[name] * weight, values[name], rtol=1e-5)
    np.testing.assert_allclose(
        value, sum(weight * parts[name] for name, weight in WEIGHTS.items()), rtol=1e-5
    )


def test_a_distance_between_latents_can_be_added_to_lpips(world: World) -> None:
    example = world.prepare(world.frozen, world.batch, world.keys)
    z = example.latents + 0.1

    @jax.jit
    def distances(z: Any) -> Any:
        huber = replace(CONFIG, distance="huber")
        configs = (CONFIG, replace(CONFIG, latent_weight=0.5), huber)
        return [cycle_distance(x, world.networks, world.frozen, example, z) for x in configs]

    lpips, both, huber = distances(z)
    assert (lpips > 0).all() and (huber > 0).all()
    np.testing.assert_allclose(both, lpips + 0.5 * huber, rtol=1e-5)


@pytest.mark.slow
def test_the_gradient_of_the_sum_is_the_sum_of_gradients(world: World) -> None:
    """`make test` trains by it: in tests/training/test_command.py every factor changes."""
    example = world.prepare(world.frozen, world.batch, world.keys)
    arguments = (world.lora, world.frozen, example)

    @jax.jit
    def weighted(weights: dict[str, Any]) -> Any:
        """The sum's value and gradient: one program for all weights."""
        loss = make_loss(CONFIG, world.networks, weights)
        return jax.value_and_grad(loss, has_aux=True)(*arguments)

    (value, _), grads = weighted(WEIGHTS)
    alone = [weighted({x: w * (x == name) for x, w in WEIGHTS.items()}) for name in WEIGHTS]
    np.testing.assert_allclose(value, sum(x for (x, _), _ in alone), rtol=1e-5)
    slope = jax.tree.map(lambda *x: sum(x), *(part for _, part in alone))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, grads, slope))
    assert difference <= 1e-4 * optax.tree.norm(slope)
    # The random LoRA's A starts with B = 0, as LoRA does: its gradient comes later.
    largest = {path: float(jnp.abs(x).max()) for path, x in flatten(grads).items()}
    assert min(x for path, x in largest.items() if path.endswith("/up")) > 0, largest


def test_a_weight_of_zero_leaves_a_loss_out(world: World) -> None:
    config = replace(CONFIG, distillation_weight=0.0, preservation_weight=0.0)
    assert list(losses(config, world.networks)) == ["cycle"]
    optimiser = optax.sgd(1.0)
    stage: Stage = cycle_stage(replace(CONFIG, order="sum"), world.networks, optimiser, ema=0.5)
    assert list(stage.losses) == ["sum"] and stage.ema == 0.5


def test_evaluation_measures_the_reconstruction(world: World) -> None:
    run: Any = jax.jit(partial(evaluate, world.networks))
    metrics, pictures = run(world.lora, world.frozen, world.batch)
    np.testing.assert_array_equal(pictures["source"], world.batch["pixels"])
    a, b = (np.asarray(pictures[name], np.float64) for name in ("source", "reconstruction"))
    mse = (((a - b) / 127.5) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(metrics["mse"], mse, rtol=1e-4)
    np.testing.assert_allclose(metrics["psnr"], 10 * np.log10(4 / mse), rtol=1e-4)
    assert metrics["lpips"].shape == (4,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycle_weight": -1.0}, "must not be negative"),
        (dict.fromkeys(("cycle_weight", "preservation_weight", "distillation_weight"), 0.0), "all"),
        ({"latent_weight": -1.0}, "must not be negative"),
        ({"latent_weight": 1.0, "distance": "huber"}, "must be 0 with distance huber"),
        ({"patch_stride": 0}, "positive"),
        ({"grid_steps": 1}, "grid"),
        ({"grid_start": 300}, "grid"),
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CycleConfig(**settings)
