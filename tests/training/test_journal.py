"""The journal's files."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ie_jax.errors import UserError
from ie_jax.training.journal import EVENTS, METRICS, PICTURES, START, Journal, Meter


def test_lines_of_later_steps_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    rows = [{"step": step, "a": step / 2} for step in (0, 1, 1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / METRICS).write_text(text + '{"step": 1, "a"')
    journal = Journal(tmp_path, 1, 9, quiet=True)
    journal.scalars(2, {"b": 7.0}, {"speed/c": 1.0})
    journal.close()
    kept = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert kept == [*rows[:3], {"step": 2, "b": 7.0, "speed/c": 1.0}]
    assert len(list((tmp_path / EVENTS).iterdir())) == 1


def test_a_damaged_start_costs_only_the_comparison(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 9, quiet=True)
    (tmp_path / PICTURES / START).write_bytes(b"damaged")
    journal.pictures(3, {"x": np.zeros((2, 4, 4, 3), np.uint8)})
    journal.close()
    assert (tmp_path / PICTURES / "00000003.png").exists()


def test_pictures_are_a_row_per_item_and_a_named_column_per_kind(tmp_path: Path) -> None:
    one = np.arange(2, dtype=np.uint8)[:, None, None, None] + np.zeros((2, 4, 90, 3), np.uint8)
    journal = Journal(tmp_path, 0, 9, quiet=True)
    journal.pictures(0, {"source": one, "edit": one + 10})
    journal.close()
    sheet = np.asarray(Image.open(tmp_path / PICTURES / "00000000.png"))
    pictures = sheet[-8 - 8 : -8]
    np.testing.assert_array_equal(pictures[::4, 8:-8:98, 0], [[0, 10], [1, 11]])
    assert (sheet[: -8 - 8] < 128).any()  # the names


def test_without_a_terminal_losses_and_speed_are_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(tmp_path, 0, 9)
    journal.scalars(1, {"cycle/loss": 0.25, "cycle/norm": 1}, {"speed/images_per_second": 12.5})
    journal.close()
    assert capsys.readouterr().err == "step 1: cycle/loss 0.25, speed/images_per_second 12.5\n"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        Journal(tmp_path / "file", 0, 1)


def test_the_meter_leaves_pauses_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    meter = Meter(images=4, operations=100, peak=1000.0)
    with meter.paused():
        clock[0] += 50
    with meter.waiting():
        clock[0] += 1
    clock[0] += 3
    meter.steps += 2
    report = meter.report()
    assert report == {
        "speed/images_per_second": 2.0,
        "speed/share_waiting": 0.25,
        "speed/share_of_peak": 0.05,
    }
