"""LPIPS against the same metric written with PyTorch's functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ie_jax.models.lpips import DEPTHS, per_layer
from ie_jax.weights.judges import from_upstream
from tests.lpips_recipe import ALEX, FEATURES, SQUEEZE, other_weights, upstream_weights
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


def alex_maps(x: Any, layer: Any, pool: Any) -> list[Any]:
    """torchvision's AlexNet, after each ReLU."""
    out = []
    for index, stride, padding in zip(ALEX, (4, 1, 1, 1, 1), (2, 2, 1, 1, 1), strict=True):
        x = pool(x, False) if index in (3, 6) else x
        x = layer(f"features.{index}", x, stride, padding)
        out.append(x)
    return out


def squeeze_maps(x: Any, layer: Any, pool: Any) -> list[Any]:
    """torchvision's SqueezeNet 1.1, cut where the lpips package cuts it."""
    x = layer("features.0", x, 2, 0)
    out = [x]
    for index in SQUEEZE:
        x = pool(x, True) if index in (3, 6, 9) else x
        narrow = layer(f"features.{index}.squeeze", x, 1, 0)
        sides = ((f"features.{index}.expand{side}x{side}", side // 2) for side in (1, 3))
        x = torch.cat([layer(name, narrow, 1, padding) for name, padding in sides], 1)
        if index not in (3, 6):
            out.append(x)
    return out


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_terms_of_other_networks(net: str) -> None:
    """Poolings meet an even and an odd side."""
    weights = dict(other_weights(net, 0))
    rng = np.random.default_rng(0)
    x, y = (rng.uniform(-1, 1, (1, 35, 50, 3)).astype(np.float32) for _ in range(2))
    f = torch.nn.functional
    tensors = {name: torch.from_numpy(value).double() for name, value in weights.items()}

    def layer(name: str, x: Any, stride: int, padding: int) -> Any:
        kernel, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return f.relu(f.conv2d(x, kernel, bias, stride, padding))

    def pool(x: Any, ceil: bool) -> Any:
        return f.max_pool2d(x, 3, 2, ceil_mode=ceil)

    def unit(x: Any) -> Any:
        return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    def maps(x: np.ndarray) -> list[Any]:
        shift, scale = (
            torch.tensor(v).double().view(1, 3, 1, 1)
            for v in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450))
        )
        of_net = alex_maps if net == "alex" else squeeze_maps
        return [unit(z) for z in of_net((nchw(x).double() - shift) / scale, layer, pool)]

    expected = torch.stack(
        [
            f.conv2d((a - b).square(), tensors[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
            for i, (a, b) in enumerate(zip(maps(x), maps(y), strict=True))
        ]
    )
    terms = jax.jit(per_layer)(from_upstream(weights, "recipe"), x, y)
    assert relative(terms, expected) <= 2e-6
