"""The UNet's own contract; its numbers are held by tests/parity and tests/conformance."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.models.attention import probabilities
from ie_jax.models.execution import Execution, Precision
from ie_jax.models.shapes import draw, unet_shapes
from ie_jax.models.unet import UNet, guidance_embedding, sinusoidal_embedding
from tests.tiny import RANDOM_MODEL, SMALLEST_MODEL

CONFIG = RANDOM_MODEL.unet
WEIGHTS = draw(unet_shapes(CONFIG), 0)


def inputs(height: int = 8, width: int = 8) -> tuple[jax.Array, ...]:
    z = jax.random.normal(jax.random.key(0), (2, height, width, 4))
    context = jax.random.normal(jax.random.key(1), (2, 5, CONFIG.cross_attention_dim))
    return z, jnp.array([10, 500]), jnp.array([0.0, 7.0]), context


@cache
def jitted(unet: UNet) -> Any:
    return jax.jit(unet.apply)


def run(unet: UNet, *args: jax.Array) -> Any:
    return jitted(unet)({"params": WEIGHTS}, *args)


def test_out_holds_only_what_was_asked_for() -> None:
    eps, out = run(UNet(CONFIG), *inputs())
    assert eps.shape == (2, 8, 8, 4)
    assert out == {}


def test_maps_and_features() -> None:
    collected = UNet(CONFIG, collect=("features", "maps", "queries_keys"))
    eps, out = run(collected, *inputs(8, 12))
    assert eps.shape == (2, 8, 12, 4)
    # down (1 per block), middle, up (2 per block); tokens of 8x12 and of 4x6 latents
    tokens = [96, 24, 24, 24, 24, 96, 96]
    for maps, (q, k) in zip(out["maps"], out["queries_keys"], strict=True):
        np.testing.assert_allclose(maps, probabilities(q, k), rtol=1e-4, atol=1e-6)
    assert [m.shape for m in out["maps"]] == [(2, 2, n, n) for n in tokens]
    assert [q.shape[1] for q, _ in out["queries_keys"]] == tokens
    assert out["features"]["up"].shape == (2, 8, 12, 32)
    assert out["features"]["mid"].shape == (2, 4, 6, 64)
    assert "down" not in out["features"]  # one ResNet per down block: there is no second


def test_images_do_not_touch_each_other() -> None:
    """Each has its own latent, timestep, guidance and text: another batch mate changes nothing."""
    z, t, w, context = inputs()
    together, _ = run(UNet(CONFIG), z, t, w, context)
    swapped, _ = run(UNet(CONFIG), *(x[::-1] for x in (z, t, w, context)))
    np.testing.assert_allclose(swapped[::-1], together, rtol=1e-4, atol=1e-6)
    doubled, _ = run(UNet(CONFIG), *(x[:1].repeat(2, 0) for x in (z, t, w, context)))
    np.testing.assert_allclose(doubled[0], together[0], rtol=1e-4, atol=1e-6)


def test_guidance_enters() -> None:
    z, t, w, context = inputs()
    one, other = (run(UNet(CONFIG), z, t, scale, context)[0] for scale in (w, w + 1))
    assert not np.allclose(one, other, atol=1e-4)


def test_rematerialisation_changes_no_gradient() -> None:
    small = SMALLEST_MODEL.unet
    weights = draw(unet_shapes(small), 0)
    z, *rest = inputs()

    def gradient(execution: Execution) -> jax.Array:
        def loss(z: jax.Array) -> jax.Array:
            eps, _ = UNet(small, execution=execution).apply({"params": weights}, z, *rest)
            return jnp.sum(eps**2)

        return jax.jit(jax.grad(loss))(z)

    plain, remat = gradient(Execution()), gradient(Execution(remat="block"))
    np.testing.assert_allclose(remat, plain, rtol=1e-3, atol=1e-5)


def test_precision_policy() -> None:
    policy = Precision(compute="bfloat16", output="float16")
    assert run(UNet(CONFIG, policy), *inputs())[0].dtype == jnp.float16


def test_without_guidance_embedding() -> None:
    plain = replace(CONFIG, time_cond_proj_dim=None)
    assert "cond_proj" not in unet_shapes(plain)["time_embedding"]


def test_sinusoids_against_their_definition() -> None:
    w = np.array([0.0, 0.5, 19.0])
    k = np.arange(256)
    angle = 1000 * w[:, None] * np.exp(-k * np.log(10000) / 255)
    expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)
    np.testing.assert_allclose(guidance_embedding(jnp.float32(w), 512), expected, atol=4e-3)
    t = np.array([0.0, 999.0])
    angle = t[:, None] * np.exp(-np.arange(8) * np.log(10000) / 8)
    expected = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    np.testing.assert_allclose(sinusoidal_embedding(jnp.float32(t), 16), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("backend", "compute", "attention"),
    [
        ("cpu", "float32", "by_head"),
        ("cpu", "bfloat16", "by_head"),
        ("gpu", "bfloat16", "cudnn"),
        ("gpu", "float32", "explicit"),
        ("tpu", "bfloat16", "flash"),
    ],
)
def test_auto_follows_the_backend(backend: str, compute: Any, attention: str) -> None:
    execution = Execution().resolve(Precision(compute=compute), backend)
    assert execution.attention == attention
    assert execution.convolution == ("cpu" if backend == "cpu" else "xla")
