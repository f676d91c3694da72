"""Checkpoints on disk: written beside training, checked when read."""

import gc
import json
import logging
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from ie_jax.errors import UserError
from ie_jax.training.stage import State

Facts = dict[str, Any]
"""What JSON holds beside the state."""
VALUE = "value"
DIGEST = "digest"


@contextmanager
def unraisable(known: Callable[[Any], bool]) -> Iterator[None]:
    """Python prints no traceback of errors that nobody waits for, if they are known ones."""
    usual = sys.unraisablehook
    sys.unraisablehook = lambda error: None if known(error) else usual(error)
    try:
        yield
    except Exception:
        gc.collect()
        raise
    finally:
        sys.unraisablehook = usual


@contextmanager
def one_line_of_a_failed_write() -> Iterator[None]:
    """While checkpoints are written: what orbax logs of errors is raised too. Tensors are written
    all at once: when one fails, others that fail later find nobody waiting."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        with unraisable(lambda error: str(error.exc_value) == "Event loop is closed"):
            yield
    finally:
        absl.setLevel(level)


class Checkpoints:
    """The checkpoints of a run: the last few, and the best by validation.

    A checkpoint is a state with its facts, and a digest of both. The state is the same on all
    devices, so a checkpoint may be read on any number of them.
    """

    def __init__(self, folder: Path, keep: int, say: Callable[[str], None]) -> None:
        """Open or make the folder.

        Args:
            keep: the last so many stay.
            say: told one line when a checkpoint cannot be read.

        Raises:
            UserError: the folder cannot be used.
        """
        self.folder, self.say = folder.absolute(), say
        best = policy.BestN(
            get_metric_fn=lambda metrics: metrics[VALUE],
            reverse=True,  # the smallest value is the best
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "facts": ocp.JsonCheckpointHandler(),
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )
        except (OSError, ValueError) as error:
            raise UserError(f"cannot use the checkpoint folder {folder}: {error}") from error

    def save(self, step: int, state: State, facts: Facts, value: float | None = None) -> None:
        """Begin to save; the state is copied first, so that the next step may overwrite it.

        A step that is saved already is left as it is.

        Args:
            value: of the validation, the smaller the better; None: was not validated.

        Raises:
            UserError: this or an earlier checkpoint could not be written.
        """
        if step in self.manager.all_steps():
            return
        state = jax.tree.map(jnp.copy, state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            facts=ocp.args.JsonSave(facts | {DIGEST: digest(state, facts)}),
        )
        with self.clear_errors(step):
            metrics = None if value is None else {VALUE: value}
            self.manager.save(step, args=args, metrics=metrics, force=True)

    def check(self) -> None:
        """Raise UserError if a checkpoint could not be written."""
        with self.clear_errors():
            self.manager.check_for_errors()

    def close(self) -> None:
        """Wait for the last save.

        Raises:
            UserError: it failed.
        """
        with self.clear_errors():
            self.manager.wait_until_finished()
        self.manager.close()

    def abandon(self) -> None:
        """Close whatever happened; nothing if closed already."""
        with suppress(Exception):
            self.manager.close()

    @contextmanager
    def clear_errors(self, step: int | None = None) -> Iterator[None]:
        """Errors of writing as one line that says what is left."""
        try:
            yield
        except Exception as error:  # of many types, from threads and from C++
            good = [number for number in complete(self.folder) if number != step]
            left = f"the last good one is of step {good[-1]}" if good else "there is none yet"
            raise UserError(
                f"cannot save a checkpoint in {self.folder} ({first_line(error)}); {left}: see to "
                "the disk and use --resume"
            ) from error

    def restore(
        self, like: State, accept: Callable[[Facts], None] = lambda facts: None
    ) -> tuple[State, Facts] | None:
        """The newest checkpoint that is sound; None if nothing was saved yet.

        Damaged ones are told of and removed, once a sound one is found.

        Args:
            like: arrays of the shapes, types and shardings that are wanted.
            accept: raises UserError if a checkpoint of these facts is not wanted.

        Raises:
            UserError: not accepted, or all are damaged.
        """
        steps = sorted(self.manager.all_steps(), reverse=True)
        damaged: list[int] = []
        for step in steps:
            try:
                state, facts = self.read(step, like, accept)
            except UserError:
                raise
            except Exception as error:  # damaged in whatever way
                damaged.append(step)
                self.say(
                    f"checkpoint {step} in {self.folder} is damaged ({first_line(error)}): "
                    "trying the one before"
                )
                continue
            self.remove(damaged)
            return state, facts
        if damaged:
            raise UserError(
                f"all checkpoints in {self.folder} are damaged: begin anew with --overwrite"
            )
        return None

    @unraisable(lambda _: True)  # when a read fails, others that were under way are dropped
    def read(self, step: int, like: State, accept: Callable[[Facts], None]) -> tuple[State, Facts]:
        """One checkpoint. Raises anything if it is damaged."""
        args = ocp.args.Composite(facts=ocp.args.JsonRestore())
        facts: Facts = self.manager.restore(step, args=args).facts
        accept(facts)
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
        state: State = self.manager.restore(step, args=args).state
        if digest(state, facts) != facts[DIGEST]:
            raise ValueError("its content has changed")
        # Into arrays of our own, which a step may donate.
        return jax.tree.map(jnp.copy, state), facts

    def remove(self, steps: list[int]) -> None:
        """Remove checkpoints, also unfinished ones, so that they can be saved again."""
        for step in steps:
            try:
                self.manager.delete(step)
            except Exception:  # too damaged to be deleted in order
                if jax.process_index() == 0:
                    shutil.rmtree(self.folder / str(step), ignore_errors=True)
                self.manager.reload()


def complete(folder: Path) -> list[int]:
    """Steps of checkpoints that are not being written, rising."""
    with suppress(OSError):
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    return []


def digest(state: State, facts: Mapping[str, Any]) -> int:
    """CRC-32 of all names and values."""
    told = {key: value for key, value in facts.items() if key != DIGEST}
    crc = zlib.crc32(json.dumps(told, sort_keys=True).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        crc = zlib.crc32(jax.tree_util.keystr(path).encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data, crc)
    return crc


def first_line(error: Exception) -> str:
    """What an error says, shortened."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
