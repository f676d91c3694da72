"""Runs of one stage with the same shapes share what the loop compiles."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import pytest

from ie_jax.training.journal import Meter
from ie_jax.training.loop import HeldOut, Trainer

Kept = dict[Any, Any]


def shape(*trees: Any) -> Any:
    """What a program is compiled for."""
    leaves, structure = jax.tree.flatten(trees)
    return structure, tuple((x.shape, x.dtype, x.sharding) for x in leaves)


@contextmanager
def shared(kept: Kept) -> Iterator[None]:
    """Inside, all runs are of one stage."""
    compile, evaluate = Trainer.compile, Trainer.evaluate

    def compile_once(self: Trainer, batch: Any) -> None:
        key = self.plan.accumulate, *shape(self.state, self.frozen, batch)
        if key in kept:
            self.compiled, meter = kept[key]
            self.meter = Meter(meter.images, meter.operations, meter.peak)
        else:
            compile(self, batch)
            kept[key] = self.compiled, self.meter

    def evaluate_once(self: Trainer, held_out: HeldOut) -> Any:
        key = "validation", *shape(self.state.params, self.frozen)
        self.validate = self.validate or kept.get(key)
        found = evaluate(self, held_out)
        kept[key] = self.validate
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "compile", compile_once)
        patch.setattr(Trainer, "evaluate", evaluate_once)
        yield
