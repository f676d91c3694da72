"""The number of devices changes nothing but the time."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

from ie_jax.devices import cut, make_mesh
from ie_jax.errors import UserError
from tests.conftest import ROOT


@pytest.mark.long("the step is compiled for one device and for eight")
def test_eight_devices_give_the_loss_and_the_gradient_of_one() -> None:
    command = [sys.executable, "-m", "tests.eight_devices"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr[-2000:]
    report = json.loads(ran.stdout)
    assert {"sum/loss", "sum/cycle", "sum/gradient_norm", "gradient"} <= set(report)
    assert max(report.values()) <= 1e-5, report


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
