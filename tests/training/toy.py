"""A stage of a few numbers: linear regression with two losses, one update each."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ie_jax.training.stage import Stage

WEIGHTS = {"w": np.zeros((3, 2), np.float32)}
FROZEN = {"scale": np.float32(2.0)}


def prepare(frozen: Any, batch: Mapping[str, Any], keys: Any) -> Any:
    """x with noise of its own for every item."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return {"x": frozen["scale"] * batch["x"] + 0.1 * noise, "y": batch["y"]}


def fit(params: Any, frozen: Any, example: Any) -> Any:
    """Mean squared error."""
    error = example["x"] @ params["w"] - example["y"]
    return jnp.mean(error**2), {"error": jnp.abs(error).mean()}


def shrink(params: Any, frozen: Any, example: Any) -> Any:
    """Keep outputs small."""
    return 0.1 * jnp.mean((example["x"] @ params["w"]) ** 2), {}


def optimiser() -> optax.GradientTransformation:
    """The kind that fine-tuning uses."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2, weight_decay=0.0))


def stage(ema: float | None = None) -> Stage:
    """The stage."""
    return Stage(prepare, {"fit": fit, "shrink": shrink}, optimiser(), ema=ema)


def batch(n: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3)).astype(np.float32)
    return {"x": x, "y": (x @ rng.standard_normal((3, 2))).astype(np.float32)}
