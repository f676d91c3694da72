"""Inverse-and-Edit in JAX: edit a real image from text in eight network calls."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ie_jax.editing.config import EditConfig as EditConfig
    from ie_jax.editing.editor import Editor as Editor

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
