"""The programs are pure functions that jit, vmap and differentiate."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.diffusion.schedule import Schedule, make_schedule
from ie_jax.methods.guidance import Strength
from ie_jax.methods.guiders import make_guider
from ie_jax.methods.inverse_and_edit import (
    Models,
    differentiable_edit,
    edit_images,
    invert_images,
)
from ie_jax.models.execution import Execution
from ie_jax.models.lora import lora_shapes
from ie_jax.models.networks import encode_text
from ie_jax.models.pixels import from_uint8, to_uint8
from ie_jax.models.shapes import draw, text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.weights.folder import Weights
from tests.tiny import SMALLEST_MODEL

ARCHITECTURE = SMALLEST_MODEL
GUIDERS = (make_guider("self_attn_map_l2"), make_guider("features_map_l2", block="mid"))
MODELS = Models(ARCHITECTURE, guiders=GUIDERS)
edit: Any = jax.jit(edit_images, static_argnums=0)
"""The whole program, compiled once for all tests that run it on the same shapes."""


def weights() -> Weights:
    base = unet_shapes(ARCHITECTURE.unet)
    rng = np.random.default_rng(0)

    def lora(seed: int) -> Any:
        drawn = draw(lora_shapes(base, 2), seed)
        return jax.tree.map(lambda x: np.float32(x + 0.02 * rng.standard_normal(x.shape)), drawn)

    return Weights(
        unet=draw(base, 1),
        forward=lora(2),
        backward=lora(3),
        vae=draw(vae_shapes(ARCHITECTURE.vae), 4),
        text_encoder=draw(text_encoder_shapes(ARCHITECTURE.text), 5),
    )


def arguments(b: int = 1, e: int = 1, steps: int = 2) -> tuple[Any, ...]:
    rng = np.random.default_rng(1)
    boundaries, w = {2: ((500, 999), (0.0, 5.0)), 1: ((999,), (3.0,))}[steps]
    return (
        weights(),
        rng.integers(0, 256, (b, 16, 16, 3), dtype=np.uint8),
        rng.integers(0, 500, (b, 8), dtype=np.int32),
        rng.integers(0, 500, (b, e, 8), dtype=np.int32),
        np.float32(rng.standard_normal((b, 16, 16, 4))),
        make_schedule(boundaries, 0, w),
        Strength(jnp.full((2, steps), 5.0), jnp.float32(0.0), jnp.float32(1.0)),
        jnp.float32(1),
    )


def replace_scales(strength: Strength) -> Strength:
    """Of the second guider alone."""
    return replace(strength, scales=strength.scales[1:])


def test_values_never_retrace() -> None:
    traces = 0

    def counted(*args: Any) -> Any:
        nonlocal traces
        traces += 1
        return edit_images(MODELS, *args)

    program = jax.jit(counted)
    w, pixels, source, target, noise, schedule, strength, match = arguments()
    program.trace(w, pixels, source, target, noise, schedule, strength, match)
    changed = (
        w.replace(forward=jax.tree.map(lambda x: 2 * x, w.forward)),
        255 - pixels,
        source + 1,
        target + 2,
        noise * 2,
        replace(make_schedule((300, 900), 19, (1.0, 2.0)), start_noise=jnp.float32(0)),
        Strength(strength.scales * 3, jnp.float32(0.3), jnp.float32(jnp.inf)),
        jnp.float32(0),
    )
    program.trace(*changed)
    assert traces == 1
    program.trace(*arguments(e=2))
    assert traces == 2  # another shape is another program


@pytest.mark.long("the gradient of a guided edit, itself with a gradient inside, is compiled")
def test_edited_pixels_have_gradients() -> None:
    """They agree with finite differences."""
    w, pixels, source, target, noise, schedule, strength, _ = arguments(steps=1)
    models = replace(MODELS, guiders=GUIDERS[1:])
    inputs = {
        "pixels": from_uint8(jnp.asarray(pixels)),
        "noise": noise,
        "source": encode_text(models, w.text_encoder, source),
        "target": encode_text(models, w.text_encoder, target),
        "forward": w.forward,
        "backward": w.backward,
        "scales": replace_scales(strength).scales,
    }
    rng = np.random.default_rng(7)

    def drawn(tree: Any) -> Any:
        size = sum(x.size for x in jax.tree.leaves(tree))
        return jax.tree.map(
            lambda x: np.float32(rng.standard_normal(x.shape) / np.sqrt(size)), tree
        )

    wanted = rng.standard_normal((1, 1, 16, 16, 3)).astype(np.float32)
    directions = {name: drawn(x) for name, x in inputs.items()}

    def loss(steps: dict[str, jax.Array]) -> jax.Array:
        x = {
            name: jax.tree.map(lambda y, d, h=steps[name]: y + h * d, tree, directions[name])
            for name, tree in inputs.items()
        }
        edited = differentiable_edit(
            models,
            w.replace(forward=x["forward"], backward=x["backward"]),
            *(x["pixels"], x["source"], x["target"], x["noise"]),
            schedule,
            replace(replace_scales(strength), scales=x["scales"]),
        )
        return jnp.mean(edited * wanted)

    program = jax.jit(jax.value_and_grad(loss))
    still = dict.fromkeys(inputs, jnp.float32(0))
    _, slopes = program(still)
    h = 3e-2
    for name, slope in slopes.items():
        ahead, behind = (float(program(still | {name: jnp.float32(x)})[0]) for x in (h, -h))
        assert abs(slope) > 1e-5, name
        assert float(slope) == pytest.approx((ahead - behind) / (2 * h), rel=1e-2), name


def test_floats_are_the_edit_of_bytes() -> None:
    w, pixels, source, target, noise, schedule, strength, _ = arguments()
    given = (source, target, noise, schedule, strength)
    _, expected = edit(MODELS, w, pixels, *given, jnp.float32(0))
    run: Any = jax.jit(differentiable_edit, static_argnums=0)
    found = run(MODELS, w, from_uint8(jnp.asarray(pixels)), *given)
    np.testing.assert_array_equal(to_uint8(found[0]), expected.pixels[0])


def test_inversion_maps_over_schedules() -> None:
    w, pixels, source, _, noise, schedule, *_ = arguments()
    other = make_schedule((300, 999), 19, (0.0, 5.0))
    both = jax.tree.map(lambda *x: jnp.stack(x), schedule, other)

    def latents(schedule: Schedule) -> jax.Array:
        return invert_images(MODELS, w, pixels, source, noise, schedule).latents

    mapped = jax.jit(jax.vmap(latents))(both)
    single = jax.jit(latents)
    np.testing.assert_allclose(mapped[0], single(schedule), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(mapped[1], single(other), rtol=1e-4, atol=1e-4)


@pytest.mark.long("two guided edits are compiled")
def test_execution_changes_no_result() -> None:
    args, execution = arguments(), Execution(remat="call", query_chunk=16)
    _, plain = edit(MODELS, *args)
    _, other = edit(replace(MODELS, execution=execution), *args)
    np.testing.assert_allclose(other.latents, plain.latents, rtol=1e-3, atol=1e-4)


def test_schedules_per_image() -> None:
    """Two images with schedules of their own equal two single edits."""
    w, pixels, source, target, noise, _, strength, match = arguments(b=2)
    schedules = [
        make_schedule((500, 999), 0, (0.0, 5.0)),
        make_schedule((300, 900), 19, (1.0, 2.0)),
    ]
    stacked = replace(
        schedules[0],
        **{
            name: jnp.stack([getattr(s, name) for s in schedules])
            for name in ("forward_t", "forward_s", "backward_t", "backward_s")
        },
        guidance=jnp.stack([s.guidance for s in schedules])[:, None],
    )
    program = partial(edit, MODELS)
    _, both = program(w, pixels, source, target, noise, stacked, strength, match)
    for i, schedule in enumerate(schedules):
        one = slice(i, i + 1)
        _, single = program(
            w, pixels[one], source[one], target[one], noise[one], schedule, strength, match
        )
        np.testing.assert_allclose(both.latents[:, one], single.latents, rtol=1e-3, atol=1e-4)


def test_without_guiders_scales_need_no_shape() -> None:
    w, pixels, source, target, noise, schedule, _, match = arguments()
    strength = Strength(jnp.zeros(0), jnp.float32(0), jnp.float32(1))
    plain = partial(edit_images, replace(MODELS, guiders=()))
    _, result = jax.eval_shape(plain, w, pixels, source, target, noise, schedule, strength, match)
    assert result.pixels.shape == (1, 1, 16, 16, 3) and result.record is None
