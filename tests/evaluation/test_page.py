"""Tables, plots and the page of a run's results."""

import csv
import io
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ie_jax.data.images import read_rgb
from ie_jax.editing.config import EditConfig, GuiderConfig
from ie_jax.editing.jobs import Job
from ie_jax.evaluation import page
from ie_jax.evaluation.metrics.means import Interval
from ie_jax.evaluation.metrics.table import METRICS
from ie_jax.evaluation.plots import GAP, Point, apart, figure, png, scatter
from ie_jax.evaluation.published import EDITS, MANY_PHOTOS, published
from ie_jax.evaluation.runner import Case, Line, as_text
from ie_jax.evaluation.tables import (
    beside_paper,
    comma_separated,
    escaped,
    gains,
    latex,
    markdown,
    rows_of,
    summary,
    write_tables,
)

CONFIGS = {"ours": EditConfig(), "p2p": EditConfig(method="p2p")}


def case(folder: Path, name: str, kind: str = "") -> Case:
    """An image with a truth, whose files need not be there."""
    job = Job(name, str(folder / f"{name}.png"), "a <cat>", ("a dog",), 0)
    return Case(job, kind, truth=str(folder / f"{name}.png"))


def line(name: str, kind: str = "", **metrics: Any) -> Line:
    """What is known of a result."""
    return Line(name, kind, "", 0.5, 8, metrics)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, list[Case]]:
    """A run of two methods over two kinds of edits: four images of the one, one of the other."""
    rng = np.random.default_rng(0)
    cases = [case(tmp_path, str(i), "one" if i < 4 else "other") for i in range(5)]
    for method in ("", *CONFIGS):
        (tmp_path / method).mkdir(exist_ok=True)
        for each in cases:
            pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / method / f"{each.job.name}.png")
    for k, method in enumerate(CONFIGS):
        lines = [
            line(x.job.name, x.kind, psnr_truth=20.0 + i - k, psnr_outside=30.0, clip_b32=0.3)
            for i, x in enumerate(cases)
        ]
        (tmp_path / f"{method}.jsonl").write_text("".join(map(as_text, lines)))
    return tmp_path, cases


def read(path: str) -> np.ndarray:
    """A picture."""
    return read_rgb(Path(path), path)


# --- tables ---


def test_every_mean_is_that_of_the_lines(run: tuple[Path, list[Case]]) -> None:
    folder, cases = run
    write_tables(folder, rows_of(folder, "list", CONFIGS, cases))
    with (folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {row["method"] for row in table} == set(CONFIGS)
    for row in table:
        texts = (folder / f"{row['method']}.jsonl").read_text().splitlines()
        lines = [x for x in map(json.loads, texts) if row["kind"] in ("", x["kind"])]
        metric = row["metric"]
        if metric == "edited":
            assert float(row["mean"]) == len(lines) / len(cases)
            continue
        values = [x[metric] if metric in x else x["metrics"][metric] for x in lines]
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert int(row["count"]) == len(values)


def test_tables_in_three_forms(run: tuple[Path, list[Case]]) -> None:
    folder, cases = run
    rows = rows_of(folder, "list", CONFIGS, cases)
    lines = markdown(rows).splitlines()
    assert len({text.count("|") for text in lines[:4]}) == 1 and lines[2].startswith("| ours |")
    assert "psnr\\_truth" in latex(rows) and latex(rows).count(r"\\") == 3
    assert escaped("50 % [1, 2]") == r"50 \% {\scriptsize [1, 2]}"
    assert comma_separated(rows).splitlines()[0].startswith("method,kind,metric,mean")
    # The images of a batch share their time: an interval would be too narrow.
    (seconds,) = (x for x in rows if (x.method, x.metric) == ("ours", "seconds"))
    assert seconds.value == {"mean": 0.5, "low": None, "high": None, "count": 5}


def test_the_papers_numbers_stand_beside_what_it_measured_alone() -> None:
    cases = [case(Path(), str(i)) for i in range(420)]
    guided = EditConfig(guiders=(GuiderConfig("features_map_l2", 1.0),))
    assert published("pie-bench", cases, guided) == EDITS["ours, guided"]
    assert published("pie-bench", cases, EditConfig())["dinov2"].value == 0.719
    assert published("pie-bench", cases, CONFIGS["p2p"]) == {}
    for protocol, images in (("pie-bench", cases[:-1]), ("list", cases), ("coco", cases)):
        assert published(protocol, images, EditConfig()) == {}
    photos = cases[:1] * (MANY_PHOTOS + 1)
    assert published("coco", photos, EditConfig())["lpips_vgg"] == (0.309, "Table 1")
    lines = [line(x.job.name, dinov2=0.7 + 0.0 * i) for i, x in enumerate(cases)]
    rows = summary("ours", lines, cases, published("pie-bench", cases, EditConfig()))
    ((method, metric, _, paper, difference, table),) = beside_paper(rows)
    assert (method, metric, paper, difference, table) == (
        *("ours", "dinov2", "0.719", "-0.019", "Table 3"),
    )


def test_differences_are_of_the_same_images(run: tuple[Path, list[Case]]) -> None:
    folder, cases = run
    rows = rows_of(folder, "list", CONFIGS, cases)
    found = {(x.method, x.metric): x.gain for x in rows if not x.kind}
    assert found["ours", "psnr_truth"] is None
    # Each image has 1 dB less, however much the images differ.
    assert found["p2p", "psnr_truth"] == {"mean": -1.0, "low": -1.0, "high": -1.0, "count": 5}
    table = gains(rows)
    assert table and table.title.startswith("Difference to ours")
    assert table.body == [("p2p", "-1 [-1, -1]", "0 [0, 0]", "0 [0, 0]")]
    assert gains([row for row in rows if row.method == "ours"]) is None


# --- plots and the page ---


@pytest.mark.parametrize("wanted", [[0.9, 0.9, 0.9], [1.2, 0.5, 0.1], [0.05] * 4, [0.0] * 18])
def test_labels_stay_apart_and_in_order(wanted: Sequence[float]) -> None:
    found = apart(wanted, GAP)
    assert all(one - other >= GAP - 1e-9 for one, other in itertools.pairwise(found))
    assert max(found) <= 1 and min(found) >= -1e-9


def test_each_point_has_one_label_and_no_line_without_order() -> None:
    def value(x: float | None) -> Interval:
        return Interval(mean=x, low=x, high=x, count=1)

    points = [Point(str(x), value(x), value(0.5)) for x in (1.0, 2.0, 3.0)]
    nothing = Point("none", value(None), value(1.0))
    for line_through in (False, True):
        drawn = figure()
        axes = drawn.subplots()
        scatter(axes, [*points, nothing], line=line_through)
        assert sorted(text.get_text() for text in axes.texts) == ["1.0", "2.0", "3.0"]
        joined = [x for x in axes.lines if len(x.get_xdata()) == 3]
        assert len(joined) == line_through
        low, high = axes.get_xlim()
        assert low <= 1 and high >= 3
    assert Image.open(io.BytesIO(png(drawn))).size[0] > 500


def test_one_method_is_plotted_too(run: tuple[Path, list[Case]]) -> None:
    folder, cases = run
    rows = rows_of(folder, "list", {"ours": CONFIGS["ours"]}, cases)
    drawn = dict(page.figures(rows))
    assert list(drawn) == ["tradeoff", "cost"]
    assert all(Image.open(io.BytesIO(png(x))).size[0] > 500 for x in drawn.values())


def test_the_page_holds_everything(run: tuple[Path, list[Case]]) -> None:
    folder, cases = run
    rows = rows_of(folder, "list", CONFIGS, cases)
    assert page.write_page(folder, {"protocol": "list", "model": "m"}, CONFIGS, cases, rows, read)
    text = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "a &lt;cat&gt;" in text and "<cat>" not in text
    metric, groups = page.grids(folder, list(CONFIGS), cases, read)
    assert metric == "psnr_truth"
    ranks = [(kind, x.rank, x.case.job.name) for kind, rows in groups.items() for x in rows]
    assert ranks == [
        *(("one", "best", "3"), ("one", "median", "2"), ("one", "worst", "0")),
        ("other", "the only one", "4"),
    ]
    shown = groups["one"][0]
    assert list(shown.pictures) == ["source", "ours", "p2p", "truth"]
    np.testing.assert_array_equal(shown.pictures["p2p"], read(str(folder / "p2p" / "3.png")))
    assert shown.values == {"ours": "23", "p2p": "22"}
    with Image.open(folder / "pictures.png") as picture:
        assert picture.size[0] > 4 * 80
    assert (folder / "tradeoff.png").exists() and (folder / "cost.png").exists()


def test_lower_is_better_where_it_is(run: tuple[Path, list[Case]]) -> None:
    folder, cases = run
    for method in CONFIGS:
        lines = [line(x.job.name, lpips_vgg_truth=float(i)) for i, x in enumerate(cases)]
        (folder / f"{method}.jsonl").write_text("".join(map(as_text, lines)))
    _, groups = page.grids(folder, list(CONFIGS), cases, read)
    assert groups["one"][0].case.job.name == "0"
    names, body = page.table(summary("ours", [line("0", mse=0.1)], cases[:1]), "")
    assert names[-1] == "mse" and body["ours"][-1] == ("0.1", "", "")


def test_without_its_libraries_there_is_no_page(
    run: tuple[Path, list[Case]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cases = run
    monkeypatch.setattr(page, "find_spec", lambda name: None)
    rows = rows_of(folder, "list", CONFIGS, cases)
    assert not page.write_page(folder, {}, CONFIGS, cases, rows, read)
    assert not (folder / "report.html").exists()


def test_axes_are_labelled_in_words() -> None:
    assert page.title("psnr_truth") == "PSNR in dB to the exact result (higher is better)"
    assert page.title("lpips_vgg_unedited") == "LPIPS (VGG) outside the mask (lower is better)"
    assert page.title("structure_distance") == "structure distance (lower is better)"
    assert page.title("network_calls") == "network calls for one edit"
    for name in METRICS:
        assert "_" not in page.title(name)
