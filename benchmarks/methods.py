"""One picture and one table of all methods on the demo's scenes.

python -m benchmarks.methods --output methods.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import row, say, table
from ie_jax.cli import run
from ie_jax.data.panels import side_by_side
from ie_jax.data.world import caption, render
from ie_jax.editing.config import EditConfig
from ie_jax.editing.editor import Editor
from ie_jax.editing.images import check_writable, save_image
from ie_jax.evaluation.demo import decibels, sample_edits
from ie_jax.methods.table import METHODS, MethodConfig
from ie_jax.weights.load import use_compilation_cache

SHOWN = 104
"""Pixels of a side of a picture."""
SETTINGS = MethodConfig(steps=20, guidance=3.0, layout=3e3, appearance=50.0)
"""What suits the small model."""


def compare(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("methods.png"))
    parser.add_argument("--edits", type=int, default=4)
    options = parser.parse_args(argv)
    check_writable(options.output)
    use_compilation_cache()
    edits = sample_edits()[: options.edits]
    sources, truths = ([render(getattr(x, y)) for x in edits] for y in ("source", "target"))
    columns = {"source": sources}
    say("\n".join(table(["method", *(edit.kind for edit in edits)])))
    names: list[Any] = ["ours", *METHODS]
    for name in names:
        model = "world-icd" if name == "icd" else "world"
        config = EditConfig(model, method=name, baseline=SETTINGS, match_statistics=False)
        editor = Editor.from_pretrained(config=config, progress=False)
        targets = [[caption(edit.target)] for edit in edits]
        found = editor.apply(sources, [caption(edit.source) for edit in edits], targets)
        columns[name] = list(np.asarray(found.pixels)[:, 0])
        numbers = [decibels(a, b) for a, b in zip(columns[name], truths, strict=True)]
        say(row([name, *(f"{x:.1f}" for x in numbers)]))
    columns["truth"] = truths
    shown = [(name, np.concatenate([*map(enlarged, x)])) for name, x in columns.items()]
    save_image(side_by_side(shown), options.output)


def enlarged(picture: np.ndarray) -> np.ndarray:
    """A picture at the shown size."""
    return np.asarray(Image.fromarray(picture).resize((SHOWN, SHOWN)))


if __name__ == "__main__":
    run(compare)
