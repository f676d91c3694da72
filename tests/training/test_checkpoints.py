"""Checkpoints: across device counts, damaged, half written, on a full disk."""

import asyncio
import json
import logging
import secrets
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tensorstore as ts

from ie_jax.errors import UserError
from ie_jax.training.checkpoints import Checkpoints, one_line_of_a_failed_write
from ie_jax.training.stage import State
from tests import forks
from tests.forks import Fork
from tests.training import regression
from tests.training.regression import fit, start


def opened(folder: Path) -> tuple[Checkpoints, list[str]]:
    said: list[str] = []
    return Checkpoints(folder, 3, said.append), said


def numbered(step: int) -> State:
    """A state that tells its step."""
    return jax.tree.map(lambda x: x + step, start())


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 1, 2, 3."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints, _ = opened(folder)
    for step in (1, 2, 3):
        checkpoints.save(step, numbered(step), {"data": {"step": step}})
    checkpoints.close()
    return folder


def files(folder: Path) -> list[str]:
    """Kinds of the files of a checkpoint; the names of some are random."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Iterator[Path]:
    shutil.copytree(three, tmp_path / "copy")
    yield tmp_path / "copy"


def test_the_newest_is_taken(copy: Path) -> None:
    checkpoints, said = opened(copy)
    found = checkpoints.restore(start())
    assert found
    state, facts = found
    assert int(state.step) == 3 and facts["data"] == {"step": 3}
    assert str(jax.tree.structure(state)) == str(jax.tree.structure(start()))
    assert not said


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert opened(tmp_path / "new")[0].restore(start()) is None


@pytest.mark.parametrize("harm", ["truncated", "missing", "changed"])
def test_a_damaged_file_leads_to_the_checkpoint_before(
    three: Path, tmp_path: Path, harm: str
) -> None:
    """Whichever file it is: all that matter are damaged in turn."""
    told = 0
    for i, name in enumerate(files(three / "3")):
        copy = tmp_path / str(i)
        shutil.copytree(three, copy)
        file = copy / "3" / name
        content = file.read_bytes()
        if harm == "truncated":
            file.write_bytes(content[: len(content) // 2])
        elif harm == "missing":
            file.unlink()
        else:
            middle = len(content) // 2
            file.write_bytes(
                content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
            )
        checkpoints, said = opened(copy)
        found = checkpoints.restore(start())
        assert found, name
        step = int(found[0].step)
        # Some files repeat what others hold. Then nothing is lost, and nothing is said.
        assert (step, len(said)) in {(2, 1), (3, 0)}, (name, said)
        np.testing.assert_array_equal(found[0].params["w"], numbered(step).params["w"])
        if step == 2:
            told += 1
            assert "\n" not in said[0] and "3" in said[0]
        # A run goes on from there, and saves the lost step again.
        checkpoints.save(3, numbered(3), {"data": {"step": 3}})
        checkpoints.close()
        checkpoints, said = opened(copy)
        again = checkpoints.restore(start())
        assert again and int(again[0].step) == 3 and not said, name
    assert told >= 3


def test_all_damaged_is_an_error(copy: Path) -> None:
    for step in (1, 2, 3):
        shutil.rmtree(copy / str(step) / "state")
    checkpoints, said = opened(copy)
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        checkpoints.restore(start())
    assert len(said) == 3
    assert (copy / "3").is_dir()  # nothing is removed


def test_a_killed_save_is_not_seen(copy: Path) -> None:
    shutil.copytree(copy / "3", copy / "4.orbax-checkpoint-tmp")
    (copy / "5.orbax-checkpoint-tmp-123").mkdir()
    checkpoints, said = opened(copy)
    found = checkpoints.restore(start())
    assert found and int(found[0].step) == 3 and not said
    for step in (4, 5):
        checkpoints.save(step, numbered(step), {})
    checkpoints.close()
    found = opened(copy)[0].restore(start())
    assert found and int(found[0].step) == 5
    assert not list(copy.glob("*tmp*"))


def test_a_step_that_is_saved_is_left_as_it_is(copy: Path) -> None:
    checkpoints, _ = opened(copy)
    checkpoints.save(3, numbered(9), {})
    checkpoints.close()
    found = opened(copy)[0].restore(start())
    assert found and int(found[0].step) == 3


def test_a_state_may_be_overwritten_while_it_is_saved(tmp_path: Path) -> None:
    """The loop donates it to the next step."""
    checkpoints, said = opened(tmp_path)
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda x: x * 0, tree), donate_argnums=0)
    for step in range(20):
        state = numbered(step)
        checkpoints.save(step, state, {})
        overwrite(state)
    checkpoints.close()
    found = opened(tmp_path)[0].restore(start())
    assert found and int(found[0].step) == 19 and not said


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot use the checkpoint folder"):
        opened(tmp_path / "file")


def program(
    folder: Path, steps: int, devices: int = 1, limit: int | None = None, log_every: int = 1
) -> str:
    """A run of the loop in a process of its own; its last line, or its errors."""
    output = folder.with_name(f"{folder.name}-{secrets.token_hex(4)}.txt")
    fork = Fork(regression.main, [folder, steps, log_every], output, forks.devices(devices), limit)
    status, out, errors = fork.wait()
    if limit:
        assert status == 2, errors
        assert "Traceback" not in errors
        return errors.strip().splitlines()[-1]
    assert status == 0, errors
    return out.strip().splitlines()[-1]


def test_a_run_moves_between_numbers_of_devices(tmp_path: Path) -> None:
    program(tmp_path / "parts", 4, devices=8)
    fit(tmp_path / "parts", 8)
    result = np.array(json.loads(program(tmp_path / "parts", 12, devices=2)))
    whole = fit(tmp_path / "whole", 12).params["w"]
    np.testing.assert_allclose(result, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("log_every", "what"), [(1, "cannot write to"), (100, "cannot save a checkpoint in")]
)
def test_a_full_disk_keeps_the_last_good_checkpoint(
    tmp_path: Path, log_every: int, what: str
) -> None:
    """Files of at most 1024 bytes: enough for the journal's only if it says little."""
    fit(tmp_path / "run", 4)
    line = program(tmp_path / "run", 12, limit=1024, log_every=log_every)
    assert line.startswith(f"error: {what}")
    if log_every == 100:
        assert line.endswith("the last good one is of step 4: see to the disk and use --resume")
    after, whole = (fit(tmp_path / name, 12).params["w"] for name in ("run", "whole"))
    np.testing.assert_array_equal(after, whole)


def test_tensors_that_fail_late_are_not_told_of(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)

    def fail_late() -> str:
        promise: Any
        promise, future = ts.Promise.new()

        async def wait() -> None:
            await future

        loop = asyncio.new_event_loop()
        waiting = loop.create_task(wait())
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        promise.set_exception(ValueError("disk full"))
        assert not waiting.done()
        return capfd.readouterr().err

    assert "Event loop is closed" in fail_late()
    level = logging.getLogger("absl").level
    with one_line_of_a_failed_write():
        assert "Event loop is closed" not in fail_late()
    assert sys.unraisablehook is sys.__unraisablehook__
    assert logging.getLogger("absl").level == level
