"""DDIM inversion and generation."""

import jax.numpy as jnp
import numpy as np

from ie_jax.diffusion.ddim import ddim, ddim_inversion
from ie_jax.diffusion.schedule import cumulative_alphas
from ie_jax.models.networks import Latents

ABAR = cumulative_alphas()


def test_generation_undoes_inversion_where_the_prediction_is_one() -> None:
    """A prediction that does not depend on the latent, only on the timestep."""
    rng = np.random.default_rng(0)
    z, direction = rng.standard_normal((2, 2, 4, 4, 3)).astype(np.float32)

    def eps(z: Latents, t: jnp.ndarray, w: jnp.ndarray) -> Latents:
        assert w.shape == t.shape == (2,)
        return jnp.sin(t / 300.0)[:, None, None, None] * direction

    noise = ddim_inversion(eps, z, jnp.asarray(ABAR))
    back = ddim(eps, noise, jnp.asarray(ABAR), jnp.zeros(2))
    assert float(jnp.abs(noise - z).max()) > 0.1
    # abar ends at 0.0047: what float32 loses near the noise grows 15-fold on the way back.
    np.testing.assert_allclose(back, z, atol=1e-4)


def test_inversion_visits_the_grid() -> None:
    """The exact noise of a known picture, predicted at every level, gives that noise's latent."""
    rng = np.random.default_rng(1)
    clean, noise = rng.standard_normal((2, 1, 4, 4, 3)).astype(np.float32)
    found = ddim_inversion(lambda z, t, w: jnp.asarray(noise), clean, jnp.asarray(ABAR), 10)
    expected = np.sqrt(ABAR[999]) * clean + np.sqrt(1 - ABAR[999]) * noise
    np.testing.assert_allclose(found, expected, atol=1e-5)
