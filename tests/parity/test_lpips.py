"""LPIPS against the same metric written with PyTorch's functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.models.lpips import DEPTHS, per_layer
from ie_jax.weights.judges import from_upstream
from tests.lpips_recipe import FEATURES, upstream_weights
from tests.parity.oracle import nchw, nhwc, relative, torch

WIDTHS = (8, 12, 16, 24, 24)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return dict(upstream_weights(0, WIDTHS))


def torch_per_layer(weights: dict[str, np.ndarray], x: Any, y: Any) -> Any:
    """The terms of the layers, (5, b), of images (b, 3, h, w) in [-1, 1]."""
    f = torch.nn.functional
    tensors = {name: torch.from_numpy(value).to(x.dtype) for name, value in weights.items()}
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=x.dtype).view(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225], dtype=x.dtype).view(1, 3, 1, 1)

    def maps(x: Any) -> list[Any]:
        x, indices, out = ((x + 1) / 2 - mean) / deviation, iter(FEATURES), []
        for block, depth in enumerate(DEPTHS):
            x = f.max_pool2d(x, 2) if block else x
            for _ in range(depth):
                name = f"features.{next(indices)}"
                x = f.conv2d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1)
                x = f.relu(x)
            out.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    terms = [
        f.conv2d((a - b).square(), tensors[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
        for i, (a, b) in enumerate(zip(maps(x), maps(y), strict=True))
    ]
    return torch.stack(terms)


@pytest.mark.parametrize("sides", [(32, 32), (50, 37)], ids=["even", "odd sides"])
def test_terms_and_gradient(weights: dict[str, np.ndarray], sides: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-1, 1, (2, *sides, 3)).astype(np.float32) for _ in range(2))
    theirs = nchw(x).double().requires_grad_()
    expected = torch_per_layer(weights, theirs, nchw(y).double())
    expected.sum().backward()

    @jax.jit
    def ours(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def total(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            terms = per_layer(params, x, y)
            return jnp.sum(terms), terms

        return jax.grad(total, has_aux=True)(x)

    gradient, terms = ours(from_upstream(weights, "recipe"), x, y)
    assert relative(terms, expected.detach()) <= 2e-6
    assert relative(gradient, nhwc(theirs.grad)) <= 1e-5
