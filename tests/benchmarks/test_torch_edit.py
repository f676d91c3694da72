"""The PyTorch counterpart computes what ours computes."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.edits import GUIDERS, SCALES
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.weights.load import load_pipeline

REASON = "the PyTorch counterpart needs it: pip install 'ie_jax[dev]'"
pytest.importorskip("torch", reason=REASON)
pytest.importorskip("diffusers", reason=REASON)

from benchmarks.torch_edit import TorchEditor  # noqa: E402


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """The relative L2 error."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.slow
@pytest.mark.parametrize("guided", [True, False])
def test_computes_the_same_as_the_editor(checkpoints: Path, guided: bool) -> None:
    config = EditConfig(str(checkpoints), guiders=GUIDERS if guided else ())
    editor = Editor.from_pretrained(config=config, progress=False)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 3), np.uint8)
    source, target = "a photo of a cat", "a photo of a dog"
    inversion = editor.invert(pixels, source)
    expected = editor.programs["edit"](
        editor.weights, inversion, *editor.edit_arguments(1, pixels.shape[1:3], target)
    )

    found = TorchEditor(load_pipeline(str(checkpoints), offline=True))(
        pixels,
        editor.ids([source]),
        editor.ids([target]),
        np.asarray(editor.noise(pixels, None)),
        scales=SCALES if guided else None,
    )
    assert relative(found.inversion, np.asarray(inversion.latents)) < 1e-4
    assert relative(found.latents, np.asarray(expected.latents[:, :, 0])) < 1e-4
    levels = np.abs(found.pixels.astype(int) - np.asarray(expected.pixels[:, 0]).astype(int))
    assert levels.max() <= 2
