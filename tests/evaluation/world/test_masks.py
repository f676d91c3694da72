"""What masks and strengths do on the world: the command, around an editor that is none."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ie_jax.editing.editor import EditResult
from ie_jax.errors import UserError
from ie_jax.evaluation.__main__ import evaluation
from ie_jax.evaluation.world import masks


def test_share_of_union() -> None:
    one = np.array([[[1, 1, 0, 0]], [[0, 0, 0, 0]]], bool)
    other = np.array([[[0, 1, 1, 0]], [[0, 0, 0, 0]]], bool)
    found = masks.union_shares(one, other)
    assert found[0] == pytest.approx(1 / 3) and np.isnan(found[1])


class Copier:
    """Gives each picture back, changed where a mask lets it."""

    def invert(self, pixels: Any, prompts: Any, seeds: Any) -> np.ndarray:
        return np.stack(pixels)

    def edit(self, pixels: Any, targets: Any, strength: Any, mask: Any) -> EditResult:
        b, e = len(pixels), len(strength)
        area = np.zeros((b, e, 64, 64), bool)
        if mask == "auto":
            area[..., :32, :] = True
        elif mask is not None:
            area[:] = np.stack(mask)[:, None]
        images = np.repeat(pixels[:, None], e, axis=1)
        return EditResult(images, {}, None if mask is None else area)


def test_tables_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scores(model: Any, size: int, pixels: np.ndarray, edits: Any) -> dict[str, np.ndarray]:
        names = ("success", "changed", "psnr_outside_mask", "psnr_to_truth", "perceptual_to_truth")
        return {name: np.ones(len(pixels)) for name in (*names, "distance")}

    source = SimpleNamespace(from_pretrained=lambda **_: Copier())
    monkeypatch.setattr(masks, "Editor", source)
    monkeypatch.setattr(masks, "load_model", lambda *_: None)
    monkeypatch.setattr(masks, "scores", scores)
    output = tmp_path / "out"
    argv = ["--scenes", "3", "--strengths", "0", "1", "--output", str(output), "--quiet"]
    evaluation(["masks", *argv, "--margins", "2"])
    rows = json.loads((output / "results.json").read_text())
    whole = {row["mask"]: row for row in rows["mask"] if row["kind"] == "all"}
    assert whole["true"]["iou"]["mean"] == 1 and whole["none"]["iou"]["mean"] is None
    assert 0 < whole["auto"]["iou"]["mean"] < 1
    assert 0.5 < whole["true + 2 px"]["iou"]["mean"] < 1
    share = whole["none"]["success"]
    assert share["mean"] == share["high"] == 1 and 0 < share["low"] < 1
    assert {row["strength"] for row in rows["strength"]} == {0.0, 1.0}
    assert {x.name for x in output.glob("*.png")} == {"masks.png", "strengths.png"}
    with pytest.raises(UserError, match="one that models are trained on"):
        evaluation(["masks", "--seed", "3", "--output", str(tmp_path / "other")])
    with pytest.raises(UserError, match="places 3 must be 1 or 2"):
        evaluation(["masks", "--places", "3", "--output", str(tmp_path / "other")])
