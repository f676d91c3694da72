"""Long work shows itself: what is going on and for how long, on standard error."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

WAIT = " (seconds for a small model, minutes for one of SD1.5's size)"
"""How long a compilation is to be expected."""


class Stages:
    """Named stages of a command: a line each, with a running clock on a terminal; elsewhere a line
    when a stage begins and one when it has ended."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.seconds: dict[str, float] = {}
        """How long each stage took, all its times together."""

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time a stage, and show it."""
        start = time.perf_counter()
        done = threading.Event()
        clock = threading.Thread(target=self.show, args=(name, start, done), daemon=True)
        live = not self.quiet and sys.stderr.isatty()
        if live:
            clock.start()
        elif not self.quiet:
            wait = WAIT if name.startswith("compile") else ""
            print(f"{name}{wait} ...", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            done.set()
            if live:
                clock.join()
            taken = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            if not self.quiet:
                end = "\r" if live else ""
                print(f"{end}{name}: {taken:.1f} s", file=sys.stderr, flush=True)

    def before_the_bar(self, name: str) -> AbstractContextManager[None]:
        """A stage, where it comes before a bar of progress: loading or compiling."""
        return self(name) if name.startswith(("load", "compile")) else nullcontext()

    def show(self, name: str, start: float, done: threading.Event) -> None:
        """The running clock."""
        while not done.wait(0.2):
            elapsed = time.perf_counter() - start
            print(f"\r{name}: {elapsed:.0f} s", end="", file=sys.stderr, flush=True)
