"""The memory benchmark."""

import pytest

from benchmarks import memory
from benchmarks.models import architecture_of, weight_shapes
from ie_jax.errors import UserError


def test_counts_the_weights_of_sd15() -> None:
    weights = weight_shapes(architecture_of("sd15"), "float32")
    assert memory.count(weights.unet) == pytest.approx(860e6, rel=1e-3)
    assert memory.count(weights.forward) == memory.count(weights.backward) == 64 * 1_050_816


def test_reports_what_one_base_saves() -> None:
    report = memory.weights_report(architecture_of("sd15"), "float32")
    assert report.endswith("3.98 GB; three networks: 10.32 GB; saved: 6.34 GB.")


def test_takes_every_combination() -> None:
    options = vars(memory.parse(["--size", "256", "512", "--energy", "chunked", "plain"]))
    found = {(setting.size, setting.energy) for setting in memory.settings(options)}
    assert found == {(256, "chunked"), (256, "plain"), (512, "chunked"), (512, "plain")}


@pytest.mark.slow
def test_compiles_an_edit_that_fits_no_weights(capsys: pytest.CaptureFixture[str]) -> None:
    memory.main(["--target", "cpu", "--model", "tiny", "--size", "64", "--guiders", "none"])
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    temporaries, arguments = float(row[-4]), float(row[-3])
    weights = weight_shapes(architecture_of("tiny"), "float32")
    assert arguments == pytest.approx(4e-9 * memory.count(weights), abs=1e-3)
    assert temporaries > 0


@pytest.mark.slow
def test_compiles_another_method(capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ("--target", "cpu", "--model", "tiny", "--size", "64", "--method", "icd", "p2p")
    memory.main(tiny)
    icd, p2p = (row.split(" | ") for row in capsys.readouterr().out.splitlines()[-2:])
    assert "icd" in icd and "p2p" in p2p and float(icd[-4]) > 0


def test_refuses_a_size_that_the_networks_cannot_take() -> None:
    with pytest.raises(UserError, match="--size 500"):
        memory.main(["--target", "cpu", "--model", "tiny", "--size", "500"])
