"""Sources: what each layout gives, and what each kind of bad one ends in."""

import io
import json
import os
import unicodedata
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ie_jax.data.images import read_rgb
from ie_jax.data.sources import Source, Tfds, coco_csv, folder
from ie_jax.errors import UserError
from tests.data.pictures import number_of, png, write_folder


def content(source: Source) -> list[tuple[int, tuple[str, ...]]]:
    """Number and captions of each picture."""
    examples = [source[i] for i in range(len(source))]
    return [(int(number_of(read_rgb(e.image, e.name))), e.captions) for e in examples]


# --- folders ---


def test_a_folder_with_a_table(tmp_path: Path) -> None:
    write_folder(tmp_path, 3, captions=2)
    assert content(folder(tmp_path)) == [(i, (f"{i} 0", f"{i} 1")) for i in range(3)]


def test_nested_folders_with_a_table_at_the_top(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "a.png").write_bytes(png(7))
    (tmp_path / "metadata.csv").write_text("file_name,text\ndeep/er/a.png,seven\n")
    assert content(folder(tmp_path)) == [(7, ("seven",))]


def test_nested_folders_with_a_table_each(tmp_path: Path) -> None:
    write_folder(tmp_path / "b", 2, start=5)
    write_folder(tmp_path / "a", 1)
    assert content(folder(tmp_path)) == [(0, ("0 0",)), (5, ("5 0",)), (6, ("6 0",))]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_folder(tmp_path / "elsewhere", 2)
    data = tmp_path / "data"
    write_folder(data / "own", 1, start=7)
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "linked again").symlink_to(tmp_path / "elsewhere")
    (data / "own" / "loop").symlink_to(data)
    found = content(folder(data))
    assert found == [(0, ("0 0",)), (1, ("1 0",)), (7, ("7 0",))]


def test_a_picture_in_two_tables_is_one_picture(tmp_path: Path) -> None:
    write_folder(tmp_path / "a", 2)
    lines = [{"file_name": f"b/../a/000{i}.png", "text": "top"} for i in range(2)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert content(folder(tmp_path)) == [(i, ("top", f"{i} 0")) for i in range(2)]


@pytest.mark.parametrize("suffix", [".caption", ".TXT", ".CAPTION"])
def test_other_texts_beside_pictures(suffix: str, tmp_path: Path) -> None:
    for number, end in ((0, ".txt"), (1, suffix)):
        path = tmp_path / f"{number}.jfif"
        path.write_bytes(png(number))
        path.with_suffix(end).write_text(f"caption {number}\n")
    assert content(folder(tmp_path)) == [(0, ("caption 0",)), (1, ("caption 1",))]


@pytest.mark.parametrize("name", ["sub\\a.png", "sub/a.png", "sub\\\\caf\u00e9.png"])
def test_names_in_tables_as_other_systems_write_them(name: str, tmp_path: Path) -> None:
    """Backslashes; and accents in one letter where the file has two, or the reverse."""
    plain = name.replace("\\\\", "/").replace("\\", "/")
    path = tmp_path / unicodedata.normalize("NFD", plain)
    path.parent.mkdir()
    path.write_bytes(png(3))
    row = {"file_name": name.replace("\\\\", "\\"), "text": "three"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert content(folder(tmp_path)) == [(3, ("three",))]


@pytest.mark.parametrize("name", ["../out.png", "{parent}/out.png", "a/../../out.png"])
def test_tables_do_not_leave_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "out.png").write_bytes(png(1))
    (tmp_path / "data").mkdir()
    row = {"file_name": name.format(parent=tmp_path), "text": "out"}
    (tmp_path / "data" / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=r"metadata\.jsonl line 1: .* lies outside of"):
        folder(tmp_path / "data")


def test_a_text_beside_each_picture(tmp_path: Path) -> None:
    for name, number in (("b.png", 2), ("sub/a.PNG", 1)):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(png(number))
        path.with_suffix(".txt").write_text(f"caption {number}\n")
    assert content(folder(tmp_path)) == [(2, ("caption 2",)), (1, ("caption 1",))]


@pytest.mark.parametrize("kind", ["table", "texts"])
def test_pictures_without_caption_are_left_out_with_a_warning(kind: str, tmp_path: Path) -> None:
    if kind == "table":
        write_folder(tmp_path, 2)
    else:
        (tmp_path / "0000.png").write_bytes(png(0))
        (tmp_path / "0000.txt").write_text("0 0")
    (tmp_path / "lonely.png").write_bytes(png(9))
    with pytest.warns(UserWarning, match=r"1 of \d pictures have no caption.*lonely\.png"):
        source = folder(tmp_path)
    assert 9 not in [number for number, _ in content(source)]


def test_hidden_files_take_no_part(tmp_path: Path) -> None:
    write_folder(tmp_path, 1)
    write_folder(tmp_path / ".cache", 1, start=4)
    (tmp_path / "._0000.png").write_bytes(b"")
    assert len(folder(tmp_path)) == 1


def test_single_broken_rows_break_single_images(tmp_path: Path) -> None:
    lines = [
        {"file_name": "0000.png", "text": "sound"},
        {"file_name": "0001.png", "text": " "},
        {"text": "of nothing"},
        {"file_name": "missing.png", "text": "not there"},
        {"file_name": "nul\0.png", "text": "no name"},
    ]
    write_folder(tmp_path, 2)
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = folder(tmp_path)
    assert source[0].captions == ("sound",)
    for index, message in ((1, "line 2: has no caption"), (2, "line 3: names no file")):
        with pytest.raises(UserError, match=message):
            source[index]
    for index in (3, 4):
        with pytest.raises(UserError, match="cannot be read"):
            read_rgb(source[index].image, source[index].name)


def test_an_undecodable_text_breaks_its_picture_only(tmp_path: Path) -> None:
    for name, text in (("a", b"fine"), ("b", b"\xff"), ("c", b"\n")):
        (tmp_path / f"{name}.png").write_bytes(png(1))
        (tmp_path / f"{name}.txt").write_bytes(text)
    source = folder(tmp_path)
    assert source[0].captions == ("fine",)
    for index, message in ((1, r"b\.txt: is not UTF-8"), (2, r"c\.txt: has no caption")):
        with pytest.raises(UserError, match=message):
            source[index]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "there is no such folder"),
        ({}, "holds no pictures"),
        ({"a.txt": b"caption"}, "holds no pictures"),
        ({"a.png": png(0)}, "no picture has a caption: write a metadata.jsonl"),
        ({"metadata.jsonl": b"", "a.png": png(0)}, "no picture has a caption"),
        (
            {"metadata.jsonl": b'{"file_name": "b.png", "text": "b"}'},
            "none of their 1 pictures.*b.png",
        ),
        ({"metadata.jsonl": b'{"file_name"\n'}, "metadata.jsonl line 1: is not JSON"),
        ({"metadata.csv": b"name,label\na,b\n"}, "metadata.csv: has the columns 'name', 'label'"),
        ({"metadata.csv": b"\xff"}, "is not UTF-8"),
    ],
)
def test_bad_folders_are_refused(
    files: dict[str, bytes] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    if files is not None:
        path.mkdir()
        for name, written in files.items():
            (path / name).write_bytes(written)
    with pytest.raises(UserError, match=message) as caught:
        folder(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(0o000)
    with pytest.raises(UserError, match="Permission denied"):
        folder(tmp_path)


# --- the original release's layout ---


def write_release(path: Path, table: str) -> Path:
    (path / "train2014").mkdir()
    for number in range(3):
        (path / "train2014" / f"{number}.png").write_bytes(png(number))
    (path / "train2014.csv").write_text(table)
    return path


@pytest.mark.parametrize(
    "table",
    [
        ",file,title\n0,0.png,zero\n1,1.png,one\n2,2.png,two\n",
        ",image_name,what\n0,0.png,zero\n1,1.png,one\n2,2.png,two\n",
        "caption,file_name\nzero,0.png\none,1.png\ntwo,train2014/2.png\n",
    ],
)
def test_the_release_layout(table: str, tmp_path: Path) -> None:
    source = coco_csv(write_release(tmp_path, table), "train2014")
    assert content(source) == [(0, ("zero",)), (1, ("one",)), (2, ("two",))]


def test_several_lines_give_several_captions(tmp_path: Path) -> None:
    table = "file_name,caption\n0.png,a\n1.png,b\n0.png,c\n2.png,d\n"
    source = coco_csv(write_release(tmp_path, table), "train2014")
    assert content(source) == [(0, ("a", "c")), (1, ("b",)), (2, ("d",))]


def test_bad_release_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="val2014: there is no such folder"):
        coco_csv(tmp_path, "val2014")
    write_release(tmp_path, "id,name\n1,a\n")
    with pytest.raises(UserError, match=r"train2014\.csv: has the columns 'id', 'name'"):
        coco_csv(tmp_path, "train2014")
    (tmp_path / "train2014.csv").write_text("file_name,caption\nother.png,c\n")
    with pytest.raises(UserError, match=r"none of their 1 pictures.*other\.png"):
        coco_csv(tmp_path, "train2014")
    (tmp_path / "train2014.csv").write_text("file_name,caption\n")
    with pytest.raises(UserError, match="holds no captions"):
        coco_csv(tmp_path, "train2014")
    (tmp_path / "train2014.csv").unlink()
    with pytest.raises(UserError, match=r"train2014\.csv is missing"):
        coco_csv(tmp_path, "train2014")


# --- TFDS ---


def prepare(folder: Path, counts: dict[str, int], drop: str = "") -> Path:
    """MS-COCO as TFDS prepares it, with pictures of ours."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image/filename": tfds.features.Text(),
        "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
    }
    features.pop(drop, None)

    def examples(start: int, count: int) -> Any:
        for i in range(start, start + count):
            example = {
                "image": io.BytesIO(png(i)),
                "image/filename": f"{i}.png",
                "captions": [{"id": k, "text": f"é {i} {k}"} for k in range(1 + i % 3)],
            }
            yield i, {name: example[name] for name in features}

    base: Any = tfds.core.GeneratorBasedBuilder

    class CocoCaptions(base, skip_registration=True):  # type: ignore[call-arg]
        code_path = None  # of no installed package
        VERSION = tfds.core.Version("1.1.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2014")]  # noqa: RUF012

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _: Any) -> Any:
            return {name: examples(100 * k, n) for k, (name, n) in enumerate(counts.items())}

        def _generate_examples(self) -> Any: ...

    with warnings.catch_warnings(action="ignore"):
        builder = CocoCaptions(data_dir=folder, file_format="array_record", config="2014")
        builder.download_and_prepare()
    return Path(builder.data_dir)


def test_a_prepared_data_set(tmp_path: Path) -> None:
    version = prepare(tmp_path, {"train": 5, "val": 2})
    for path in (tmp_path, version):
        found = dict(content(Tfds(path, "train")))
        assert found == {i: tuple(f"é {i} {k}" for k in range(1 + i % 3)) for i in range(5)}
        assert {number for number, _ in content(Tfds(path, "val"))} == {100, 101}
    part = Tfds(tmp_path, "train[1:3]")
    assert len(part) == 2 and part.base_splits == {"train"}
    assert Tfds(tmp_path, "train[:1]+val").base_splits == {"train", "val"}
    assert part[0].name.endswith(".png")
    with pytest.raises(UserError, match=r"cannot read split 'nope'.*train.*val"):
        Tfds(tmp_path, "nope")


def test_the_newest_version_is_taken(tmp_path: Path) -> None:
    version = prepare(tmp_path, {"train": 2})
    older, newer = version.with_name("1.0.9"), version.with_name("1.10.0")
    older.mkdir()
    (older / "dataset_info.json").write_text("{}")
    version.rename(newer)
    assert "1.10.0" in Tfds(tmp_path, "train").description


def test_a_data_set_without_captions_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, {"train": 1}, drop="captions")
    with pytest.raises(UserError, match="has the features image, image/filename"):
        Tfds(tmp_path, "train")


def test_damaged_records_are_broken_images(tmp_path: Path) -> None:
    version = prepare(tmp_path, {"train": 3})
    source = Tfds(tmp_path, "train")

    class Damaged:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            if index:
                raise ValueError("checksum")
            return {"image": png(0), "captions": {"text": [b"\xff"]}}

    source.records = Damaged()
    for index, message in ((0, "train image 0: its text"), (1, "train image 1: .*checksum")):
        with pytest.raises(UserError, match=message):
            source[index]
    (version / "features.json").write_text("{")
    with pytest.raises(UserError, match="cannot read split"):
        Tfds(tmp_path, "train")


def test_what_was_never_prepared_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets")
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="holds no prepared data set"):
            Tfds(path, "train")


def test_without_tfds_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'ie_jax\[tfds\]'"):
        Tfds(tmp_path, "train")
