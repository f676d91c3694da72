"""Conformance of the metrics: recordings of the code that published numbers come from."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.test_conformance import passes

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.fixture(scope="session")
def metrics() -> Path:
    """The folder of these recordings: beside the other ones."""
    pytest.importorskip("torch", reason="needs torch: pip install 'ie_jax[evaluation]'")
    goldens = Path(os.environ.get("IE_JAX_GOLDENS") or ROOT.parent / "shared" / "goldens")
    folder = goldens.parent / "goldens-metrics"
    if not folder.is_dir():
        pytest.skip(f"needs the recorded metrics in {folder}")
    return folder


@pytest.mark.long("imports torch and transformers, runs five networks")
def test_networks_masks_and_pictures(metrics: Path) -> None:
    passes(metrics, "pictures", "masks", "coco", "features")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_metrics_reproduce_the_recorded_ones(metrics: Path) -> None:
    passes(metrics, "*")
