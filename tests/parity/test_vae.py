from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from ie_jax.errors import UserError
from ie_jax.models.architecture import VAEConfig, vae_config
from ie_jax.models.shapes import vae_shapes
from ie_jax.models.vae import VAE
from ie_jax.weights.convert import convert
from ie_jax.weights.names import VAE as NAMES
from tests.parity.oracle import (
    arrays,
    as_users_have_it,
    diffusers,
    nchw,
    nhwc,
    normal,
    randomised,
    relative,
    torch,
)


def levels(*widths: int) -> dict[str, Any]:
    """The blocks of these widths."""
    return {
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "sd15 in small": {**levels(16, 16, 32, 32), "layers_per_block": 2, "norm_num_groups": 8},
    "shallow": {**levels(8, 24), "layers_per_block": 1, "norm_num_groups": 4, "latent_channels": 3},
}
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


class Case(NamedTuple):
    """An autoencoder of diffusers, and its converted weights."""

    upstream: Any
    config: VAEConfig
    params: dict[str, Any]


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    upstream = randomised(diffusers.AutoencoderKL.from_config(CONFIGS[request.param]))
    config = vae_config(CONFIGS[request.param])
    params = convert(arrays(upstream.state_dict()), NAMES, vae_shapes(config), "upstream")
    with as_users_have_it(request.param):
        yield Case(upstream, config, params)


def test_moments(case: Case) -> None:
    x = np.tanh(normal(1, 2, 32, 48, 3))
    with torch.no_grad():
        expected = case.upstream.encode(nchw(x)).latent_dist
    moments = jax.jit(lambda p, x: VAE(case.config).apply({"params": p}, x, method="moments"))
    mean, std = moments(case.params, x)
    assert relative(mean, nhwc(expected.mean)) <= 1e-5
    assert relative(std, nhwc(expected.std)) <= 1e-5


def test_decode(case: Case) -> None:
    z = normal(2, 2, 4, 6, case.config.latent_channels)
    with torch.no_grad():
        expected = case.upstream.decode(nchw(z) / case.config.scaling_factor).sample
    decode = jax.jit(lambda p, z: VAE(case.config).apply({"params": p}, z, method="decode"))
    assert relative(decode(case.params, z), nhwc(expected)) <= 1e-5


@pytest.mark.parametrize("as_convolutions", [False, True])
def test_old_attention_names(case: Case, as_convolutions: bool) -> None:
    """The published file's names; the oldest files have 1 x 1 convolutions there."""
    old = {}
    for name, x in arrays(case.upstream.state_dict()).items():
        for new_part, old_part in OLD_NAMES.items():
            if f".attentions.0.{new_part}." in name:
                name = name.replace(new_part, old_part)
                x = x[..., None, None] if as_convolutions and x.ndim == 2 else x
        old[name] = x
    assert old.keys() != case.upstream.state_dict().keys()
    shapes = vae_shapes(case.config)
    jax.tree.map(np.testing.assert_array_equal, convert(old, NAMES, shapes, "old"), case.params)


def test_old_and_new_names_together_are_refused(case: Case) -> None:
    state = arrays(case.upstream.state_dict())
    name = "encoder.mid_block.attentions.0.{}.weight"
    state[name.format("query")] = state[name.format("to_q")]
    with pytest.raises(UserError, match="a second time"):
        convert(state, NAMES, vae_shapes(case.config), "both")
