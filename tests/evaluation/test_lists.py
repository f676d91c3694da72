"""Lists of one's own images: what is read, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.ExifTags import Base

from ie_jax.errors import UserError
from ie_jax.evaluation.lists import read_cases
from ie_jax.evaluation.protocols import listed

EDIT = {"image": "a.png", "source": "a cat", "target": "a dog"}


def as_list(folder: Path, *lines: Any) -> Path:
    """A list beside a photo, its mask and its truth, and a picture of another size."""
    for name, size in (("a", (24, 16)), ("mask", (24, 16)), ("truth", (24, 16)), ("b", (16, 24))):
        Image.new("RGB", size, "red").save(folder / f"{name}.png")
    path = folder / "edits.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_a_line_is_an_edit_for_each_target(tmp_path: Path) -> None:
    known = {"mask": "mask.png", "truth": "truth.png", "kind": "animals", "name": "one", "seed": 4}
    first, *others = read_cases(
        as_list(tmp_path, {**EDIT, **known}, {**EDIT, "target": ["a fox", "a cow"]}), 7
    )
    assert (first.job.name, first.job.seed, first.kind) == ("one", 4, "animals")
    assert (first.mask, first.truth) == (str(tmp_path / "mask.png"), str(tmp_path / "truth.png"))
    assert [(x.job.name, x.job.targets) for x in others] == [
        ("00002-a-1", ("a fox",)),
        ("00002-a-2", ("a cow",)),
    ]
    assert {(x.mask, x.truth, x.kind, x.job.seed) for x in others} == {(None, None, "", 7)}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"image": "none.png"}, "line 1: there is no image .*none.png"),
        ({"mask": "none.png"}, "line 1: there is no mask .*none.png"),
        ({"mask": "b.png"}, "line 1: the mask has 16x24 pixels, the image 24x16"),
        ({"truth": "b.png"}, "line 1: the truth has 16x24 pixels, the image 24x16"),
        ({"truth": "a.png", "target": ["a", "b"]}, "takes one target"),
        ({"targets": "a"}, "targets"),
        ({"target": " "}, "must be texts and not empty"),
    ],
)
def test_bad_lines_are_told(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        listed(["--data", str(as_list(tmp_path, EDIT | values))])


def test_a_photo_on_its_side_has_the_size_that_it_is_seen_in(tmp_path: Path) -> None:
    path = as_list(tmp_path, EDIT | {"image": "turned.jpg", "mask": "mask.png"})
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    Image.new("RGB", (16, 24)).save(tmp_path / "turned.jpg", exif=exif)
    assert len(read_cases(path, 0)) == 1


def test_metrics_without_what_they_need_are_told(tmp_path: Path) -> None:
    given = ["--data", str(as_list(tmp_path, EDIT)), "--metrics"]
    for metric, problem in (
        ("psnr_outside", "psnr_outside needs a mask, and no image has one"),
        ("mse_truth", "mse_truth needs a truth, and no image has one"),
        ("world_success", "world_success is of the world's scenes alone"),
    ):
        with pytest.raises(UserError, match=problem):
            listed([*given, metric])
    with pytest.raises(UserError, match=r"--data is missing.*or the list"):
        listed([])
    with pytest.raises(UserError, match="holds no edits"):
        listed(["--data", str(as_list(tmp_path))])
