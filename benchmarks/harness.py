"""What all benchmarks share: processes, clocks, the machine, tables and records."""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ie_jax import __version__
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole

ENOUGH_SECONDS = 2.0
"""Of warm runs for a median; at least three runs."""
MOST_RUNS = 20
MATRIX, MATRIX_CPU = 8192, 4096  # sides of the product that tells the peak, on a CPU smaller

# --- Processes ------------------------------------------------------------------------------------

here: Any = None
"""The program of this process, or why there is none."""


class Failed(Exception):
    """A program's error, in words that cross processes."""


def guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call it.

    Raises:
        Failed: for any error but a user's.
    """
    try:
        return function(*arguments)
    except (Failed, UserError):
        raise
    except Exception as error:
        raise Failed(" ".join(f"{type(error).__name__}: {error}".split())[:600]) from error


def load(make: Callable[..., Any], arguments: Sequence[Any]) -> float:
    """Make this process's program; seconds that it took."""
    global here
    begin = time.perf_counter()
    try:
        here = guarded(make, *arguments)
    except Exception as error:
        here = error
        raise
    return time.perf_counter() - begin


def call(method: str, *arguments: Any) -> Any:
    """A method of the program."""
    if isinstance(here, Exception):
        raise here
    return guarded(getattr(here, method), *arguments)


def confine(threads: int | None) -> None:
    """Keep this process to some of the cores."""
    if threads:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Worker:
    """A program in a fresh process. It loads at once; answers are awaited."""

    def __init__(
        self, make: Callable[..., Any], *arguments: Any, threads: int | None = None
    ) -> None:
        self.began = time.perf_counter()
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=confine, initargs=(threads,))
        self.loaded: Future[float] = self.pool.submit(load, make, arguments)

    def ask(self, method: str, *arguments: Any) -> "Future[Any]":
        """Call a method after all that was asked before."""
        return self.pool.submit(call, method, *arguments)

    def tell(self, method: str, *arguments: Any) -> Any:
        """The answer."""
        return self.ask(method, *arguments).result()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, error: object, *_: object) -> None:
        self.pool.shutdown(wait=error is None, cancel_futures=True)


def aside(function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
    """Call a function in a process that ends with it."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    answer = pool.submit(guarded, function, *arguments)
    pool.shutdown(wait=False)
    return answer


def prepare(cache: Path | str | None = None, threads: int | None = None, bind: bool = True) -> None:
    """Settings that the programs' processes inherit, and read as their libraries load.

    Args:
        cache: a folder for compiled programs.
        bind: PyTorch's threads to a core each; left to themselves, they share one at times.
    """
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # leaves memory to the other programs
    if bind:
        os.environ["OMP_PROC_BIND"] = "true"
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if cache is not None:
        cache = Path(cache).absolute()
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "torch"),
        }


# --- Clocks and the machine -----------------------------------------------------------------------


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds until the result is there, and the result."""
    begin = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin, result


def repeated(function: Callable[..., Any], *arguments: Any) -> list[float]:
    """Seconds of each of some warm runs."""
    function(*arguments)
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < ENOUGH_SECONDS and len(seconds) < MOST_RUNS):
        seconds.append(timed(function, *arguments)[0])
    return seconds


def compiled(lowered: Any) -> tuple[Any, dict[str, Any]]:
    """A program; the seconds of its compilation, and bytes beside arguments and results."""
    begin = time.perf_counter()
    program = lowered.compile()
    seconds, memory = time.perf_counter() - begin, program.memory_analysis()
    return program, {
        "compile": seconds,
        "temporaries": memory.temp_size_in_bytes if memory else None,
    }


def traced(folder: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a call, and in the folder a trace of it."""
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(str(folder)):
        return jax.block_until_ready(function(*arguments))


def resident_peak() -> int:
    """The most memory of this process, bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory() -> int:
    """Bytes that were in use at once: of the device, or of this process on a CPU."""
    facts = jax.devices()[0].memory_stats() or {}
    return int(facts.get("peak_bytes_in_use", resident_peak()))


def matrix_rate() -> float:
    """FLOP/s of a large product, the best of several: in bfloat16, on a CPU in float32."""
    cpu = jax.default_backend() == "cpu"
    side, dtype = (MATRIX_CPU, jnp.float32) if cpu else (MATRIX, jnp.bfloat16)
    # Random: some chips multiply zeros and ones faster.
    x = jax.random.normal(jax.random.key(0), (side, side), dtype)
    product = jax.jit(lambda x: x @ x).lower(x).compile()
    return 2 * side**3 / min(timed(product, x)[0] for _ in range(5 if cpu else 20))


def device_here() -> dict[str, str]:
    """The device of this process."""
    device = jax.devices()[0]
    return {"platform": device.platform, "kind": device.device_kind}


def leave_accelerator() -> dict[str, str]:
    """The device that JAX would run on, which this process leaves to the programs."""
    facts: dict[str, str] = aside(device_here).result()
    jax.config.update("jax_platforms", "cpu")
    return facts


def versions() -> dict[str, str]:
    """Of what is measured, as far as installed."""
    found = {"ie_jax": __version__}
    for name in ("jax", "jaxlib", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


# --- Tables and records ---------------------------------------------------------------------------


def row(cells: Iterable[Any]) -> str:
    """A line of a Markdown table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def table(header: Sequence[str], rows: Iterable[Iterable[Any]] = ()) -> Iterator[str]:
    """Markdown."""
    yield row(header)
    yield row(["---"] * len(header))
    yield from map(row, rows)


def shown(value: float | None, scale: float = 1.0) -> str:
    """Three digits; - where it is not known."""
    return "-" if value is None else f"{value * scale:.3g}"


def say(line: str) -> None:
    """A line at once, for a run may end any time."""
    print(line, flush=True)


def new_record(options: argparse.Namespace, device: Mapping[str, str]) -> dict[str, Any]:
    """What every output begins with."""
    return {
        "options": {key: str(value) for key, value in vars(options).items()},
        "device": device,
        "versions": versions(),
        "xla flags": os.environ.get("XLA_FLAGS", ""),
    }


def write_record(record: Mapping[str, Any], output: Path | None) -> None:
    """All figures as JSON, where wanted."""
    if output:
        with appearing_whole(output) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())


def positive(options: argparse.Namespace, *names: str) -> argparse.Namespace:
    """The options.

    Raises:
        UserError: one of these is given and not positive.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name.replace('_', '-')} {value} must be positive")
    return options
