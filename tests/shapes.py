"""The check of annotated shapes and types that tests make of each call (see conftest.py)."""

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = (
    *("ie_jax.diffusion", "ie_jax.editing.by_method", "ie_jax.methods", "ie_jax.models"),
    "ie_jax.training.losses",
)
CHECKING = ("tests/diffusion/", "tests/methods/", "tests/models/", "test_losses", "test_shapes")
"""What stands in the paths of tests that check."""
CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked. A constructor is left alone, for JAX makes trees of shapes, places and
    None with those of arrays."""
    return function if function.__name__ == "__init__" else CHECK(function)


def check_shapes() -> None:
    """From now on modules are imported with functions that can be checked, see `switch_checks`. As
    for JAX itself, an array of NumPy may stand for one of JAX."""
    import jax
    import numpy as np

    setattr(jaxtyping, "Array", jax.Array | np.ndarray)  # noqa: B010
    jaxtyping.install_import_hook(CHECKED, f"{__name__}.{checked.__name__}")
    switch_checks(False)


def switch_checks(on: bool) -> None:
    """Check calls from now on, or not."""
    jaxtyping.config.update("jaxtyping_disable", not on)
