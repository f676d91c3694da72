"""Being asked to stop: finish the step, save, go."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

import jax
from jax.experimental import multihost_utils

from ie_jax.cli import beside

T = TypeVar("T")
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Asked(Exception):
    """A long call was not waited for."""


class Stop:
    """Listens for signals while it is open. A second signal acts as it usually does.

    Of several processes each hears its own; for SIGTERM, which schedulers send, JAX's service makes
    them stop after the same step.
    """

    def __init__(self) -> None:
        self.heard: str | None = None
        """The signal's name."""
        self.usual: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self.usual = {number: signal.signal(number, self.hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.usual.items():
            signal.signal(number, handler)

    def hear(self, number: int, _: FrameType | None) -> None:
        """Note a signal."""
        self.heard = signal.Signals(number).name
        self.__exit__()

    def unless_asked(self, function: Callable[[], T]) -> T:
        """What compilation returns, see `beside`.

        Raises:
            Asked: to stop before it ends.
        """
        if not self.usual and self.heard is None:  # of several processes none goes ahead
            return function()
        future = beside(function, lambda: self.heard is not None)
        if not future.done():
            raise Asked
        return future.result()

    def asked(self, step: int) -> bool:
        """Whether to stop after this step; the same on all processes."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.heard = signal.SIGTERM.name
        return self.heard is not None
