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


ALEX = {0: (3, 64, 11), 3: (64, 192, 5), 6: (192, 384, 3), 8: (384, 256, 3), 10: (256, 256, 3)}
"""Place, inputs, outputs and window of AlexNet's convolutions."""
SQUEEZE = {3: (64, 16), 4: (128, 16), 6: (128, 32), 7: (256, 32), 9: (256, 48), 10: (384, 48)}
SQUEEZE |= {11: (384, 64), 12: (512, 64)}
"""Place of SqueezeNet's fire modules, their inputs, and those of their wide layers."""
HEADS = {"alex": (64, 192, 384, 256, 256), "squeeze": (64, 128, 256, 384, 384, 512, 512)}


def backbone(net: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and kernel shapes of the convolutions of `alex` or `squeeze`."""
    if net == "alex":
        for index, (i, o, side) in ALEX.items():
            yield f"features.{index}", (o, i, side, side)
        return
    yield "features.0", (64, 3, 3, 3)
    for index, (i, narrow) in SQUEEZE.items():
        yield f"features.{index}.squeeze", (narrow, i, 1, 1)
        for side in (1, 3):
            shape = (4 * narrow, narrow, side, side)
            yield f"features.{index}.expand{side}x{side}", shape


def other_weights(net: str, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """`upstream_weights` of `alex` or `squeeze`."""
    rng = np.random.RandomState(seed)
    for name, shape in backbone(net):
        weight = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        yield f"{name}.weight", weight.astype(np.float32)
        bias = 0.05 + 0.1 * rng.standard_normal(shape[0])
        yield f"{name}.bias", bias.astype(np.float32)
    for layer, c in enumerate(HEADS[net]):
        lin = rng.uniform(0, 2 / np.sqrt(c), (1, c, 1, 1)).astype(np.float32)
        yield f"lin{layer}.model.1.weight", lin
