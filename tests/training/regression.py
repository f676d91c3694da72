"""Linear regression as a stage: trains in milliseconds. `main` is one run of the loop."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ie_jax.cli import run
from ie_jax.devices import make_mesh
from ie_jax.training.loop import HeldOut, Plan, train
from ie_jax.training.stage import Stage, State, initial_state

ITEMS = 8
TRUE = np.arange(1, 5, dtype=np.float32)[:, None]
Tree = Any


def prepare(frozen: Tree, batch: Any, keys: jax.Array) -> Tree:
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    return batch["x"] + 0.01 * noise, batch["x"] @ frozen


def loss(params: Tree, frozen: Tree, example: Tree) -> tuple[jax.Array, dict[str, jax.Array]]:
    x, y = example
    return jnp.mean((x @ params["w"] - y) ** 2), {}


def evaluate(params: Tree, frozen: Tree, batch: Any) -> tuple[Any, Any]:
    error = (batch["x"] @ params["w"] - batch["x"] @ frozen)[:, 0]
    shade = jnp.clip(jnp.abs(error) * 50, 0, 255).astype(jnp.uint8)
    picture = jnp.broadcast_to(shade[:, None, None, None], (len(error), 4, 6, 3))
    white = jnp.full((len(error), 4, 6, 3), 255, jnp.uint8)
    return {"mse": error**2}, {"source": white, "reconstruction": picture}


STAGE = Stage(prepare, {"fit": loss}, optax.adam(0.1), evaluate, ema=0.9)


class Batches:
    """Endless batches; `bad` is the number of one of NaN."""

    def __init__(self, bad: int | None = None) -> None:
        self.given, self.bad = 0, bad

    @property
    def names(self) -> tuple[str, ...]:
        return (f"batch {self.given}",)

    def __next__(self) -> dict[str, np.ndarray]:
        self.given += 1
        x = np.random.default_rng(self.given).normal(size=(ITEMS, 4)).astype(np.float32)
        return {"x": own_part(x * np.float32(np.nan) if self.given == self.bad else x)}

    def get_state(self) -> dict[str, Any]:
        return {"given": self.given}

    def set_state(self, state: dict[str, Any]) -> None:
        self.given = state["given"]


def own_part(x: np.ndarray) -> np.ndarray:
    """This process's items of a batch."""
    return np.split(x, jax.process_count())[jax.process_index()]


class Items:
    """Two batches to validate on."""

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for k in (0, 1):
            yield {"x": own_part(np.eye(ITEMS, 4, k=-k, dtype=np.float32))}


HELD_OUT = HeldOut(Items(), ITEMS + 3)


def start() -> State:
    return initial_state(STAGE, {"w": np.zeros((4, 1), np.float32)})


def fit(folder: Path, steps: int = 10, batches: Any = None, **options: Any) -> State:
    """One run of the loop, or the rest of one."""
    plan: dict[str, Any] = {"evaluate_every": 5, "save_every": 3, "log_every": 1, "best": "mse"}
    plan |= {name: options.pop(name) for name in Plan.__dataclass_fields__ if name in options}
    options = {"held_out": HELD_OUT, "quiet": True, "key": jax.random.key(7), **options}
    loader = batches or Batches()
    every: dict[str, Any] = {"folder": folder, "plan": Plan(steps, **plan), **options}
    return train(STAGE, start(), TRUE, make_mesh(), loader, **every)


def one(argv: Sequence[str]) -> None:
    """FOLDER STEPS LOG_EVERY [COORDINATOR PROCESSES PROCESS]"""
    folder, steps, log_every, *others = argv
    if others:
        jax.distributed.initialize(others[0], int(others[1]), int(others[2]))
    state = fit(Path(folder), int(steps), log_every=int(log_every), pictures=0, say=say)
    print(state.params["w"].tolist())


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> None:
    """The program."""
    run(one, argv)
