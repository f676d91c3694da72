"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from ie_jax.files import appearing_whole


@pytest.mark.parametrize("letter", ["a", "é", "猫", "🐈"])
def test_names_as_long_as_the_file_system_takes(letter: str, tmp_path: Path) -> None:
    path = tmp_path / (letter * (255 // len(letter.encode())))
    with appearing_whole(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff" * 120)
    with appearing_whole(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), appearing_whole(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert [path] == list(tmp_path.iterdir()) and path.read_bytes() == b"before"
