"""Methods on the world's scenes: what is drawn, and how settings are chosen."""

from pathlib import Path

import numpy as np
import pytest

from ie_jax.data.images import read_rgb
from ie_jax.data.world.drawing import render
from ie_jax.data.world.scenes import draw_scene
from ie_jax.editing.config import EditConfig
from ie_jax.errors import UserError
from ie_jax.evaluation.__main__ import evaluation
from ie_jax.evaluation.compare import ALL, Request, configs_of
from ie_jax.evaluation.drawn import DrawnRequest, drawn_protocol, usual_settings
from ie_jax.evaluation.lists import read_cases
from ie_jax.evaluation.metrics.table import METRICS, Judges, Pair
from ie_jax.evaluation.tuning import GRIDS, best
from ie_jax.evaluation.world.model import model_folder
from ie_jax.methods.table import METHODS


def test_scenes_are_drawn_as_a_list_that_the_list_protocol_reads(tmp_path: Path) -> None:
    request = DrawnRequest(scenes=6, scene_seed=1234, output=str(tmp_path))
    protocol = drawn_protocol(request, EditConfig(seed=7))
    protocol.prepare()
    listed = read_cases(tmp_path / "scenes" / "edits.jsonl", 0)
    assert [x.job.name for x in listed] == [x.job.name for x in protocol.cases]
    for i, (one, other) in enumerate(zip(protocol.cases, listed, strict=True)):
        assert (one.job.image, one.truth, one.kind) == (other.job.image, other.truth, other.kind)
        assert (one.job.source, one.job.targets) == (other.job.source, other.job.targets)
        assert one.job.seed == 7 + i
        source = read_rgb(Path(one.job.image), "")
        np.testing.assert_array_equal(source, render(draw_scene(1234, i)))
        assert isinstance(other.mask, str) and isinstance(one.mask, np.ndarray)
        mask = read_rgb(Path(other.mask), "")[..., 0] > 127
        np.testing.assert_array_equal(mask, one.mask == 1)
        assert one.truth
        changed = (read_rgb(Path(one.truth), "") != source).any(-1)
        assert changed.any() and not (changed & ~mask).any()


def test_judges_know_the_exact_result(tmp_path: Path) -> None:
    request = DrawnRequest(scenes=4, output=str(tmp_path))
    protocol = drawn_protocol(request, EditConfig())
    protocol.prepare()
    judges = Judges(world=model_folder("world"))
    for case in protocol.cases:
        assert case.truth
        source, truth = (read_rgb(Path(x), x) for x in (case.job.image, case.truth))
        pair = Pair(source, truth, case.job.source, case.job.targets[0], None, truth)
        assert METRICS["world_success"](judges, pair) == 1.0
        assert METRICS["world_perceptual_truth"](judges, pair) == 0.0
        kept = Pair(source, source, case.job.source, case.job.targets[0], None, truth)
        assert METRICS["world_success"](judges, kept) == 0.0
        assert METRICS["world_perceptual_truth"](judges, kept) > 0.01
    with pytest.raises(UserError, match="no model of the world"):
        METRICS["world_success"](Judges(), pair)


def test_every_method_has_settings_for_the_world() -> None:
    protocol = drawn_protocol(DrawnRequest(scenes=1), EditConfig())
    configs = configs_of(protocol, Request(methods=("all",)), EditConfig(), ())
    assert list(configs) == [*ALL, "ours-guided"]
    assert set(usual_settings()) == set(GRIDS) == set(configs)
    assert configs["ours-guided"].guiders and not configs["ours"].guiders
    assert all(configs[name].method == name for name in METHODS)


def test_an_edit_is_to_be_done_first() -> None:
    rows = [
        {"settings": 1, "world_success": 1.0, "psnr_truth": 20.0},
        {"settings": 2, "world_success": 0.95, "psnr_truth": 22.0},
        {"settings": 3, "world_success": 0.5, "psnr_truth": 30.0},
    ]
    assert best(rows)["settings"] == 2


def test_bad_input_is_told(tmp_path: Path) -> None:
    for words, problem in (
        (["world", "--methods", "magic"], "'magic' is none of the methods ours, ddim"),
        (["world", "--methods", "ours", "--data", "x"], "--data is not of the world"),
        (["world", "--methods", "ours", "--scenes", "0"], "must be positive"),
        (["world", "--methods", "ours", "--places", "0"], "places 0 must be 1 or 2"),
        (["world", "--methods", "ours", "--scene-seed", "3"], "seed 3 is one that models are"),
        (["world", "--methods=ours", "--model", "nowhere"], "no model or folder named 'nowhere'"),
        (["tune", "--methods", "magic"], "'magic' is none of the methods"),
        (["tune", "--scene-seed", "3"], "seed 3 is one that models are trained on"),
        (["tune", "--scenes", "0"], "must be positive"),
        (["tune", "--output", str(tmp_path)], "is a folder|already|directory"),
    ):
        with pytest.raises(UserError, match=problem):
            evaluation(words)
