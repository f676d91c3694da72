"""What the parity tests share: the upstream networks with random weights, and comparison."""

import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
import pytest

from ie_jax.models.architecture import unet_config
from ie_jax.models.execution import Precision
from ie_jax.models.unet import UNet
from tests.conftest import optimisation

REASON = "parity tests compare with it: pip install 'ie_jax[dev]'"
torch: Any = pytest.importorskip("torch", reason=REASON)
diffusers: Any = pytest.importorskip("diffusers", reason=REASON)
transformers: Any = pytest.importorskip("transformers", reason=REASON)
peft: Any = pytest.importorskip("peft", reason=REASON)


CROSS, PLAIN = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), ("DownBlock2D", "UpBlock2D")


def blocks(*kinds: tuple[str, str]) -> dict[str, list[str]]:
    """Down blocks of these kinds and up blocks that mirror them."""
    return {
        "down_block_types": [down for down, _ in kinds],
        "up_block_types": [up for _, up in reversed(kinds)],
    }


UNETS: dict[str, dict[str, Any]] = {
    "sd15 in small": {
        **blocks(CROSS, CROSS, CROSS, PLAIN),
        "block_out_channels": [16, 32, 32, 32],
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "norm_num_groups": 4,
        "sample_size": 16,
        "time_cond_proj_dim": 512,
    },
    "shallow": {
        **blocks(CROSS, CROSS),
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "time_cond_proj_dim": 64,
    },
    "heads per width, no guidance": {
        **blocks(CROSS, PLAIN, CROSS),
        "block_out_channels": [16, 48, 64],
        "layers_per_block": 1,
        "attention_head_dim": [2, 3, 8],
        "cross_attention_dim": 40,
        "norm_num_groups": 16,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
    "sdxl in small": {
        **blocks(PLAIN, CROSS),
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "attention_head_dim": [2, 4],
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
        "cross_attention_dim": 24,
        "norm_num_groups": 8,
        "time_cond_proj_dim": 64,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 68,
    },
}


def as_users_have_it(name: str) -> AbstractContextManager[None]:
    """XLA optimises the published architecture; others show the same code with other settings."""
    return optimisation() if name == "sd15 in small" else nullcontext()


SHALLOW = UNETS["shallow"]
T, W = np.asarray([999, 259], np.int32), np.asarray([0, 11], np.float32)


@functools.partial(jax.jit, static_argnames="precision")
def shallow(variables: Any, precision: Precision = Precision()) -> jax.Array:
    """eps of the shallow network on `INPUTS`: one program for whoever compares with it."""
    eps: jax.Array = UNet(unet_config(SHALLOW), precision).apply(variables, *INPUTS)[0]
    return eps


def relative(found: Any, expected: Any) -> float:
    """The relative L2 error."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    e = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    print("REL", e)
    return e


def randomised(module: Any, seed: int = 0) -> Any:
    """Norms and biases too get random values: as initialised, they would hide an exchange."""
    generator = torch.Generator().manual_seed(seed)
    for x in module.requires_grad_(False).parameters():
        if x.ndim == 1:
            x += 0.1 * torch.randn(x.shape, generator=generator)
    return module.eval()


def arrays(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """A state dict as numpy arrays, sharing memory."""
    return {name: x.detach().numpy() for name, x in state.items()}


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


INPUTS = (normal(1, 2, 8, 8, 4), T, W, normal(2, 2, 5, SHALLOW["cross_attention_dim"]))


def nchw(x: np.ndarray) -> Any:
    """An image batch as torch lays it out."""
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x: Any) -> np.ndarray:
    """An image batch from torch as JAX lays it out."""
    return np.asarray(x.detach().numpy().transpose(0, 2, 3, 1))


def guidance(w: np.ndarray, features: int) -> Any:
    """diffusers' embedding of the guidance scale."""
    embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
    return embed(None, torch.from_numpy(w), embedding_dim=features)


def upstream_shallow(model: Any) -> np.ndarray:
    """eps of diffusers' network on `INPUTS`."""
    z, t, w, context = INPUTS
    with torch.no_grad():
        eps = model(
            nchw(z),
            torch.from_numpy(t),
            torch.from_numpy(context),
            timestep_cond=guidance(w, SHALLOW["time_cond_proj_dim"]),
        )
    return nhwc(eps.sample)
