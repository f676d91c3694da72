"""What a run tells of itself: metrics.jsonl, TensorBoard, pictures, a progress bar, its speed."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ie_jax.data.panels import side_by_side
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole

METRICS = "metrics.jsonl"
PICTURES = "pictures"
EVENTS = "tensorboard"
START = "start.npz"
Pictures = Mapping[str, np.ndarray]
"""uint8 (items, height, width, 3) by name."""


class Journal:
    """The files of a run in its folder. Only one process keeps one."""

    def __init__(self, folder: Path, step: int, steps: int, quiet: bool = False) -> None:
        """Go on after `step`: what the files say of later ones is dropped.

        Raises:
            UserError: the folder cannot be written.
        """
        self.folder = folder
        with writing(folder):
            (folder / PICTURES).mkdir(parents=True, exist_ok=True)
            keep_until(folder / METRICS, step)
            self.metrics = (folder / METRICS).open("a", encoding="utf-8")
            self.events = summary_writer()(str(folder / EVENTS), purge_step=step + 1)
        self.quiet = quiet
        # Where there is no terminal, a line per logged step takes the bar's place.
        self.bar = tqdm(
            total=steps, initial=step, unit="step", disable=True if quiet else None, leave=True
        )

    def advance(self) -> None:
        """One more step is done."""
        self.bar.update()

    def scalars(self, step: int, values: Mapping[str, float], speed: Mapping[str, float]) -> None:
        """One line of metrics and speed; the former also on the progress bar."""
        with writing(self.folder):
            self.metrics.write(json.dumps({"step": step, **values, **speed}) + "\n")
            self.metrics.flush()
            for name, value in {**values, **speed}.items():
                self.events.add_scalar(name, value, step)
        shown = {key: f"{x:.3g}" for key, x in {**values, **speed}.items() if is_shown(key)}
        if self.quiet:
            return
        if self.bar.disable:
            told = ", ".join(f"{key} {x}" for key, x in shown.items())
            print(f"step {step}: {told}", file=sys.stderr, flush=True)
        else:
            self.bar.set_postfix(shown)

    def pictures(self, step: int, pictures: Pictures) -> None:
        """A grid: a row per item; a column per name, and one for what each was at the start."""
        with writing(self.folder):
            start = self.start(pictures)
            changed = {
                f"{name} at the start": first
                for name, first in start.items()
                if name in pictures and not np.array_equal(first, pictures[name])
            }
            columns = {**pictures, **changed}.items()
            sheet = side_by_side([(name, np.concatenate(list(items))) for name, items in columns])
            with appearing_whole(self.folder / PICTURES / f"{step:08}.png") as file:
                Image.fromarray(sheet).save(file, format="PNG")
            self.events.add_image("/".join([*pictures, *changed]), sheet, step, dataformats="HWC")

    def start(self, pictures: Pictures) -> Pictures:
        """The pictures of the first validation, which these become if there was none."""
        path = self.folder / PICTURES / START
        if not path.exists():
            with appearing_whole(path) as file:
                np.savez(file, **pictures)  # type: ignore[arg-type]
        try:
            with np.load(path, allow_pickle=False) as saved:
                return {name: saved[name] for name in saved.files}
        except Exception:  # damaged in whatever way: only the comparison is lost
            return {}

    def flush(self) -> None:
        """Everything said so far is in the files, before a checkpoint stands on it."""
        with writing(self.folder):
            self.metrics.flush()
            os.fsync(self.metrics.fileno())
            self.events.flush()

    def close(self) -> None:
        """Close the files. What matters was flushed before."""
        self.bar.close()
        for file in (self.metrics, self.events):
            with suppress(OSError):
                file.close()


def summary_writer() -> Any:
    """The class of tensorboardX. Where torch is installed it would be imported too, for data that
    is not written here: two seconds of every start."""
    if "torch" in sys.modules:
        from tensorboardX import SummaryWriter
    else:
        sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            from tensorboardX import SummaryWriter
        finally:
            del sys.modules["torch"]
    return SummaryWriter


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Errors of writing as one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from error


def is_shown(name: str) -> bool:
    """Whether a number has a place on the progress bar: losses and speed."""
    return name.endswith("/loss") or name.startswith(("speed/", "validation/"))


def keep_until(path: Path, step: int) -> None:
    """Drop the lines of later steps, and a torn one, from a file of metrics."""
    if not path.exists():
        return
    kept = [line for line in path.read_bytes().split(b"\n") if step_of(line) <= step]
    with appearing_whole(path) as file:
        file.writelines(line + b"\n" for line in kept)


def step_of(line: bytes) -> float:
    """The step of a line of metrics; infinity where it cannot be read."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class Meter:
    """Speed since the last report."""

    def __init__(self, images: int, operations: int, peak: float | None) -> None:
        """Args:
        images: per step, on all devices.
        operations: of a step on one device.
        peak: of one device, operations per second.
        """
        self.images, self.operations, self.peak = images, operations, peak
        self.begin()

    def begin(self) -> None:
        """Measure from now on."""
        self.since, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent on waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that does not count."""
        start = time.perf_counter()
        yield
        self.since += time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """Images per second, share of the time spent on waiting for data, share of peak."""
        seconds = time.perf_counter() - self.since
        result: dict[str, Any] = {
            "speed/images_per_second": self.images * self.steps / seconds,
            "speed/share_waiting": self.waited / seconds,
        }
        if self.peak:
            result["speed/share_of_peak"] = self.operations * self.steps / seconds / self.peak
        self.begin()
        return result
