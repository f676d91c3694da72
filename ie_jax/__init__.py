"""Inverse-and-Edit in JAX: edit a real image from text in eight network calls."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ie_jax.editing.config import EditConfig as EditConfig
    from ie_jax.editing.editor import Editor as Editor

# XLA advises users whose programs compile for long to file a bug. What ends a program comes as an
# exception; set the variable to 0 to see all messages of the compiler. It is read once, with JAX.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On first use only: the parts can be imported without the whole.
    if name == "Editor":
        from ie_jax.editing.editor import Editor

        return Editor
    if name == "EditConfig":
        from ie_jax.editing.config import EditConfig

        return EditConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
