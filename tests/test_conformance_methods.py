"""Conformance of the methods that the paper compares with: recordings of their original code."""

from pathlib import Path

import pytest

from tests.conftest import recordings
from tests.test_conformance import passes


@pytest.fixture(scope="session")
def baselines() -> Path:
    """The folder of these recordings: beside the other ones."""
    return recordings("baselines")


def test_tables_of_prompts(baselines: Path) -> None:
    passes(baselines, "p2p_aligner")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.timeout(3600)
def test_all_methods_reproduce_the_recorded_ones(baselines: Path) -> None:
    passes(baselines, "*")
