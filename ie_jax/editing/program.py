"""Functions that are compiled once for each shape of their arguments, and say so."""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

from ie_jax.cli import beside
from ie_jax.errors import UserError

Announce = Callable[[str], AbstractContextManager[None]]
"""Opened around what takes its time, with its name."""


def silent(_: str) -> AbstractContextManager[None]:
    """Announce nothing."""
    return nullcontext()


class Program:
    """A function compiled once per shapes of its arguments, announcing when it compiles or runs.
    Threads may share it."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        announce: Announce,
        compiler_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.announce = name, announce
        self.jitted = jax.jit(function, compiler_options=dict(compiler_options or {}))
        self.compiled: dict[Any, Any] = {}
        self.compiling = threading.Lock()

    def prepare(self, *args: Any) -> Callable[..., Any]:
        """The program for arguments of these shapes, compiled if it is not yet."""
        leaves, structure = jax.tree.flatten(args)
        key = structure, tuple((x.shape, x.dtype) for x in leaves)
        if key not in self.compiled:
            with self.announce(f"compile {self.name}"), self.compiling:
                if key not in self.compiled:  # by another thread, meanwhile
                    self.compiled[key] = beside(self.jitted.lower(*args).compile).result()
        program: Callable[..., Any] = self.compiled[key]
        return program

    def __call__(self, *args: Any) -> Any:
        try:
            program = self.prepare(*args)
            with self.announce(self.name):
                return jax.block_until_ready(program(*args))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(
                f"{self.name}: out of memory: take a smaller --size, fewer edits at once, "
                "--lora low_rank, or bfloat16 (--precision.param, --precision.compute)"
            ) from error
