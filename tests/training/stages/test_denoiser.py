"""Training of the denoiser that goes on from a model."""

import jax
import jax.numpy as jnp
import numpy as np

from ie_jax.models.networks import Networks, denoiser
from ie_jax.training.stages.denoiser import trained
from ie_jax.weights.embedded import folder_of
from ie_jax.weights.folder import read_blueprint, read_parts, unguided


def test_where_only_the_distilled_unet_came_along_it_starts_from_that_at_w_0() -> None:
    folder = folder_of("world")
    arch = read_blueprint(folder).architecture
    plain, unet = trained(folder)["denoiser"], read_parts(folder, ["unet"])["unet"]
    z, c = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate(((1, 4, 4, 8), (1, 3, arch.text.hidden_size)))
    )
    t, w = jnp.array([700]), jnp.zeros(1)
    expected, _ = denoiser(Networks(arch), unet)(z, t, w, c)
    eps, _ = denoiser(Networks(unguided(arch)), plain)(z, t, w, c)
    np.testing.assert_allclose(eps, expected, atol=1e-5)
    assert np.abs(denoiser(Networks(arch), unet)(z, t, w + 3, c)[0] - expected).max() > 1e-2
