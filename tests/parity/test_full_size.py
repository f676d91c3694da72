"""The networks at SD1.5's and SDXL's own sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.random_weights import make_text_encoder, make_unet
from benchmarks.sizes import GUIDANCE_FEATURES, SIZES
from ie_jax.models.architecture import text_config, unet_config, vae_config
from ie_jax.models.shapes import text_encoder_shapes, unet_shapes, vae_shapes
from ie_jax.models.text_encoder import TextEncoder
from ie_jax.models.unet import Conditions, UNet
from ie_jax.models.vae import VAE
from ie_jax.weights.convert import convert
from ie_jax.weights.formats import mapped_tensors
from ie_jax.weights.names import TEXT_ENCODER
from ie_jax.weights.names import UNET as UNET_NAMES
from ie_jax.weights.names import VAE as VAE_NAMES
from tests.parity.oracle import (
    arrays,
    diffusers,
    guidance,
    nchw,
    nhwc,
    normal,
    randomised,
    relative,
    torch,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
BOUND = 2e-5
SDXL_SIZE = SIZES["sdxl"]
save_torch = pytest.importorskip("safetensors.torch").save_file


def apply(f: Callable[..., Any], params: dict[str, Any], *inputs: Any) -> Any:
    """f jitted on weights that exist once: each numpy leaf is dropped as it is handed over."""
    leaves, structure = jax.tree.flatten(params)
    params.clear()
    for i, leaf in enumerate(leaves):
        leaves[i] = jax.device_put(leaf)
    return jax.jit(f)(jax.tree.unflatten(structure, leaves), *inputs)


def upstream_eps(unet: Any, z: Any, t: Any, w: Any, text: Any, **added: Any) -> Any:
    """What diffusers' UNet gives; `added` is SDXL's."""
    with torch.no_grad():
        return unet(
            nchw(z),
            torch.from_numpy(t),
            torch.from_numpy(text),
            timestep_cond=guidance(w, GUIDANCE_FEATURES),
            added_cond_kwargs={name: torch.from_numpy(x) for name, x in added.items()},
        ).sample


def test_unet() -> None:
    upstream = randomised(make_unet(SIZES["sd15"].unet))
    config = unet_config(SIZES["sd15"].unet | {"time_cond_proj_dim": GUIDANCE_FEATURES})
    z, context = normal(1, 1, 32, 32, 4), normal(2, 1, 77, 768)
    t, w = np.asarray([519], np.int32), np.asarray([7], np.float32)
    expected = upstream_eps(upstream, z, t, w, context)
    params = convert(arrays(upstream.state_dict()), UNET_NAMES, unet_shapes(config), "upstream")
    del upstream
    assert sum(x.size for x in jax.tree.leaves(params)) == 859_684_804
    eps = apply(
        lambda p, *inputs: UNet(config).apply({"params": p}, *inputs)[0], params, z, t, w, context
    )
    assert relative(eps, nhwc(expected)) <= BOUND


def test_sdxl_unet(tmp_path: Path) -> None:
    """11 GB of memory and as much on disk: the weights wait there while ours are made."""
    config = unet_config(SDXL_SIZE.unet | {"time_cond_proj_dim": GUIDANCE_FEATURES})
    z, text = normal(1, 1, 32, 32, 4), normal(2, 1, 77, config.cross_attention_dim)
    pooled, sizes = normal(3, 1, config.pooled_features), np.zeros((1, 6), np.float32)
    sizes[:] = 256, 384, 0, 8, 256, 256
    t, w = np.asarray([519], np.int32), np.asarray([7], np.float32)
    upstream = randomised(make_unet(SDXL_SIZE.unet))
    expected = upstream_eps(upstream, z, t, w, text, text_embeds=pooled, time_ids=sizes)
    save_torch(upstream.state_dict(), tmp_path / "unet.safetensors")
    del upstream
    tensors = mapped_tensors(tmp_path / "unet.safetensors")
    params = convert(tensors, UNET_NAMES, unet_shapes(config), "upstream")
    eps = apply(
        lambda p, *inputs: UNet(config).apply({"params": p}, *inputs)[0],
        params,
        *(z, t, w, Conditions(*map(jnp.asarray, (text, pooled, sizes)))),
    )
    assert relative(eps, nhwc(expected)) <= 1e-5


def test_sdxl_has_the_published_number_of_weights() -> None:
    config = unet_config(SDXL_SIZE.unet)
    assert sum(x.size for x in jax.tree.leaves(unet_shapes(config))) == 2_567_463_684


def test_vae() -> None:
    upstream = randomised(diffusers.AutoencoderKL.from_config(SIZES["sd15"].vae))
    config = vae_config(SIZES["sd15"].vae)
    x, z = np.tanh(normal(1, 1, 256, 256, 3)), normal(2, 1, 32, 32, 4)
    with torch.no_grad():
        expected_mean = upstream.encode(nchw(x)).latent_dist.mean
        expected_image = upstream.decode(nchw(z) / config.scaling_factor).sample
    params = convert(arrays(upstream.state_dict()), VAE_NAMES, vae_shapes(config), "upstream")
    del upstream

    def both(params: Any, x: Any, z: Any) -> Any:
        vae = VAE(config)
        mean, _ = vae.apply({"params": params}, x, method="moments")
        return mean, vae.apply({"params": params}, z, method="decode")

    mean, image = apply(both, params, x, z)
    assert relative(mean, nhwc(expected_mean)) <= BOUND
    assert relative(image, nhwc(expected_image)) <= BOUND


@pytest.mark.parametrize("values", [SIZES["sd15"].text, SDXL_SIZE.text_2], ids=["CLIP", "bigG"])
def test_text_encoder(values: dict[str, Any]) -> None:
    upstream = randomised(make_text_encoder(values))
    config = text_config(values)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, 77), np.int32)
    ids[0, 60:] = config.vocab_size - 1  # the end token, the largest
    with torch.no_grad():
        expected = upstream(torch.from_numpy(ids), output_hidden_states=True)
    shapes = text_encoder_shapes(config)
    params = convert(arrays(upstream.state_dict()), TEXT_ENCODER, shapes, "upstream")
    del upstream
    found: Any = apply(lambda p, ids: TextEncoder(config).apply({"params": p}, ids), params, ids)
    assert relative(found.last, expected.last_hidden_state) <= BOUND
    if config.projection_dim:
        assert relative(found.penultimate, expected.hidden_states[-2]) <= 1e-5
        assert relative(found.pooled, expected.text_embeds) <= 1e-5
