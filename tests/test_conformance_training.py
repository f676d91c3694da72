"""Conformance of training with the recorded data, in a file of its own: files run side by side."""

from pathlib import Path

import pytest

from tests.test_conformance import passes

pytestmark = pytest.mark.usefixtures("optimised")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_training_on_latents_reproduces_the_recorded_ones(goldens: Path) -> None:
    passes(goldens, "F_batch", "F_*l2*", "F_*huber*", "F_losses")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_training_on_images_reproduces_the_recorded_ones(goldens: Path) -> None:
    passes(goldens, "F_*lpips*")
