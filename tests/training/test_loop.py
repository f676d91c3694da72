"""The loop, with a toy stage."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from ie_jax.errors import UserError
from ie_jax.training.journal import METRICS, PICTURES
from ie_jax.training.loop import FAILURE, HeldOut, Loader, Plan, Trainer
from ie_jax.training.stage import State
from tests.training.programs import Kept, shared
from tests.training.regression import HELD_OUT, ITEMS, TRUE, Batches, fit


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[Kept]:
    """All runs here are of one stage."""
    kept: Kept = {}
    with shared(kept):
        yield kept


def same(one: State, other: State) -> bool:
    """Equal bit for bit."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in leaves)


def same_tensors(one: Path, other: Path) -> bool:
    """Equal bit for bit; a header has no order."""
    ours, theirs = load_file(one), load_file(other)
    return ours.keys() == theirs.keys() and all(
        ours[name].tobytes() == theirs[name].tobytes() for name in ours
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    """The metrics without the speed, which no two runs share."""
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("speed/")} for row in rows]


def test_it_trains_any_stage(tmp_path: Path) -> None:
    state = fit(tmp_path, 300, save_every=300, evaluate_every=300)
    np.testing.assert_allclose(state.params["w"], TRUE, atol=0.05)
    assert int(state.step) == 300


@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, cut: int) -> None:
    whole = fit(tmp_path / "whole")
    fit(tmp_path / "parts", cut)
    parts = fit(tmp_path / "parts")
    assert same(whole, parts)
    extra = {} if cut == 5 else {cut: 1}  # validation at the end of the first part
    steps = [row["step"] for row in lines(tmp_path / "parts")]
    whole_steps = [row["step"] for row in lines(tmp_path / "whole")]
    assert sorted(steps) == sorted([*whole_steps, *extra])


def test_metrics_of_steps_that_are_made_again_are_dropped(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole")

    class Crash(Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            if self.given == 8:
                raise KeyboardInterrupt
            return super().__next__()

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", batches=Crash())
    assert lines(tmp_path / "parts")[-1]["step"] > 6  # later than the last checkpoint
    with (tmp_path / "parts" / METRICS).open("a") as file:
        file.write('{"step": 7, "tor')
    assert same(whole, fit(tmp_path / "parts"))
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_the_order_of_actions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actions: list[str] = []

    def listen(name: str) -> None:
        original = getattr(Trainer, name)

        def told(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            actions.append(f"{name} {self.step}" if name != "read" else f"read {args[0].step}")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, name, told)

    for name in ("evaluate", "save", "next_batch", "advance", "read"):
        listen(name)
    fit(tmp_path, 4, evaluate_every=2, save_every=3, best=None)
    assert actions == [
        *("evaluate 0", "save 0", "next_batch 0", "advance 0"),
        *("next_batch 1", "advance 1", "read 1"),  # read when the next step was dispatched
        *("read 2", "evaluate 2", "next_batch 2", "advance 2"),
        *("save 3", "read 3", "next_batch 3", "advance 3"),
        *("read 4", "evaluate 4", "save 4"),
    ]


def test_a_speed_is_told_of_each_step_also_where_a_checkpoint_is_saved(tmp_path: Path) -> None:
    fit(tmp_path, 4, save_every=2, evaluate_every=4)
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    speeds = [row["speed/images_per_second"] for row in rows if "fit/loss" in row]
    assert len(speeds) == 4 and min(speeds) > 0


def test_validation_is_the_mean_of_all_items_without_the_filling(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    rows = np.concatenate([batch["x"] for batch in HELD_OUT.batches])[: HELD_OUT.count]
    expected = float(np.mean((rows @ TRUE) ** 2))
    first = lines(tmp_path)[0]
    assert first == {"step": 0, "validation/mse": pytest.approx(expected)}


def picture(folder: Path, step: int) -> np.ndarray:
    with Image.open(folder / PICTURES / f"{step:08}.png") as image:
        return np.asarray(image)


def columns(sheet: np.ndarray) -> list[np.ndarray]:
    """Three pictures of 4 x 6 pixels each, without the names above."""
    return [sheet[-8 - 12 : -8, left : left + 6] for left in range(8, sheet.shape[1] - 8, 88)]


def test_pictures_show_now_and_the_start(tmp_path: Path) -> None:
    fit(tmp_path, 5, pictures=3)
    first, later = (columns(picture(tmp_path, step)) for step in (0, 5))
    assert (len(first), len(later)) == (2, 3)
    np.testing.assert_array_equal(first[1], later[2])  # also after a restart
    fit(tmp_path, 10, pictures=3)
    np.testing.assert_array_equal(first[1], columns(picture(tmp_path, 10))[2])


def test_the_best_is_exported_and_kept_with_the_last(tmp_path: Path) -> None:
    exported: list[tuple[int, bool]] = []

    def export(state: State, best: bool) -> None:
        assert isinstance(state.params["w"], np.ndarray)
        exported.append((int(state.step), best))

    # Held-out items of a regression that training leads away from.
    away = HeldOut([{"x": np.ones((ITEMS, 4), np.float32)}], ITEMS)
    fit(tmp_path, 40, held_out=away, export=export, keep=2)
    rows = {row["step"]: row["validation/mse"] for row in lines(tmp_path) if len(row) == 2}
    best = min(rows, key=rows.__getitem__)
    assert exported[-1] == (40, False)
    assert [step for step, is_best in exported if is_best][-1] == best
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {str(best), "39", "40"}


@pytest.mark.parametrize("long", ["compile", "evaluate"])
def test_a_signal_is_heard_while_something_compiles(
    tmp_path: Path, long: str, monkeypatch: pytest.MonkeyPatch, programs: Kept
) -> None:
    """A call into C++ that would take a minute is not waited for."""
    programs.clear()
    end = threading.Event()

    def compiled(self: Any, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        end.wait(60)

    monkeypatch.setattr("jax.stages.Lowered.compile", compiled)
    said: list[str] = []
    start = time.monotonic()
    held_out = HELD_OUT if long == "evaluate" else None
    state = fit(tmp_path, say=said.append, held_out=held_out)
    end.set()
    assert time.monotonic() - start < 30 and int(state.step) == 0
    assert said == ["stopped by SIGTERM after step 0: go on with --resume"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_after_the_step(tmp_path: Path, number: int) -> None:
    said: list[str] = []

    class Signalled(Batches):
        def __next__(self) -> dict[str, np.ndarray]:
            if self.given == 4:
                os.kill(os.getpid(), number)
            return super().__next__()

    usual = signal.getsignal(number)
    if number == signal.SIGINT:  # what called it ends too
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "parts", batches=Signalled(), say=said.append)
    else:
        assert int(fit(tmp_path / "parts", batches=Signalled(), say=said.append).step) == 5
    assert said == [f"stopped by {signal.Signals(number).name} after step 5: go on with --resume"]
    assert signal.getsignal(number) == usual
    assert same(fit(tmp_path / "parts"), fit(tmp_path / "whole"))
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")


def test_nan_stops_the_run_and_leaves_the_state(tmp_path: Path) -> None:
    good = fit(tmp_path / "good", 3)
    with pytest.raises(UserError, match="fit/gradient_norm, fit/loss of step 4 came out as NaN"):
        fit(tmp_path / "bad", 4, batches=Batches(bad=4), settings={"a": 1})
    facts = json.loads((tmp_path / "bad" / FAILURE).read_text())
    assert facts == {
        "step": 4,
        "metrics": {"fit/loss": "nan", "fit/gradient_norm": "nan"},
        "key": np.asarray(jax.random.key_data(jax.random.key(7))).tolist(),
        "batch": ["batch 4"],
        "settings": {"a": 1},
    }
    kept = fit(tmp_path / "bad", 4)  # nothing left to do
    assert same(kept.replace(step=good.step, ema=good.ema), good)  # type: ignore[attr-defined]


def test_nan_in_the_middle_is_seen_one_step_later(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="of step 2 came out as NaN"):
        fit(tmp_path, 9, batches=Batches(bad=2))
    state = fit(tmp_path, 9)
    assert np.isfinite(state.params["w"]).all()
    assert int(state.step) == 9


def test_settings_are_compared_before_anything_is_taken_up(tmp_path: Path) -> None:
    fit(tmp_path, 2, settings={"rate": 1})

    def accept(settings: Mapping[str, Any]) -> None:
        if settings != {"rate": 2}:
            raise UserError(f"was {settings}")

    with pytest.raises(UserError, match=r"was \{'rate': 1\}"):
        fit(tmp_path, 4, accept=accept)


def test_the_speed_is_logged(tmp_path: Path) -> None:
    fit(tmp_path, 3)
    rows = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    logged = [row for row in rows if "fit/loss" in row]
    assert all(row["speed/images_per_second"] > 0 for row in logged[:-1])
    assert all(0 <= row["speed/share_waiting"] <= 1 for row in logged)


def test_a_loader_is_a_loader() -> None:
    loader: Loader = Batches()
    assert loader.get_state() == {"given": 0}
    assert Plan(1).accumulate == 1
