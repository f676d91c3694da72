"""Inverse-and-Edit in JAX: edit a real image from text in eight network calls."""

__version__ = "0.1.0"
