"""The random LPIPS network of the recorded data: made from a seed, since 59 MB are not stored."""

from collections.abc import Iterator

import numpy as np

from ie_jax.models.lpips import DEPTHS, WIDTHS

FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Where VGG16's convolutions stand among torchvision's `features`."""


def upstream_weights(
    seed: int, widths: tuple[int, ...] = WIDTHS
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values, float32, as torchvision and the `lpips` package lay them out."""
    rng = np.random.RandomState(seed)
    outs = [width for width, depth in zip(widths, DEPTHS, strict=True) for _ in range(depth)]
    for index, i, o in zip(FEATURES, [3, *outs[:-1]], outs, strict=True):
        weight = rng.standard_normal((o, i, 3, 3)) * np.sqrt(2 / (9 * i))
        yield f"features.{index}.weight", weight.astype(np.float32)
        yield f"features.{index}.bias", (0.05 + 0.1 * rng.standard_normal(o)).astype(np.float32)
    for layer, c in enumerate(widths):
        lin = rng.uniform(0, 2 / np.sqrt(c), (1, c, 1, 1)).astype(np.float32)
        yield f"lin{layer}.model.1.weight", lin
