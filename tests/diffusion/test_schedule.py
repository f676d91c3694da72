"""Noise levels, visited timesteps and the consistency step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ie_jax.diffusion.consistency import add_noise, consistency_step, predict_clean
from ie_jax.diffusion.schedule import (
    BOUNDARIES,
    cumulative_alphas,
    dynamic_guidance,
    make_schedule,
)
from ie_jax.diffusion.trajectory import generate, invert
from ie_jax.errors import UserError

ABAR = jnp.asarray(cumulative_alphas())


def latents(seed: int, batch: int = 2) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, 4, 4, 3))


def test_published_schedule() -> None:
    schedule = make_schedule()
    assert schedule.forward_t.tolist() == [0, 259, 519, 779]
    assert schedule.forward_s.tolist() == [259, 519, 779, 999]
    assert schedule.backward_t.tolist() == [999, 779, 519, 259]
    assert schedule.backward_s.tolist() == [779, 519, 259, 0]


def test_icd_starts_at_19_and_ends_at_0() -> None:
    schedule = make_schedule((339, 699, 999), 19, (0, 7, 19))
    assert schedule.forward_t.tolist() == [19, 339, 699]
    assert schedule.backward_s.tolist() == [699, 339, 0]
    assert schedule.steps == 3


@given(st.lists(st.integers(1, 999), min_size=1, max_size=8, unique=True))
def test_the_two_directions_mirror_each_other(times: list[int]) -> None:
    schedule = make_schedule(sorted(times), 0, [0.0] * len(times))
    assert schedule.backward_t.tolist() == schedule.forward_s.tolist()[::-1]
    assert schedule.backward_s.tolist() == schedule.forward_t.tolist()[::-1]


@pytest.mark.parametrize(
    ("boundaries", "start", "guidance", "named"),
    [
        ((259, 519), 0, (0, 1, 2), "cfg_schedule has 3"),
        ((519, 259), 0, (0, 1), "must rise"),
        ((259, 1000), 0, (0, 1), "leave 0..999"),
        ((259, 519), 300, (0, 1), "must rise"),
        ((259, 519), -1, (0, 1), "leave 0..999"),
        ((), 0, (), "leave 0..999"),
    ],
)
def test_bad_schedules(
    boundaries: tuple[int, ...], start: int, guidance: tuple[float, ...], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        make_schedule(boundaries, start, guidance)


def test_noise_levels() -> None:
    assert ABAR.shape == (1000,)
    assert ABAR.dtype == jnp.float32
    assert np.all(np.diff(ABAR) < 0)
    np.testing.assert_allclose(jnp.sqrt(1 - ABAR[0]), 0.0292, atol=1e-4)  # sigma_0, method 2


def test_step_returns_to_the_clean_latent() -> None:
    z0, noise = latents(0), latents(1)
    t = jnp.array([259, 999])
    z = add_noise(ABAR, z0, noise, t)
    np.testing.assert_allclose(predict_clean(ABAR, z, noise, t), z0, atol=2e-5)
    end = consistency_step(ABAR, z, noise, t, jnp.array([0, 0]))
    np.testing.assert_allclose(end, z0, atol=2e-5)  # hard boundary: no noise is left at 0
    part = consistency_step(ABAR, z, noise, t, jnp.array([19, 779]))
    np.testing.assert_allclose(
        part, add_noise(ABAR, z0, noise, jnp.array([19, 779])), rtol=1e-4, atol=2e-5
    )


def test_step_is_float32_whatever_the_network_gives() -> None:
    t = jnp.array([519, 519])
    z = consistency_step(ABAR, latents(0), latents(1).astype(jnp.bfloat16), t, t - 260)
    assert z.dtype == jnp.float32


@pytest.mark.parametrize("unroll", [1, 4])
def test_generation_undoes_inversion_for_an_ideal_denoiser(unroll: int) -> None:
    """One eps for all (z, t): every consistency step is then exact, in both directions."""
    eps = latents(2)
    schedule = make_schedule(start_noise=False)
    up = invert(lambda z, t, w: eps, latents(0), latents(1), schedule, unroll)
    down = generate(lambda z, t, w: eps, up.latents[-1], schedule, unroll)
    # From t = 0 (sigma_0 is not 0) up and back to 0: the start is read as noised by eps.
    alpha, sigma = jnp.sqrt(ABAR[0]), jnp.sqrt(1 - ABAR[0])
    np.testing.assert_allclose(down.latents[-1], (latents(0) - sigma * eps) / alpha, atol=1e-4)
    assert up.latents.shape == (4, 2, 4, 4, 3)


def test_steps_see_their_timestep_and_guidance() -> None:
    seen = []

    def eps(z: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
        seen.append((t.tolist(), w.tolist()))
        return z

    with jax.disable_jit():
        invert(eps, latents(0, 1), latents(1, 1), make_schedule())
        generate(eps, latents(0, 1), make_schedule(guidance=(0, 7, 11, 19)))
    assert [t for (t,), _ in seen] == [0, 259, 519, 779, 999, 779, 519, 259]
    assert [w for _, (w,) in seen] == [0, 0, 0, 0, 0, 7, 11, 19]


def test_start_noise_is_an_option() -> None:
    def start(start_noise: bool) -> jax.Array:
        schedule = make_schedule(start_timestep=19, start_noise=start_noise)
        return invert(lambda z, t, w: z, latents(0), latents(1), schedule).start

    noised = add_noise(ABAR, latents(0), latents(1), jnp.array([19, 19]))
    np.testing.assert_array_equal(start(True), noised)
    np.testing.assert_array_equal(start(False), latents(0))


def test_dynamic_guidance_is_a_ramp() -> None:
    w = dynamic_guidance(np.array([999, 900, 700, 500, 0]), 7.0, 0.5, 0.9)
    np.testing.assert_allclose(w, [0, 0, 3.5, 7, 7], atol=1e-5)
    step = dynamic_guidance(np.array([801, 800, 799]), 7.0, 0.8, 0.8)
    np.testing.assert_allclose(step, [0, 7, 7], atol=1e-5)


def test_default_boundaries() -> None:
    assert BOUNDARIES == (259, 519, 779, 999)
