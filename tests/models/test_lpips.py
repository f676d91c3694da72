"""LPIPS against recorded values, and what a distance must satisfy."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.models.lpips import features, lpips, lpips_shapes, per_layer, unit
from ie_jax.models.shapes import draw
from ie_jax.weights.judges import from_upstream, random_lpips
from tests.lpips_recipe import upstream_weights

WIDTHS = (4, 6, 8, 10, 12)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return random_lpips(0, WIDTHS)


def images(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    print(f"relative error {error:.1e}")
    return error


class Recorded(NamedTuple):
    record: Any
    params: Any
    images: tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def recorded(goldens: Path) -> Recorded:
    """The recorded pair, and the network that it was recorded with."""
    record = np.load(goldens / "F_lpips.npz")
    weights = dict(upstream_weights(int(record["vgg_seed"])))
    for name, x in weights.items():
        summary = [x.sum(dtype=np.float64), np.abs(x).sum(dtype=np.float64), *x.flat[:4]]
        np.testing.assert_allclose(summary, record[f"check.{name}"], rtol=1e-5, err_msg=name)
    params = from_upstream(weights, "recipe")
    for layer in range(5):
        lin = params[f"lin{layer}"]["weight"]
        np.testing.assert_array_equal(lin, record[f"lin{layer}"])
    one, other = (record[f"img{i}_u8"][None] / np.float32(127.5) - 1 for i in (0, 1))
    return Recorded(record, params, (one, other))


@partial(jax.jit, static_argnames="compute")
def measured(params: Any, x: jax.Array, y: jax.Array, compute: str) -> Any:
    """The distance and its terms, and the distance's gradient by x."""

    def value(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        terms = per_layer(params, x, y, jnp.dtype(compute))
        return jnp.sum(terms), terms

    return jax.value_and_grad(value, has_aux=True)(x)


def test_the_recorded_distance(recorded: Recorded) -> None:
    (value, terms), gradient = measured(recorded.params, *recorded.images, "float32")
    assert relative(value, recorded.record["value"].reshape(())) <= 1e-5
    assert relative(terms[:, 0], recorded.record["per_layer"]) <= 1e-5
    assert relative(jnp.mean(jnp.abs(gradient)), recorded.record["grad_img0_mean_abs"]) <= 1e-4


def test_the_recorded_gradient(recorded: Recorded) -> None:
    # In float32 a few ReLUs and poolings go the other way, which ones by the processor.
    with jax.enable_x64(True):
        _, gradient = measured(recorded.params, *recorded.images, "float64")
    crop = gradient[:, 100:116, 100:116].transpose(0, 3, 1, 2)
    assert relative(crop, recorded.record["grad_img0_crop16"]) <= 1e-4


def test_a_distance(params: Any) -> None:
    measure = jax.jit(lpips)
    x, y = images(0, 3, 32, 48, 3), images(1, 3, 32, 48, 3)
    there, back, same = measure(params, x, y), measure(params, y, x), measure(params, x, x)
    assert there.shape == (3,) and (there > 0).all()
    np.testing.assert_allclose(there, back, rtol=1e-6)
    np.testing.assert_allclose(same, 0, atol=1e-12)
    np.testing.assert_allclose(jax.jit(per_layer)(params, x, y).sum(0), there, rtol=1e-6)
    np.testing.assert_allclose(measure(params, x[1:2], y[1:2]), there[1:2], rtol=1e-5)


def test_features_are_of_unit_length(params: Any) -> None:
    maps = jax.jit(features)(params, images(0, 2, 32, 48, 3))
    assert [x.shape for x in maps] == [
        (2, 32 // 2**i, 48 // 2**i, width) for i, width in enumerate(WIDTHS)
    ]
    for x in maps:
        length = np.linalg.norm(x, axis=-1)
        assert np.all((np.abs(length - 1) < 1e-5) | (length == 0))


def test_dead_features_have_finite_gradients(params: Any) -> None:
    """Where no channel is active."""
    dead = jax.tree.map(lambda x: x - 10 if x.ndim == 1 else x, params)
    dead = {n: p if n.startswith("conv") else params[n] for n, p in dead.items()}
    x, y = images(0, 1, 16, 16, 3), images(1, 1, 16, 16, 3)
    gradient = jax.jit(jax.grad(lambda x: lpips(dead, x, y)[0]))(x)
    np.testing.assert_array_equal(gradient, 0)
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 1, 1, 3)))).all()


def test_the_structure_follows_the_parameters() -> None:
    """A network of other widths and depth works, and each of its layers counts, in order."""
    params = draw(lpips_shapes((3, 5), (1, 11)), 0)
    x = images(0, 1, 8, 8, 3)
    measure = jax.jit(features)
    base = measure(params, x)
    assert [x.shape for x in base] == [(1, 8, 8, 3), (1, 4, 4, 5)]
    for name in (n for n in params if n.startswith("conv")):
        changed = measure(params | {name: params[name] | {"bias": params[name]["bias"] + 1}}, x)
        assert relative(changed[1], base[1]) > 1e-3, name
    swapped = params | {"conv2_2": params["conv2_10"], "conv2_10": params["conv2_2"]}
    assert relative(measure(swapped, x)[1], base[1]) > 1e-3


def test_shapes_are_those_of_vgg16() -> None:
    """Simonyan & Zisserman 2015, table 1, configuration D: 14.7 M weights in the convolutions."""
    shapes = lpips_shapes()
    convolutions = {name: x for name, x in shapes.items() if name.startswith("conv")}
    assert len(convolutions) == 13
    assert sum(x.size for x in jax.tree.leaves(convolutions)) == 14_714_688
    assert shapes["conv4_1"]["kernel"].shape == (3, 3, 256, 512)


def test_bfloat16_convolutions(params: Any) -> None:
    x, y = images(0, 2, 32, 32, 3), images(1, 2, 32, 32, 3)
    exact = jax.jit(lpips)(params, x, y)
    rough = jax.jit(partial(lpips, compute=jnp.dtype("bfloat16")))(params, x, y)
    assert rough.dtype == jnp.float32
    assert 0 < relative(rough, exact) < 0.02
