"""Chains of steps in one scan."""

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.diffusion.consistency import add_noise, consistency_step
from ie_jax.diffusion.schedule import cumulative_alphas, make_schedule
from ie_jax.diffusion.trajectory import chain, generate, invert, there_and_back, walk_all

ABAR = jnp.asarray(cumulative_alphas())


def latents(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (2, 4, 4, 3))


def eps(model: jax.Array, z: jax.Array, t: jax.Array, w: jax.Array) -> jax.Array:
    """Tells model, timestep and guidance apart."""
    factor = 0.1 * (model + 1) + 1e-4 * t + w
    return factor[:, None, None, None] * z


def test_each_chain_is_its_steps_one_by_one() -> None:
    t, s = jnp.array([[239, 19], [259, 39]]), jnp.array([[259, 39], [519, 259]])
    w = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    chains = {
        "two": chain(latents(0), [2, 0], t, s, w),
        "one": chain(latents(1), [1], t[:1], s[:1]),
    }
    walked = jax.jit(lambda chains: walk_all(eps, ABAR, chains))(chains)
    first = consistency_step(
        ABAR, latents(0), eps(jnp.array(2), latents(0), t[0], w[0]), t[0], s[0]
    )
    second = consistency_step(ABAR, first, eps(jnp.array(0), first, t[1], w[1]), t[1], s[1])
    np.testing.assert_allclose(walked["two"], jnp.stack([first, second]), rtol=1e-5, atol=1e-6)
    alone = eps(jnp.array(1), latents(1), t[0], 0 * w[0])
    expected = consistency_step(ABAR, latents(1), alone, t[0], s[0])
    np.testing.assert_allclose(walked["one"][0], expected, rtol=1e-5, atol=1e-6)
    assert walk_all(eps, ABAR, {}) == {}


def test_there_and_back_is_inversion_and_generation() -> None:
    schedule = make_schedule((500, 999), 19, (0.0, 5.0), start_noise=False)
    guidance = jnp.array([[0.0, 5.0], [1.0, 2.0]])
    way = there_and_back(latents(0), schedule, 0, 1, guidance)
    walked = jax.jit(lambda way: walk_all(eps, ABAR, {"way": way}))(way)["way"]
    up = invert(lambda *at: eps(jnp.array(0), *at), latents(0), latents(1), schedule)
    down = schedule.replace(guidance=guidance)  # type: ignore[attr-defined]
    down = generate(lambda *at: eps(jnp.array(1), *at), up.latents[-1], down)
    np.testing.assert_allclose(walked, jnp.concatenate([up.latents, down.latents]), rtol=1e-4)


def test_a_soft_step_to_0_keeps_the_noise_of_timestep_0() -> None:
    z, noise = latents(0), latents(1)
    t, s = jnp.array([[500, 979]]), jnp.zeros((1, 2), jnp.int32)
    for hard, expected in ((True, z), (False, add_noise(ABAR, z, noise, s[0]))):
        start = chain(add_noise(ABAR, z, noise, t[0]), [0], t, s, hard=[hard])
        end = walk_all(lambda *_: noise, ABAR, {"to 0": start})["to 0"][0]
        np.testing.assert_allclose(end, expected, atol=2e-4)
