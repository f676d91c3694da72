"""Conformance of the methods that the paper compares with: recordings of their original code."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_conformance import passes

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.fixture(scope="session")
def baselines() -> Path:
    """The folder of these recordings: beside the other ones."""
    goldens = Path(os.environ.get("IE_JAX_GOLDENS") or ROOT.parent / "shared" / "goldens")
    folder = goldens.parent / "goldens-baselines"
    if not folder.is_dir():
        pytest.skip(f"needs the recorded data of other methods in {folder}")
    return folder


def test_tables_of_prompts(baselines: Path) -> None:
    passes(baselines, "p2p_aligner")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_methods_reproduce_the_recorded_ones(baselines: Path) -> None:
    passes(baselines, "*")
