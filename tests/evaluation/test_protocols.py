"""PIE-Bench and COCO: what is read, what a kill leaves, and what bad input says."""

import json
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ie_jax.cli import run
from ie_jax.editing.config import EditConfig
from ie_jax.editing.jobs import Job
from ie_jax.errors import UserError
from ie_jax.evaluation import coco
from ie_jax.evaluation.__main__ import evaluation
from ie_jax.evaluation.compare import ALL, Protocol, Request, configs_of
from ie_jax.evaluation.pie_bench import PICTURES, in_paper, read_items
from ie_jax.evaluation.protocols import photos, pie
from ie_jax.evaluation.runner import Case, Line, as_text, claim, join_parts, lines_of, read_lines
from ie_jax.evaluation.tables import mean_of, summary
from ie_jax.files import alone_in
from ie_jax.methods.table import MethodConfig
from tests import forks
from tests.forks import Fork
from tests.tiny import shrink


def main(argv: Sequence[str]) -> None:
    """The command with the smallest model, as a program."""
    shrink()
    run(evaluation, argv)


def started(tmp_path: Path, *argv: Any, devices: int = 1) -> Fork:
    """The command, running."""
    output = tmp_path / f"run-{len(list(tmp_path.iterdir()))}.txt"
    options = (*argv, "--model", "random", "--quiet")
    return Fork(main, options, output, forks.devices(devices))


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A PIE-Bench of three pictures."""
    folder = tmp_path / "bench"
    mapping = {}
    for i in range(3):
        name = f"{i}1200000000{i}"
        path = folder / PICTURES / f"{i}_some" / f"{name}.png"
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((512, 512)).save(path)
        mapping[name] = {
            "image_path": f"{i}_some/{name}.png",
            "original_prompt": "a [cat] on a table",
            "editing_prompt": "a [dog] on a table",
            "editing_type_id": str(i),
            "blended_word": "cat dog",
            "mask": [1000 * i, 5000],
        }
    (folder / "mapping_file.json").write_text(json.dumps(mapping))
    return folder


def change(bench: Path, **values: Any) -> None:
    """Give the first edit other values."""
    path = bench / "mapping_file.json"
    mapping = json.loads(path.read_text())
    mapping[next(iter(mapping))] |= values
    path.write_text(json.dumps(mapping))


def refusal(*argv: Any) -> str:
    """What PIE-Bench's command says."""
    with pytest.raises(UserError) as caught:
        pie([str(word) for word in argv])
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- PIE-Bench ---


def test_edits_are_read_without_brackets(bench: Path) -> None:
    first, second, _ = read_items(bench)
    assert (first.source, first.target) == ("a cat on a table", "a dog on a table")
    assert (second.kind, second.mask.shape) == (1, (512, 512))
    assert second.mask.sum() > first.mask.sum() > 5000


def test_the_papers_edits_are_random_ones_and_those_of_photos(bench: Path) -> None:
    items = read_items(bench)
    found = [replace(item, name=f"{item.kind}{second}0") for item in items for second in "12"]
    assert [x.name for x in found if in_paper(x)] == ["010", "020", "120", "220"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"mask": [1, 2, 3]}, "the mask has 3 numbers"),
        ({"mask": "1 2"}, "has no mask"),
        ({"image_path": "none.png"}, "lacks 1 of 3 pictures, such as none.png"),
        ({"image_path": "../none.png"}, "leads out of the folder"),
        ({"editing_type_id": "10"}, "must be from 0 to 9"),
        ({"editing_prompt": 5}, "must have the texts"),
    ],
)
def test_a_damaged_mapping_is_told(bench: Path, values: dict[str, Any], problem: str) -> None:
    change(bench, **values)
    assert problem in refusal("--data", bench)


def test_bad_input_is_told_before_anything_is_written(bench: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    given = ("--data", bench, "--output", output, "--model", "random", "--metrics", "mse")
    assert "--data is missing" in refusal()
    assert "mapping_file.json is missing" in refusal("--data", tmp_path)
    assert "'beauty' is none of the metrics" in refusal(*given[:-1], "beauty")
    assert "'magic' is none of the methods" in refusal(*given, "--methods", "magic")
    assert "give --methods" in refusal(*given, "--method", "ddim")
    assert "must be positive" in refusal(*given, "--limit", "0")
    assert "must be a multiple" in refusal(*given, "--batch-size", "0")
    weights = ("--metrics", "lpips_alex", "--weights", tmp_path)
    assert "no LPIPS weights" in refusal(*given[:-2], *weights)
    assert not output.exists()


def test_a_folder_belongs_to_one_model_and_seed(tmp_path: Path) -> None:
    facts: dict[str, Any] = {"protocol": "some", "config": {"model": "random", "seed": 0}}
    claim(tmp_path, facts, {"p2p": {"steps": 20}})
    claim(tmp_path, facts, {"ours": {"steps": 4}})
    for name, value, problem in (("seed", 1, "seed 0, not 1"), ("model", "w", '"random", not "w"')):
        config = facts["config"] | {name: value}
        with pytest.raises(UserError, match=f"holds results of .*{problem}: name another --output"):
            claim(tmp_path, {**facts, "config": config}, {})
    with pytest.raises(UserError, match="holds results of steps 20, not 50"):
        claim(tmp_path, facts, {"p2p": {"steps": 50}})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="not from this program"):
        claim(tmp_path, facts, {})


def test_two_runs_into_one_folder_are_refused(bench: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    given = ("--data", bench, "--output", output, "--model", "random", "--metrics", "mse")
    with alone_in(output):
        assert "another run is writing there" in refusal(*given)
    (output / "a person's.txt").touch()
    assert "holds files that are not from this program" in refusal(*given)
    assert [path.name for path in output.iterdir()] == ["a person's.txt"]


def test_settings_of_single_methods(bench: Path, tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(
        "p2p: {baseline: {steps: 20}}\nguided: {guiders: [{name: features_map_l2, g_scale: 2}]}"
    )
    protocol = Protocol("some", [], (), "", settings={"p2p": {"seed": 3}, "icd": {"seed": 4}})
    config = EditConfig(model="random", baseline=MethodConfig(guidance=2.0))
    request = Request(settings=str(path), methods=("guided", "icd", "p2p"))
    guided, icd, p2p = configs_of(protocol, request, config, ()).values()
    assert guided.method == "ours" and guided.guiders[0].g_scale == 2
    assert (icd.method, icd.seed, icd.guiders) == ("icd", 4, ())
    assert (p2p.baseline.steps, p2p.baseline.guidance) == (20, 2.0)
    everything = configs_of(protocol, Request(settings=str(path)), config, ())
    assert list(everything) == [*ALL, "guided"]
    for text, problem in (
        ("p2p: {baseline: {step: 20}}", "step"),
        ("../p2p: {}", "must be a name for a folder"),
        ("p2p: 3", "must be a name for a folder"),
    ):
        path.write_text(text)
        assert problem in refusal("--data", bench, "--settings", path, "--model", "random")


def test_two_processes_give_what_one_gives(bench: Path, tmp_path: Path) -> None:
    lines = []
    for i, path in enumerate(sorted((bench / PICTURES).rglob("*.png"))):
        picture = {"image": str(path), "mask": str(path), "truth": str(path), "name": str(i)}
        lines.append(json.dumps({**picture, "source": "a cat", "target": "a dog"}))
    data = tmp_path / "edits.jsonl"
    data.write_text("\n".join(lines))
    given = ("list", "--data", data, "--methods", "ours", "--metrics", "psnr_outside", "mse_truth")
    group = ("--coordinator", forks.free_address(), "--processes", 2, "--output", tmp_path / "two")
    both = [started(tmp_path, *given, *group, "--process-id", i) for i in range(2)]
    alone = started(tmp_path, *given, "--output", tmp_path / "one")
    for fork in (*both, alone):
        status, _, errors = fork.wait()
        assert status == 0, errors
    one, two = (tmp_path / x for x in ("one", "two"))
    assert {x.name for x in one.iterdir()} == {x.name for x in two.iterdir()}
    found, expected = (lines_of(folder, "ours") for folder in (two, one))
    assert [line.name for line in found] == [line.name for line in expected] == ["0", "1", "2"]
    assert [line.metrics for line in found] == [line.metrics for line in expected]
    assert all(line.metrics["mse_truth"] > 0 for line in found)


def test_parts_are_joined_the_latest_line_wins(tmp_path: Path) -> None:
    cases = [Case(Job(name, "", "", ("",), 0), "") for name in "abc"]
    told = {
        "ours.jsonl": [("b", 1.0), ("a", 1.0)],
        "ours.1.jsonl": [("c", 2.0), ("a", 2.0)],
        "ours.guided.jsonl": [("a", 3.0)],
    }
    for moment, (file, rows) in enumerate(told.items()):
        lines = [Line(name, "", "", None, 8, {"mse": value}) for name, value in rows]
        (tmp_path / file).write_text("".join(map(as_text, lines)))
        os.utime(tmp_path / file, (moment, moment))
    join_parts(tmp_path, "ours", cases)
    assert [(x.name, x.metrics["mse"]) for x in read_lines(tmp_path / "ours.jsonl")] == [
        ("a", 2.0),
        ("b", 1.0),
        ("c", 2.0),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"ours.jsonl", "ours.guided.jsonl"}


@pytest.mark.long("three programs, each with a compilation")
def test_killed_and_started_again_gives_what_eight_devices_give(
    bench: Path, tmp_path: Path
) -> None:
    given = ("pie-bench", "--data", bench, "--methods", "ours", "--metrics", "mse", "ssim_unedited")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program = started(tmp_path, *given, "--output", killed)
    while not (killed / "ours" / "112000000001.json").exists() and program.poll() is None:
        time.sleep(0.01)
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    lines = killed / "ours.jsonl"
    lines.write_text((lines.read_text() if lines.exists() else "") + '{"name": "0120')
    status, _, errors = started(tmp_path, *given, "--output", killed).wait()
    assert status == 0, errors
    status, out, errors = started(tmp_path, *given, "--output", whole, devices=8).wait()
    assert status == 0, errors
    assert "results.csv" in out
    found, expected = (read_lines(folder / "ours.jsonl") for folder in (killed, whole))
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert (one.name, one.kind) == (other.name, other.kind)
        # Another number of devices may round a level the other way.
        assert one.metrics == pytest.approx(dict(other.metrics), rel=1e-3)


def test_means_are_by_kind_and_leave_out_empty_parts(tmp_path: Path) -> None:
    line = {"sha256": "", "seconds": None, "network_calls": 8}
    values = [("a", 1.0), ("a", None), ("b", "inf"), ("b", 3.0)]
    path = tmp_path / "ours.jsonl"
    texts = (
        json.dumps({**line, "name": str(i), "kind": kind, "metrics": {"psnr": value}})
        for i, (kind, value) in enumerate(values)
    )
    path.write_text("\n".join(texts))
    cases = [Case(Job(str(i), "", "", ("",), 0), "") for i in range(5)]
    lines = read_lines(path)
    rows = {(x.kind, x.metric): x.value for x in summary("ours", lines, cases)}
    assert (rows["", "psnr"]["mean"], rows["", "psnr"]["count"]) == (2.0, 2)
    assert rows["a", "psnr"] == {"mean": 1.0, "low": None, "high": None, "count": 1}
    assert rows["", "edited"]["mean"] == 0.8 and rows["", "network_calls"]["mean"] == 8
    assert rows["", "seconds"]["mean"] is None
    fewer = {(x.kind, x.metric): x.value for x in summary("ours", lines, cases[:1])}
    assert fewer["", "edited"]["mean"] == 1.0 and fewer["", "psnr"]["count"] == 1
    assert summary("ours", lines, []) == []


def test_shares_have_wilsons_interval() -> None:
    always = mean_of("world_success", np.ones(4))
    assert always == {"mean": 1.0, "low": pytest.approx(0.51, abs=0.01), "high": 1.0, "count": 4}
    assert mean_of("psnr", np.ones(4))["low"] == 1.0


# --- COCO ---


@pytest.fixture
def val2014(tmp_path: Path) -> Path:
    """A large and a small photo with COCO's annotations."""
    folder = tmp_path / "coco"
    (folder / "val2014").mkdir(parents=True)
    for name, size in (("b.png", (600, 512)), ("a.png", (511, 700))):
        Image.new("RGB", size, "red").save(folder / "val2014" / name)
    images = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate("abc")]
    told = [(0, "a"), (1, "an earlier one"), (1, " the last "), (2, "no photo"), (7, "no image")]
    annotations = [{"image_id": i, "caption": caption} for i, caption in told]
    content = {"images": images, "annotations": annotations}
    (folder / coco.ANNOTATIONS).write_text(json.dumps(content))
    return folder


def test_photos_and_their_last_captions(val2014: Path) -> None:
    found = coco.read_photos(val2014)
    assert [(x.path.name, x.caption) for x in found] == [("a.png", "a"), ("b.png", "the last")]
    assert [x.path.name for x in coco.read_photos(val2014, coco.SHORTEST)] == ["b.png"]
    (val2014 / "val2014.csv").write_text("file_name,caption\na.png,by the table\n")
    with pytest.warns(UserWarning, match="1 of 2 pictures have no caption"):
        assert [x.caption for x in coco.read_photos(val2014)] == ["by the table"]


def test_captions_of_other_photos_are_told(val2014: Path) -> None:
    for content, problem in (
        ({"images": [], "annotations": []}, "must name photos"),
        ({"images": [{"id": 0, "file_name": "../a.png"}]}, "is not COCO's captions"),
        ([], "is not COCO's captions"),
    ):
        (val2014 / coco.ANNOTATIONS).write_text(json.dumps(content))
        with pytest.raises(UserError, match=problem):
            photos(["--data", str(val2014)])
    image, caption = {"id": 0, "file_name": "z.png"}, {"image_id": 0, "caption": "z"}
    text = json.dumps({"images": [image], "annotations": [caption]})
    (val2014 / coco.ANNOTATIONS).write_text(text)
    with pytest.raises(UserError, match="holds none of the 1 captioned photos"):
        photos(["--data", str(val2014)])


def test_photos_come_back(val2014: Path, tmp_path: Path) -> None:
    given = ("coco", "--data", val2014, "--methods", "ours", "--metrics", "psnr", "mse")
    status, _, errors = started(tmp_path, *given, "--output", tmp_path / "out").wait()
    assert status == 0, errors
    (line,) = read_lines(tmp_path / "out" / "ours.jsonl")
    assert line.name == "b" and line.metrics["psnr"] == pytest.approx(
        -10 * np.log10(line.metrics["mse"])
    )
    record = json.loads((tmp_path / "out" / "ours" / "b.json").read_text())
    assert record["edit"]["targets"] == ["the last"]
    assert set(record["config"]["cfg_schedule"]) == {0}
