"""Programs as forks of a process that has imported everything already: they start in a blink.

A test that needs a process of its own - another number of devices, a kill, a full disk - starts one
here. JAX itself starts in the fork, so that what `environment` says of devices holds there.
"""

import contextlib
import multiprocessing
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "ie_jax.training.command",
        "ie_jax.editing.command",
        "tests.training.regression",
        "transformers.models.clip.tokenization_clip",  # programs import it when they read text
        "grain",
    ]
)


def devices(count: int) -> dict[str, str]:
    """The environment of a program that has so many devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    return {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}".strip()}


def free_address() -> str:
    """Where processes find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Fork:
    """A running program."""

    def __init__(
        self,
        main: Callable[[Sequence[str]], None],
        argv: Sequence[Any],
        output: Path,
        environment: Mapping[str, str] | None = None,
        file_limit: int | None = None,
    ) -> None:
        """Start it.

        Args:
            main: of a module, called with `argv` as texts.
            output: file that takes what it prints; what it prints of errors is beside, `.errors`.
            environment: variables for it alone.
            file_limit: bytes of the largest file that it may write.
        """
        self.output, self.errors = output, Path(f"{output}.errors")
        texts = [str(word) for word in argv]
        arguments = (main, texts, output, self.errors, dict(environment or {}), file_limit)
        self.process = CONTEXT.Process(target=start, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self.process.pid
        return self.process.pid

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float = 120) -> tuple[int | None, str, str]:
        """Exit status, and what it printed and told of errors."""
        self.process.join(timeout)
        return self.poll(), self.output.read_text(), self.errors.read_text()


def start(
    main: Callable[[Sequence[str]], None],
    argv: Sequence[str],
    output: Path,
    errors: Path,
    environment: Mapping[str, str],
    file_limit: int | None,
) -> None:
    """What a fork does."""
    for number, path in ((1, output), (2, errors)):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(environment)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        # Else a slow compilation would leave a cut program for all later tests.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    with contextlib.suppress(OSError):
        os.setsid()  # so that a signal for the tests is not for it
    sys.argv = [main.__module__, *argv]
    main(argv)
