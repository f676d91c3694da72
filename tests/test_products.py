"""Which files a command may replace: its own, as it left them."""

import json
from pathlib import Path
from typing import Any

import pytest

from ie_jax import products
from ie_jax.errors import UserError
from ie_jax.files import appearing_whole
from ie_jax.products import OWN, check_folder, check_free, is_finished, leave, read_record


@pytest.fixture
def written(tmp_path: Path) -> tuple[list[Path], Path]:
    """Two files and their record, as a run leaves them."""
    paths = [tmp_path / "a-1.png", tmp_path / "a-2.png"]
    record = tmp_path / "a.json"
    leave({path: path.name.encode() for path in paths}, record, {"seed": 3})
    return paths, record


def refused(paths: list[Path], record: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_free(paths, record, **options)
    message = str(caught.value)
    assert "--overwrite" in message and "\n" not in message
    check_free(paths, record, **options, overwrite=True)
    return message


def test_its_own_files_and_new_names_are_free(
    written: tuple[list[Path], Path], tmp_path: Path
) -> None:
    check_free(*written)
    check_free([*written[0], tmp_path / "a-3.png"], written[1])
    check_free([tmp_path / "new.png"], tmp_path / "new.json")


def test_a_file_changed_since_is_a_persons(written: tuple[list[Path], Path]) -> None:
    paths, record = written
    paths[1].write_bytes(b"retouched")
    assert refused(paths, record).startswith(f"{paths[1]}: ")


@pytest.mark.parametrize(
    "content",
    ["{}", "[1]", "no json", '{"program": "another"}', '{"program": "ie_jax"}', "[" * 9999],
)
def test_files_without_a_record_of_this_program_are_a_persons(
    written: tuple[list[Path], Path], content: str
) -> None:
    paths, record = written
    record.write_text(content)
    assert read_record(record) == {}
    assert refused(paths, record).startswith(f"{paths[0]}: ")
    assert refused([], record).startswith(f"{record}: ")


def test_what_is_edited_is_never_replaced_unasked(tmp_path: Path) -> None:
    photo, link = tmp_path / "photo.jpg", tmp_path / "link.jpg"
    photo.write_bytes(b"photo")
    link.symlink_to(photo)
    assert "is what is to be edited" in refused([photo], tmp_path / "x.json", inputs=[photo])
    assert "is what is to be edited" in refused([link], tmp_path / "x.json", inputs=[photo])


def test_a_folder_is_free_while_it_is_empty_or_holds_a_runs_results(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    record = folder / "results.json"
    check_folder(folder, record)
    folder.mkdir()
    check_folder(folder, record)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="--overwrite"):
        check_folder(folder, record)
    check_folder(folder, record, overwrite=True)
    record.write_text(json.dumps(OWN | {"methods": []}))
    check_folder(folder, record)


def test_a_run_that_ended_between_record_and_file_leaves_them_free_and_unfinished(
    written: tuple[list[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, record = written
    assert is_finished(record, {"seed": 3}) and not is_finished(record, {"seed": 4})
    old = paths[0].read_bytes()

    def ended(path: Path) -> Any:
        if path == paths[0]:
            raise OSError(28, "No space left on device")
        return appearing_whole(path)

    monkeypatch.setattr(products, "appearing_whole", ended)
    with pytest.raises(UserError, match=r"a-1\.png: cannot be written: No space left on device"):
        leave({path: b"new" for path in paths}, record, {"seed": 5})
    assert paths[0].read_bytes() == old
    assert not is_finished(record, {"seed": 5})
    check_free(paths, record)


@pytest.mark.parametrize("harm", ["changed", "missing", "no record"])
def test_what_is_not_as_it_was_left_is_not_finished(
    written: tuple[list[Path], Path], harm: str
) -> None:
    paths, record = written
    if harm == "changed":
        paths[1].write_bytes(b"retouched")
    else:
        (record if harm == "no record" else paths[1]).unlink()
    assert not is_finished(record, {"seed": 3})
