"""Caption files, sound and broken."""

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ie_jax.data.captions import read_table, text_captions
from ie_jax.errors import UserError


def table(folder: Path, content: str | bytes, name: str = "metadata.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_table(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
# The first line's byte order mark is no part of a name; \r is normalised where it ends a line.
names = texts.filter(lambda t: t == t.strip() and "\ufeff" not in t and "\r" not in t)
rows = st.lists(st.tuples(names, names), max_size=6)


def grouped(pairs: list[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    result: dict[str, tuple[str, ...]] = {}
    for file, caption in pairs:
        result[file] = (*result.get(file, ()), caption)
    return result


@settings(max_examples=100)
@given(pairs=rows, header=st.sampled_from(["file_name,caption", "Image,TEXT", "x,y,z"]))
@example(pairs=[("a.jpg", 'a line\u2028break, "quoted",\nand another')], header="x,y,z")
def test_csv_returns_what_was_written(
    pairs: list[tuple[str, str]], header: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = header.split(",")
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["7", *pair][-len(columns) :] for pair in pairs)
    path = table(tmp_path_factory.getbasetemp(), buffer.getvalue())
    assert {row.file: row.captions for row in read_table(path)} == grouped(pairs)


@settings(max_examples=100)
@given(pairs=rows, ascii_only=st.booleans(), blank=st.sampled_from(["", "\n", "  \n"]))
def test_jsonl_returns_what_was_written(
    pairs: list[tuple[str, str]],
    ascii_only: bool,
    blank: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    lines = [
        json.dumps({"text": caption, "file_name": file, "width": 3}, ensure_ascii=ascii_only)
        for file, caption in pairs
    ]
    path = table(tmp_path_factory.getbasetemp(), blank + f"\n{blank}".join(lines), "m.jsonl")
    assert {row.file: row.captions for row in read_table(path)} == grouped(pairs)


@settings(max_examples=200)
@given(
    content=st.one_of(
        st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))
    ),
    start=st.sampled_from([b"", b"file_name,text\n", b'{"file_name": "a", "text": "b"}\n']),
    name=st.sampled_from(["metadata.csv", "metadata.jsonl"]),
)
def test_anything_is_read_or_refused_in_one_line(
    content: bytes, start: bytes, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = table(tmp_path_factory.getbasetemp(), start + content, name)
    try:
        rows = read_table(path)
    except UserError as error:
        assert str(error).startswith(str(path)) and len(str(error).split("\n")) == 1
    else:
        assert all(isinstance(row.file, str) for row in rows)


def test_tabs_separate_where_the_header_has_them(tmp_path: Path) -> None:
    rows = read_table(table(tmp_path, "filepath\ttitle\na.jpg\tone, two\n"))
    assert [(row.file, row.captions) for row in rows] == [("a.jpg", ("one, two",))]


def test_commas_of_an_unquoted_caption_are_its_own_or_refused(tmp_path: Path) -> None:
    last, first = tmp_path / "last.csv", tmp_path / "first.csv"
    last.write_text("file_name,text\na.png,a cat\nb.png,a dog, asleep, alone\n")
    assert [row.captions for row in read_table(last)] == [("a cat",), ("a dog, asleep, alone",)]
    first.write_text("text,file_name\na cat,a.png\na dog, asleep,b.png\n")
    assert "line 3: has 3 cells, the header 2" in refusal(first)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert read_table(table(tmp_path, "\ufefffile_name,text\na,b\n"))[0].file == "a"


def test_a_caption_may_be_a_list(tmp_path: Path) -> None:
    path = table(tmp_path, '{"file_name": "a", "text": ["one ", "", 3, "two"]}', "m.jsonl")
    assert read_table(path)[0].captions == ("one", "two")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.csv", "file_name,text\na\n,b\n"),
        ("m.jsonl", '{"file_name": "a", "text": null}\n{"file_name": 7, "text": "b"}'),
    ],
)
def test_a_line_without_its_values_is_one_broken_row(
    name: str, content: str, tmp_path: Path
) -> None:
    path = table(tmp_path, content, name)
    lines = (2, 3) if name == "m.csv" else (1, 2)
    assert [(row.where, row.file, row.captions) for row in read_table(path)] == [
        (f"{path} line {lines[0]}", "a", ()),
        (f"{path} line {lines[1]}", "", ("b",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "", "has the columns nothing"),
        ("m.csv", "id,label\n1,2\n", "has the columns 'id', 'label': name one file_name"),
        ("m.csv", "file_name,label\n1,2\n", "'file_name', 'label'"),
        ("m.csv", "a,b,c,d\n1,2,3,4\n", "'a', 'b', 'c', 'd'"),
        ("m.csv", 'file_name,text\na,b\nc,"d\n', "line 3: is not CSV"),
        ("m.csv", b"file_name,text\na,\xff\n", r"is not UTF-8 text \(byte 17\)"),
        ("m.jsonl", '{"file_name": "a", "text": "b"}\n\n{"file', "line 3: is not JSON"),
        ("m.jsonl", "[1]", "line 1: must be an object"),
        ("m.jsonl", "[" * 100_000, "line 1: is not JSON"),
        ("m.jsonl", '{"image_id": 3, "text": "b"}', "line 1: has the columns 'image_id', 'text'"),
        ("m.jsonl", b"\xff", "is not UTF-8"),
    ],
)
def test_broken_tables_are_refused(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    path = table(tmp_path, content, name)
    with pytest.raises(UserError, match=message):
        read_table(path)
    refusal(path)


def test_unreadable_tables_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.csv")
    assert "directory" in refusal(tmp_path)


def test_each_line_beside_a_picture_is_a_caption(tmp_path: Path) -> None:
    path = table(tmp_path, "\ufeffa cat\r\n\r\n  a sleeping cat", "a.txt")
    assert text_captions(path) == ("a cat", "a sleeping cat")
    with pytest.raises(UserError, match="UTF-8"):
        text_captions(table(tmp_path, b"\xe9t\xe9", "b.txt"))
