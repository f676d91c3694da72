"""The loop: trains any stage, saves, resumes, stops when asked."""

import json
import math
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from ie_jax.devices import (
    BATCH,
    WHOLE,
    gathered,
    is_cut,
    over_devices,
    place,
    place_batch,
    replicated,
    weight_shardings,
)
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.training.checkpoints import Checkpoints, Facts, one_line_of_a_failed_write
from ie_jax.training.flops import flops, peak
from ie_jax.training.journal import Journal, Meter, Pictures, writing
from ie_jax.training.stage import Stage, State, Tree
from ie_jax.training.step import make_step
from ie_jax.training.stop import Asked, Stop

CHECKPOINTS = "checkpoints"
FAILURE = "failure.json"

Batch = Mapping[str, np.ndarray]
Announce = Callable[[str], AbstractContextManager[None]]
Export = Callable[[State, bool], None]
"""(state, whether it is the best by validation): called on one process, at the end and at a new
best."""


class Loader(Protocol):
    """This process's part of endless batches, from wherever the state says."""

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Where this stands, as JSON has it."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        ...


@dataclass(frozen=True)
class HeldOut:
    """What validation runs on."""

    batches: Iterable[Batch]
    """This process's part of batches of one shape; iterated anew each time."""
    count: int
    """Items; what the batches hold beyond them is filling."""


@dataclass(frozen=True)
class Plan:
    """How long a run is, and what happens when, in steps."""

    steps: int
    evaluate_every: int = 500
    save_every: int = 500
    log_every: int = 10
    keep: int = 2
    """Checkpoints that stay beside the best."""
    accumulate: int = 1
    """Micro-batches per step and device."""
    pictures: int = 8
    """Items shown at a validation."""
    best: str | None = None
    """The metric of validation by which the best checkpoint is told, the smaller the better."""


@dataclass(frozen=True)
class Pending:
    """A step that was dispatched and whose metrics were not read yet."""

    step: int
    metrics: Mapping[str, jax.Array]
    names: Sequence[str]
    """Of this process's images, where the loader tells them."""


@dataclass
class Progress:
    """What a checkpoint holds beside the state and the loader's."""

    validated: int = -1
    """Step of the last validation."""
    best: float = math.inf
    value: float | None = field(default=None)
    """Of the validation at this very step."""


class NotFinite(Exception):
    """A loss or a gradient is NaN or infinite."""

    def __init__(self, at: Pending, metrics: Mapping[str, float]) -> None:
        self.at, self.metrics = at, metrics


def train(
    stage: Stage,
    state: State,
    frozen: Tree,
    mesh: Mesh,
    loader: Loader,
    *,
    folder: Path,
    plan: Plan,
    key: jax.Array,
    held_out: HeldOut | None = None,
    settings: Mapping[str, Any] | None = None,
    accept: Callable[[Mapping[str, Any]], None] = lambda settings: None,
    export: Export = lambda state, best: None,
    compiler_options: Mapping[str, Any] | None = None,
    announce: Announce = lambda name: nullcontext(),
    say: Callable[[str], None] = print,
    quiet: bool = False,
) -> State:
    """Train to `plan.steps`, from the newest sound checkpoint in `folder` if there is one.

    SIGTERM and SIGINT end the run after the step, with a checkpoint; a second signal ends it at
    once. One that comes while the step is compiled ends the run before it.

    Args:
        state, frozen: host arrays, equal on all processes.
        key: step n draws from fold_in(key, n).
        settings: kept in each checkpoint, as JSON has them.
        accept: given a checkpoint's settings; raises UserError if one must not go on from them.
        compiler_options: of XLA, for the step and for validation.
        announce: opened around compilation.
        say: told what happens otherwise, a line each.

    Returns:
        the last state.

    Raises:
        KeyboardInterrupt: it was ended by SIGINT, so that what called it ends too.
        UserError: a loss or gradient is not finite (`failure.json` tells more), the disk is full,
            or the checkpoints cannot be used.
    """
    trainer = Trainer(
        stage,
        place(frozen, weight_shardings(mesh, frozen)),
        mesh,
        loader,
        folder,
        plan,
        held_out if stage.evaluate else None,
        dict(settings or {}),
        export,
        dict(compiler_options or {}),
        announce,
    )
    trainer.train(state, key, accept, say, quiet)
    return trainer.state


def compiled(jitted: Any, *arguments: Any) -> Callable[..., Any]:
    """A jitted function for these arguments."""
    program: Callable[..., Any] = jitted.lower(*arguments).compile()
    return program


def silent(_: str) -> None:
    """Say nothing."""


@dataclass
class Trainer:
    """The actions of the loop, and what they share."""

    stage: Stage
    frozen: Tree
    mesh: Mesh
    loader: Loader
    folder: Path
    plan: Plan
    held_out: HeldOut | None
    settings: dict[str, Any]
    write_export: Export
    compiler_options: dict[str, Any]
    announce: Announce
    checkpoints: Checkpoints = field(init=False)
    journal: Journal | None = None
    stop: Stop = field(init=False)
    state: State = field(init=False)
    validate: Callable[..., Any] | None = None
    compiled: Callable[..., Any] | None = None
    pending: Pending | None = None
    progress: Progress = field(default_factory=Progress)
    saved: int = -1
    meter: Meter = field(default_factory=lambda: Meter(0, 0, None))

    def train(
        self,
        state: State,
        key: jax.Array,
        accept: Callable[[Mapping[str, Any]], None],
        say: Callable[[str], None],
        quiet: bool,
    ) -> None:
        """From the newest checkpoint, or this state and key, to the last step or a signal."""
        main = jax.process_index() == 0
        with one_line_of_a_failed_write(), ExitStack() as stack:
            told = say if main else silent
            self.checkpoints = Checkpoints(self.folder / CHECKPOINTS, self.plan.keep, told)
            stack.callback(self.checkpoints.abandon)
            self.begin(place(state, weight_shardings(self.mesh, state)), key, accept)
            if self.step:
                say(f"resumed at step {self.step}")
            if main:
                self.journal = Journal(self.folder, self.step, self.plan.steps, quiet)
                stack.callback(self.journal.close)
            self.stop = stack.enter_context(Stop())
            try:
                stopping = self.run()
            except NotFinite as failure:
                self.fail(failure)
            except Asked:
                stopping = True
                self.save()  # of a batch that no step took it says nothing
            self.export(best=False)
            self.checkpoints.close()
        if stopping and self.step < self.plan.steps:
            say(f"stopped by {self.stop.heard} after step {self.step}: go on with --resume")
            if self.stop.heard == signal.SIGINT.name:
                raise KeyboardInterrupt

    def begin(
        self, state: State, key: jax.Array, accept: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Take up the newest checkpoint, or begin with this state and key."""
        facts: Facts
        self.state, self.step = state, 0
        self.key_data = np.asarray(jax.random.key_data(key))
        found = self.checkpoints.restore(state, lambda facts: accept(facts["settings"]))
        if found:
            self.state, facts = found
            self.step = self.saved = int(self.state.step)
            self.loader.set_state(facts["data"])
            self.progress = Progress(**facts["progress"])
            self.key_data = np.asarray(facts["key"], self.key_data.dtype)
        self.key = place(self.key_data, replicated(self.mesh))

    def run(self) -> bool:
        """To the last step, or until a signal asks to stop. Returns whether one did.

        At each step, in this order: evaluate, save, next batch, step. Validation is due at step 0
        and then at intervals. A checkpoint is due at step 0 (so that a full disk shows early), at
        intervals, at each new best and at the end. The device never waits for metrics: those of a
        step are read when the next one was dispatched.
        """
        while True:
            stopping = self.stop.asked(self.step)
            if not stopping:
                self.evaluate_if_due()
            self.save_if_due(stopping)
            if stopping or self.step >= self.plan.steps:
                return stopping
            self.advance(self.next_batch())

    def evaluate_if_due(self) -> None:
        """Validate before the first step and at intervals; export a new best."""
        due = self.step % self.plan.evaluate_every == 0 or self.step == self.plan.steps
        if not self.held_out or not due or self.progress.validated == self.step:
            return
        self.settle()
        with self.meter.paused():
            metrics, pictures = self.evaluate(self.held_out)
            if self.journal:
                told = {f"validation/{name}": x for name, x in metrics.items()}
                self.journal.scalars(self.step, told, {})
                if pictures:
                    self.journal.pictures(self.step, pictures)
        value = metrics.get(self.plan.best or "")
        better = value is not None and value < self.progress.best
        best = value if value is not None and better else self.progress.best
        self.progress = Progress(self.step, best, value)
        if better:
            self.save()
            with self.meter.paused():
                self.export(best=True)

    def evaluate(self, held_out: HeldOut) -> tuple[dict[str, float], Pictures]:
        """Metrics as means over all held-out items, and pictures of the first."""
        metrics: list[dict[str, np.ndarray]] = []
        pictures: list[dict[str, np.ndarray]] = []
        shown = 0
        for batch in held_out.batches:
            placed = place_batch(self.mesh, batch)
            if self.validate is None:
                assert self.stage.evaluate
                evaluate: Callable[..., Any] = self.stage.evaluate
                if not is_cut(self.mesh):
                    places = (WHOLE, WHOLE, BATCH), BATCH
                    evaluate = over_devices(evaluate, self.mesh, *places)
                jitted = jax.jit(
                    evaluate,
                    out_shardings=replicated(self.mesh),
                    compiler_options=self.compiler_options,
                )
                with self.announce("compile validation"):
                    given = (self.state.params, self.frozen, placed)
                    self.validate = self.stop.unless_asked(partial(compiled, jitted, *given))
            of_items, images = self.validate(self.state.params, self.frozen, placed)
            metrics.append({name: np.asarray(x, np.float64) for name, x in of_items.items()})
            if shown < self.plan.pictures:
                pictures.append({name: np.asarray(x) for name, x in images.items()})
                shown += len(next(iter(images.values()), ()))
        count = held_out.count
        means = {
            name: float(np.concatenate([x[name] for x in metrics])[:count].mean())
            for name in metrics[0]
        }
        first = min(count, self.plan.pictures)
        # A program returns them by the alphabet.
        names = sorted(pictures[0] if pictures else (), key=lambda name: (name != "source", name))
        return means, {
            name: np.concatenate([x[name] for x in pictures])[:first] for name in names if first
        }

    def save_if_due(self, stopping: bool) -> None:
        """Save at intervals, at the end, and before stopping."""
        last = stopping or self.step == self.plan.steps
        if last or self.step % self.plan.save_every == 0:
            self.save()
        else:
            self.checkpoints.check()

    def save(self) -> None:
        """Save, once the metrics of all steps are read."""
        self.settle()
        if self.saved == self.step:
            return
        with self.meter.paused():
            if self.journal:
                self.journal.flush()
            facts = {
                "settings": self.settings,
                "data": self.loader.get_state(),
                "progress": self.progress.__dict__,
                "key": self.key_data.tolist(),
            }
            at_this_step = self.progress.validated == self.step
            value = self.progress.value if at_this_step else None
            self.checkpoints.save(self.step, self.state, facts, value)
            self.saved = self.step

    def export(self, best: bool) -> None:
        """Hand the state out."""
        state = gathered(self.mesh, self.state)
        if jax.process_index() == 0:
            with writing(self.folder):
                self.write_export(state, best)

    def next_batch(self) -> Any:
        """The next batch on the devices."""
        with self.meter.waiting():
            batch = next(self.loader)
        return place_batch(self.mesh, batch)

    def advance(self, batch: Any) -> None:
        """Dispatch a step, then read the metrics of the one before."""
        if self.compiled is None:
            self.compile(batch)
        assert self.compiled
        self.state, metrics = self.compiled(self.state, self.frozen, batch, self.key)
        self.step += 1
        names = tuple(getattr(self.loader, "names", ()))
        before, self.pending = self.pending, Pending(self.step, metrics, names)
        if before:
            self.read(before)

    def compile(self, batch: Any) -> None:
        """Compile the step for batches of this shape.

        Raises:
            Asked: to stop meanwhile.
        """
        step = make_step(self.stage, self.mesh, self.plan.accumulate)

        def draw_and_step(state: State, frozen: Tree, batch: Any, key_data: jax.Array) -> Any:
            key = jax.random.fold_in(jax.random.wrap_key_data(key_data), state.step)
            return step(state, frozen, batch, key)

        jitted = jax.jit(
            draw_and_step,
            donate_argnums=0,
            out_shardings=(weight_shardings(self.mesh, self.state), replicated(self.mesh)),
            compiler_options=self.compiler_options,
        )

        def counted() -> tuple[int, Callable[..., Any]]:
            traced = jitted.trace(self.state, self.frozen, batch, self.key)
            return flops(traced.jaxpr.jaxpr), traced.lower().compile()

        with self.announce("compile step"):
            operations, self.compiled = self.stop.unless_asked(counted)
        images = len(jax.tree.leaves(batch)[0])
        self.meter = Meter(images, operations, peak(jax.devices()[0]))

    def settle(self) -> None:
        """Read the metrics of the last step, for which the device must finish it."""
        if self.pending:
            last, self.pending = self.pending, None
            self.read(last)

    def read(self, at: Pending) -> None:
        """Read and log the metrics of a step.

        Raises:
            NotFinite: one of them is not.
        """
        metrics = {name: float(x) for name, x in at.metrics.items()}
        if not all(map(math.isfinite, metrics.values())):
            raise NotFinite(at, metrics)
        self.meter.steps += 1
        if self.journal:
            self.journal.advance()
            if at.step % self.plan.log_every == 0 or at.step == self.plan.steps:
                self.journal.scalars(at.step, metrics, self.meter.report())

    def fail(self, failure: NotFinite) -> None:
        """Write down what happened and save the state, which a step without finite numbers has left
        as it was.

        Raises:
            UserError: always.
        """
        at, path = failure.at, self.folder / FAILURE
        bad = [name for name, x in failure.metrics.items() if not math.isfinite(x)]
        facts = {
            "step": at.step,
            "metrics": {n: x if math.isfinite(x) else str(x) for n, x in failure.metrics.items()},
            "key": self.key_data.tolist(),
            "batch": list(at.names),
            "settings": self.settings,
        }
        if self.journal:
            with writing(self.folder), appearing_whole(path) as file:
                file.write((json.dumps(facts, indent=1) + "\n").encode())
        self.pending = None
        self.save()
        self.checkpoints.close()
        raise UserError(
            f"{', '.join(bad)} of step {at.step} came out as NaN or infinity: {path} tells more; "
            "lower the learning rate or use float32 (the step changed nothing and is left out by "
            "--resume)"
        )
