"""The check of annotated shapes and types that tests make of each call (see conftest.py)."""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype

# An int may stand for a float.
CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, checked. A constructor is left alone, for JAX makes trees of shapes, places and
    None with those of arrays."""
    return function if function.__name__ == "__init__" else CHECK(function)
