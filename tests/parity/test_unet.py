from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.models.architecture import UNetConfig, unet_config
from ie_jax.models.attention import probabilities
from ie_jax.models.shapes import unet_shapes
from ie_jax.models.unet import AnyContext, Conditions, Out, UNet
from ie_jax.weights.convert import convert
from ie_jax.weights.names import UNET
from tests.parity.oracle import (
    UNETS,
    arrays,
    as_users_have_it,
    diffusers,
    guidance,
    nchw,
    nhwc,
    normal,
    randomised,
    relative,
    torch,
)


class Recorder:
    """A processor of self-attention that also computes its maps, (b, heads, tokens, tokens)."""

    def __init__(self, processor: Any, maps: list[Any]) -> None:
        self.processor, self.maps = processor, maps

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        q, k = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k)
        )
        self.maps.append(torch.softmax(q @ k.mT / q.shape[-1] ** 0.5, -1))
        return self.processor(attn, hidden_states, *args, **kwargs)


class Run(NamedTuple):
    """One call of both implementations."""

    expected: np.ndarray
    expected_maps: list[np.ndarray]
    expected_features: np.ndarray
    eps: jax.Array
    out: Out


def compare(upstream: Any, config: UNetConfig, latent: tuple[int, int], w: list[float]) -> Run:
    """Both networks on the same random inputs, one image per value of w."""
    b = len(w)
    z = normal(1, b, *latent, config.in_channels)
    t = np.linspace(999, 19, b).astype(np.int32)
    text = normal(2, b, 7, config.cross_attention_dim)
    context: AnyContext = jnp.asarray(text)
    told: dict[str, Any] = {}
    if config.size_features:
        pooled = normal(3, b, config.pooled_features)
        sizes = np.array([[64, 96, 0, 8, 64, 64]] * b, np.float32)
        context = Conditions(*map(jnp.asarray, (text, pooled, sizes)))
        told = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(sizes)}
    scale = np.asarray(w, np.float32)

    maps: list[Any] = []
    features: list[Any] = []
    for name, module in upstream.named_modules():
        if name.endswith("attn1"):
            module.set_processor(Recorder(module.processor, maps))
        if name == "up_blocks.1.resnets.1":
            module.register_forward_hook(lambda *args: features.append(args[-1]))
    width = config.time_cond_proj_dim
    with torch.no_grad():
        expected = upstream(
            nchw(z),
            torch.from_numpy(t),
            torch.from_numpy(text),
            timestep_cond=guidance(scale, width) if width else None,
            added_cond_kwargs=told,
        ).sample

    params = convert(arrays(upstream.state_dict()), UNET, unet_shapes(config), "upstream")
    network = UNet(config, collect=("maps", "queries_keys", "features"))
    eps, out = jax.jit(network.apply)({"params": params}, z, t, scale, context)
    return Run(nhwc(expected), [x.numpy() for x in maps], nhwc(*features), eps, out)


@pytest.fixture(scope="module", params=UNETS)
def run(request: pytest.FixtureRequest) -> Run:
    config = UNETS[request.param]
    upstream = randomised(diffusers.UNet2DConditionModel.from_config(config))
    latent = (16, 16) if "sample_size" in config else (8, 24)
    with as_users_have_it(request.param):
        return compare(upstream, unet_config(config), latent, [7.0, 0.0])


@pytest.mark.long("each network is compiled, the published one with optimisation")
def test_noise_prediction(run: Run) -> None:
    assert relative(run.eps, run.expected) <= 1e-5


def test_features(run: Run) -> None:
    assert relative(run.out["features"]["up"], run.expected_features) <= 1e-5


def test_self_attention_maps(run: Run) -> None:
    """Upstream's are recorded as they are computed: down, middle, up."""
    maps, queries_keys = run.out["maps"], run.out["queries_keys"]
    assert len(maps) == len(queries_keys) == len(run.expected_maps)
    for expected, found, (q, k) in zip(run.expected_maps, maps, queries_keys, strict=True):
        assert relative(found, expected) <= 1e-5
        assert relative(probabilities(q, k), expected) <= 1e-5
