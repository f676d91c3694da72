"""Conformance of the metrics: recordings of the code that published numbers come from."""

from pathlib import Path

import pytest

from tests.conftest import recordings
from tests.test_conformance import passes


@pytest.fixture(scope="session")
def metrics() -> Path:
    """The folder of these recordings: beside the other ones."""
    pytest.importorskip("torch", reason="needs torch: pip install 'ie_jax[evaluation]'")
    return recordings("metrics")


@pytest.mark.long("imports torch and transformers, runs five networks")
def test_networks_masks_and_pictures(metrics: Path) -> None:
    passes(metrics, "pictures", "masks", "coco", "features")


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.timeout(1800)
def test_all_metrics_reproduce_the_recorded_ones(metrics: Path) -> None:
    passes(metrics, "*")
