"""How a command starts and ends: bad input is one line and status 2."""

import errno
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any, NoReturn, TextIO, TypeVar

import jax

from ie_jax.errors import UserError


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command and exit: 0, or 2 with one line on standard error for bad input."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print_line("warning", str(message), sys.stderr)

    warnings.showwarning = show
    # Closed by whoever started this: nobody reads them.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter shows its number
            stream.reconfigure(errors="backslashreplace")
    # Numbers of 64 bits, which the environment may ask for, would make other pictures of a seed.
    jax.config.update("jax_enable_x64", False)
    # Of transformers only the tokenizer is used; it would advise to install torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        main(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print_line("error", str(error), sys.stderr)
        leave(2)
    except KeyboardInterrupt:
        print_line("error", "interrupted", sys.stderr)
        leave(130)
    except BrokenPipeError:  # what read standard output has ended
        leave(0)
    except MemoryError as error:
        print_line("error", f"out of memory: {str(error) or 'take smaller sizes'}", sys.stderr)
        leave(2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            print_line("error", f"cannot write: {error.strerror}", sys.stderr)
            leave(2)
        if problem := missing_platform():
            print_line("error", problem, sys.stderr)
            leave(2)
        raise
    leave(0)


ABANDONED = "abandoned"
"""Name of a thread that is not waited for at the end."""
T = TypeVar("T")


def beside(function: Callable[[], T], given_up: Callable[[], bool] = lambda: False) -> Future[T]:
    """A long call into C++, made in a thread of its own so that Python hears signals meanwhile.

    Args:
        given_up: whether to wait no longer. The call then goes on, for nothing, as after Ctrl-C.

    Returns:
        the call: done, unless it was given up.
    """
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name=ABANDONED, daemon=True).start()
    while not (future.done() or given_up()):
        wait([future], timeout=0.1)
    return future


def leave(status: int) -> NoReturn:
    """Exit; at once if a thread would keep C++ at work."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # closed by whoever read it, or a full disk
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            status = status if isinstance(error, BrokenPipeError) else status or 1
    if any(thread.name == ABANDONED for thread in threading.enumerate()):
        os._exit(status)
    sys.exit(status)


def missing_platform() -> str | None:
    """What is wrong with the platform that the environment asks JAX for, if anything is."""
    wanted = os.environ.get("JAX_PLATFORMS")
    try:
        jax.devices()
    except Exception as error:  # RuntimeError at the first use, others later
        if wanted:
            return (
                f"JAX_PLATFORMS={wanted} asks for a platform that is not here: unset it, or set it "
                f"to cpu ({error or type(error).__name__})"
            )
    return None


def print_line(kind: str, message: str, file: TextIO) -> None:
    """One line, whatever the message holds."""
    print(f"{kind}: {' '.join(message.split())}", file=file, flush=True)
