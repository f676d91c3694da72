"""The methods on SDXL-Turbo, by networks in which the result is known; their numbers are held by
tests/conformance."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.diffusion import euler
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.methods import gnri, renoise, turbo, turboedit
from tests.conftest import ROOT
from tests.weights.models import write_sdxl

ABAR = jnp.asarray(cumulative_alphas())
SHAPE = (2, 8, 8, 4)
TEXT = jnp.zeros((2, 3, 5))


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def blind(z: Any, t: Any, w: Any, context: Any, control: Any = None) -> Any:
    """Sees the timestep and the text but not the latent: its inversion is exact."""
    told = jnp.mean(context, axis=(1, 2))[:, None, None, None]
    return jnp.sin(t)[:, None, None, None] + told + 0 * z, {}


def seeing(z: Any, t: Any, w: Any, context: Any, control: Any = None) -> Any:
    """Sees all."""
    eps, out = blind(z, t, w, context)
    return 0.5 * jnp.tanh(z) + eps, out


@jax.jit
def turbo_edit(*arguments: Any) -> turboedit.Seen:
    return turboedit.turboedit(seeing, *arguments)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("steps", "grid"),
    [(4, [999, 749, 499, 249]), (5, [999, 799, 599, 399, 199]), (3, [999, 666, 332])],
)
def test_trailing_grids(steps: int, grid: list[int]) -> None:
    assert euler.trailing(steps).tolist() == grid


def test_steps_below_a_share_of_the_timesteps() -> None:
    steps = euler.turbo_steps(ABAR, 4, 0.6)
    assert steps.t.tolist() == [499, 249]
    assert steps.low.tolist() == [steps.high[1], 0]


def test_an_edit_to_the_same_text_is_the_source() -> None:
    z, noise = normal(0, *SHAPE), normal(1, 4, *SHAPE)
    plan = turboedit.plan()._replace(limits=-jnp.ones(4))
    seen = turbo_edit(z, noise, TEXT, TEXT, ABAR, plan, jnp.full(2, 1.5))
    close(seen.latents[-1, 2], z)
    edit = turbo_edit(z, noise, TEXT, TEXT + 1, ABAR, plan, jnp.full(2, 1.5))
    assert not np.allclose(edit.latents[-1, 2], z, atol=0.1)


def test_the_limit_of_a_correction_is_of_each_image() -> None:
    z, noise = normal(0, *SHAPE) * jnp.array([1.0, 9.0])[:, None, None, None], normal(1, 4, *SHAPE)
    plan = turboedit.plan()._replace(limits=jnp.full(4, 5.0))

    def edit(of: slice) -> turboedit.Seen:
        texts = (TEXT[of], TEXT[of] + 1)
        return turbo_edit(z[of], noise[:, of], *texts, ABAR, plan, jnp.full(len(z[of]), 1.5))

    both, second = edit(slice(None)), edit(slice(1, 2))
    close(both.latents[:, :, 1:], second.latents)
    close(both.kept * both.norm, np.minimum(both.norm, 5))


def generated(z: jax.Array, noise: jax.Array, steps: euler.Steps) -> jax.Array:
    return turbo.generate(blind, z, noise, None, TEXT, jnp.ones(2), steps).latents[-1]


def test_generation_undoes_gnri() -> None:
    z, noise = normal(0, *SHAPE), normal(1, 4, *SHAPE)
    for below in (0.6, 1.0):
        steps = euler.turbo_steps(ABAR, 4, below)
        kept = noise[4 - len(steps.t) :]
        found = gnri.gnri_inversion(blind, z, kept, TEXT, steps)
        assert found.iterations.eps.shape == (len(steps.t), 2, *SHAPE)
        close(generated(found.latents[-1], kept, steps), z)


def test_gnri_keeps_the_least_residual_of_each_image() -> None:
    z, noise = normal(0, *SHAPE), normal(1, 4, *SHAPE)
    steps = euler.turbo_steps(ABAR)
    found = gnri.gnri_inversion(seeing, z, noise, TEXT, steps, 3)
    best = np.argmin(found.iterations.residual, axis=1)
    for i, images in enumerate(best):
        for j, k in enumerate(images):
            close(found.latents[i, j], found.iterations.reached[i, k, j])
    alone = gnri.gnri_inversion(seeing, z[:1], noise[:, :1], TEXT[:1], steps, 3)
    close(found.latents[:, :1], alone.latents)


def test_generation_undoes_renoise() -> None:
    """Where the network sees no latent, and nothing is regularised, the noise stays as it was."""
    z, noise = normal(0, *SHAPE), normal(1, 4, *SHAPE)
    steps = renoise.turbo_inversion_steps(ABAR, noise, normal(2, *SHAPE), 4)
    plan = renoise.zones(2, 1, (0, 2), (1, 3))
    rolls = renoise.all_rolls(jax.random.key(3), plan, (1, len(steps.t) - 1), 4, z.shape[1])
    none = renoise.Weights(jnp.float32(0), jnp.float32(0))
    found = renoise.renoise_turbo(blind, z, TEXT, steps, rolls, 1, none, plan)
    assert [x.eps.shape[:2] for x in found.zones] == [(1, 2), (3, 3)]
    assert [x.regularised.shape[:2] for x in found.zones] == [(1, 3), (3, 3)]
    inverted = found.zones[1].latents[-1]
    close(generated(inverted, found.corrected.noise, euler.turbo_steps(ABAR)), z)


def test_a_corrected_noise_nearly_leads_back() -> None:
    z, noise = normal(0, *SHAPE), normal(1, 4, *SHAPE)
    steps = renoise.turbo_inversion_steps(ABAR, noise, z, 4)
    for i in range(4):
        step = jax.tree.map(lambda x, i=i: x[i], steps)
        goal = step.noise + 0.3 * normal(4, *SHAPE)  # a norm of 5 away
        eps, _ = blind(z, jnp.full(2, step.t), None, TEXT)
        below = euler.down(z, eps, goal, step.high, step.low)
        found = renoise.corrected(blind, z, below, TEXT, step)
        way = np.linalg.norm((found.noise - goal).reshape(2, -1), axis=1)
        if step.low > 0:
            assert (way < renoise.RATE).all()
        else:
            close(found.noise, step.noise)


@pytest.mark.slow
def test_the_documented_edit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a folder of weights to latents, by a tiny model of SDXL's kind."""
    write_sdxl(tmp_path / "sdxl-turbo")
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), re.DOTALL)
    assert code
    space = {"z": normal(0, 1, 8, 8, 4)}
    exec(code[1], space)
    assert space["edit"].shape == (1, 8, 8, 4)
    assert np.isfinite(space["edit"]).all()
