"""What is going on is told, and how long it took."""

import pytest

from ie_jax.progress import WAIT, Stages


def test_without_a_terminal_a_stage_is_told_before_it_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = Stages()
    with stages("compile edit"):
        assert capsys.readouterr().err == f"compile edit{WAIT} ...\n"
    assert capsys.readouterr().err.startswith("compile edit: 0.0 s")
    assert list(stages.seconds) == ["compile edit"]


def test_quiet_tells_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages(quiet=True)("load"):
        pass
    assert capsys.readouterr().err == ""
