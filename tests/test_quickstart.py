"""The notebook of the docs runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ie_jax.weights.untrained import RANDOM_CONFIGS
from tests.tiny import SMALLEST

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
CELLS = [x for x in json.loads(NOTEBOOK.read_text())["cells"] if x["cell_type"] == "code"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for part, changes in SMALLEST.items():
        monkeypatch.setitem(RANDOM_CONFIGS, part, RANDOM_CONFIGS[part] | changes)
    yield


def run(model: str) -> dict[str, Any]:
    """All cells in one namespace, with this model."""
    space: dict[str, Any] = {}
    for cell in CELLS:
        exec("".join(cell["source"]).replace('"world"', f'"{model}"'), space)
    return space


def test_ten_cells_have_their_outputs() -> None:
    assert len(CELLS) == 10
    assert all(cell["outputs"] for cell in CELLS[:-1])
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, 11))


@pytest.mark.long("five programs are compiled")
def test_the_cells_run(small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("random")
    assert (tmp_path / "edited.png").stat().st_size


@pytest.mark.slow
def test_the_cells_run_on_the_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space = run("world")
    assert space["held"].images.shape == (1, 3, 64, 64, 3)
