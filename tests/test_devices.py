"""The number of devices changes nothing but the time."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

from ie_jax.devices import cut, make_mesh
from ie_jax.errors import UserError
from ie_jax.methods.table import METHODS
from tests import eight_devices, forks
from tests.forks import Fork


def told(program: Callable[[Sequence[str]], None], folder: Path) -> Any:
    """What a program on eight devices prints."""
    status, out, errors = Fork(program, [], folder / "out.txt", forks.devices(8)).wait(500)
    assert status == 0, errors[-2000:]
    return json.loads(out)


@pytest.mark.parametrize(
    "program",
    [
        eight_devices.toy_step,
        pytest.param(eight_devices.cycle_step, marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_eight_devices_give_the_loss_and_the_gradient_of_one(program: Any, tmp_path: Path) -> None:
    report = told(program, tmp_path)
    assert {"4 x 2 gradient", "1 x 8 gradient"} < set(report)
    assert max(report.values()) <= 1e-5, report


@pytest.mark.long("a guided edit is compiled for eight devices")
@pytest.mark.parametrize(
    "program",
    [eight_devices.edit_program, pytest.param(eight_devices.turbo_program, marks=pytest.mark.slow)],
)
def test_nothing_crosses_devices_in_an_edit(program: Any, tmp_path: Path) -> None:
    report = told(program, tmp_path)
    assert report == {"devices": 8, "programs": 1, "collectives": 0}


@pytest.mark.slow
def test_every_method_goes_over_devices(tmp_path: Path) -> None:
    report = told(eight_devices.all_methods, tmp_path)
    assert set(report) == set(METHODS)
    assert all(collectives == 0 for collectives, _ in report.values()), report
    assert all(far <= 1e-3 for _, far in report.values()), report


def test_the_largest_axis_that_divides_is_cut() -> None:
    devices = SimpleNamespace(shape={"data": 1, "fsdp": 4})

    def spec(*shape: int) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ie_jax.devices.NamedSharding", lambda mesh, spec: spec)
            return cut(devices, shape)  # type: ignore[arg-type]

    assert spec(320, 1280) == P(None, "fsdp")
    assert spec(3, 3, 1280, 322) == P(None, None, "fsdp", None)
    assert spec(321, 1283) == P()
    assert spec(16, 16) == P()  # too small to be worth it


def test_fsdp_must_divide_the_devices() -> None:
    with pytest.raises(UserError, match="must divide the number of devices"):
        make_mesh(2, jax.devices()[:1])
