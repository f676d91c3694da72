"""The memory of a layer of attention."""

import pytest

from benchmarks import attention


def test_whole_maps_take_what_they_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(attention, "LAYERS", {64: 8, 512: 8})
    attention.main(["--target", "cpu", "--kernels", "explicit"])
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    small, large = (float(row[4]) for row in rows)
    assert large > 30 * small > 0  # maps grow with the square of the tokens
    assert large > 8 * 512 * 512 * 4 / 1e6  # of eight heads in float32
