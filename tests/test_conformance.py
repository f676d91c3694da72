"""Conformance with the recorded data, and that the check itself can fail."""

import contextlib
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conformance import main

Change = Callable[[dict[str, np.ndarray]], None]


def conformance(folder: Path, *only: str) -> tuple[int, list[str], str]:
    """Exit status, lines on standard output and standard error of the command."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        status = main([str(folder), *(["--only", *only] if only else [])])
    return status, out.getvalue().splitlines(), errors.getvalue()


def passes(goldens: Path, *only: str) -> None:
    """Nothing fails of these cases."""
    status, lines, _ = conformance(goldens, *only)
    assert [line for line in lines if line.endswith("FAILED")] == []
    assert re.fullmatch(r"[1-9]\d* passed, 0 failed", lines[-1])
    assert status == 0


@pytest.mark.long("networks and inversion at the recorded size")
def test_parts_and_inversion_reproduce_the_recorded_ones(goldens: Path) -> None:
    passes(goldens, "A_[lmt]*", "A_vae*", "B_inversion*")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.timeout(1800)
def test_all_edits_reproduce_the_recorded_ones(goldens: Path) -> None:
    passes(goldens, "[ABCDE]*")


@pytest.fixture
def copy(goldens: Path, tmp_path: Path) -> Callable[[str, str, Change], Path]:
    """Makes a folder with one case of the goldens, under a new name and changed."""

    def make(case: str, name: str, change: Change) -> Path:
        folder = tmp_path / "recording"
        folder.mkdir()
        (folder / "checkpoints").symlink_to(goldens / "checkpoints")
        if (goldens / f"{case}.json").exists():
            shutil.copy(goldens / f"{case}.json", folder / f"{name}.json")
        with np.load(goldens / f"{case}.npz") as recorded:
            arrays = dict(recorded)
        change(arrays)
        np.savez(folder / f"{name}.npz", **arrays)
        return folder

    return make


def failures(lines: list[str]) -> list[tuple[str, str]]:
    """(case, array) of each failed line; the summary must agree."""
    failed = [(line.split()[0], line.split()[1]) for line in lines if line.endswith("FAILED")]
    assert lines[-1] == f"{len(lines) - 1 - len(failed)} passed, {len(failed)} failed"
    return failed


def test_a_wrong_and_an_unknown_array_fail_and_nothing_else(
    copy: Callable[[str, str, Change], Path],
) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        arrays["po_out"] = arrays["po_out"] * np.float32(1.0001)
        arrays["pob_out"] = arrays["pob_out"][:2]
        arrays["alphas_cumprod"][500] = np.nan
        arrays["ms_out0_u8"][0, 0, 0] ^= 8
        arrays["guidance_scale_embedding"] += np.float32(3e-3)  # within its tolerance
        arrays["surprise"] = np.zeros(3)

    status, lines, _ = conformance(copy("A_math", "A_math", change))
    wrong = ("alphas_cumprod", "po_out", "pob_out", "ms_out0_u8", "surprise")
    assert set(failures(lines)) == {("A_math", array) for array in wrong}
    assert status == 1


def test_a_crash_fails_every_array_of_its_case(copy: Callable[[str, str, Change], Path]) -> None:
    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays["po_pairs"]

    folder = copy("A_math", "A_math", change)
    shutil.copy(folder / "A_math.npz", folder / "A_novelty.npz")
    (folder / "E9_damaged.npz").write_bytes(b"not an archive")
    status, lines, _ = conformance(folder)
    cases = {case for case, _ in failures(lines)}
    assert cases == {"A_math", "A_novelty", "E9_damaged"}
    assert status == 1 and lines[-1].startswith("0 passed")


def test_other_folders_are_refused_in_one_line(goldens: Path, tmp_path: Path) -> None:
    for folder, only in ((tmp_path, ["*"]), (tmp_path / "none", ["*"]), (goldens, ["Z*"])):
        status, lines, error = conformance(folder, *only)
        assert (status, lines) == (2, [])
        assert str(folder) in error.splitlines()[-1]
