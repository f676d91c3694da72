"""Many images in one command: what is written, what is passed over, and what a kill leaves."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ie_jax.cli import run
from ie_jax.editing.command import edit
from ie_jax.editing.jobs import Job, jobs_of_folder, jobs_of_list
from ie_jax.errors import UserError
from tests import forks
from tests.forks import Fork, free_address
from tests.tiny import shrink


def main(argv: Sequence[str]) -> None:
    """The command with the smallest model, as a program."""
    shrink()
    run(edit, argv)


def photo(path: Path, seed: int, size: int = 40) -> None:
    """A picture of coarse noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).resize((size, size)).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five pictures, one of them broken."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        photo(folder / f"{i}.png", i)
    (folder / "2b.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("mine")
    return folder


def edited(tmp_path: Path, *argv: Any, devices: int = 1) -> tuple[int | None, str, str]:
    """Exit status, output and errors of the command."""
    output = tmp_path / f"run-{len(list(tmp_path.iterdir()))}.txt"
    words = ["--model", "random", *argv]
    return Fork(main, words, output, forks.devices(devices)).wait()


def written(folder: Path) -> dict[str, bytes]:
    """The pictures of a folder."""
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def same_pictures(folder: Path, other: Path) -> None:
    """The second has all pictures of the first; 8-bit numbers may be rounded the other way."""
    assert set(written(folder)) <= set(written(other))
    for name in written(folder):
        one, two = (np.asarray(Image.open(x / name), int) for x in (folder, other))
        assert np.abs(one - two).max() <= 1, name


def as_list(photos: Path, path: Path, count: int = 4) -> Path:
    """The same edits, and some of two targets, as a list."""
    lines: list[dict[str, Any]] = [
        {"image": f"photos/{i}.png", "source": "a cat", "target": "a dog", "name": str(i)}
        for i in range(count)
    ]
    lines.append(
        {"image": "photos/0.png", "source": "a cat", "target": ["a fox", "a dog"], "seed": 7}
    )
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


@pytest.mark.long("three processes start, of one and of two devices")
def test_a_folder_and_a_list_give_the_same_on_any_number_of_devices(
    photos: Path, tmp_path: Path
) -> None:
    prompts = ("--source", "a cat", "--target", "a dog")
    status, out, errors = edited(
        tmp_path, "--image", photos, *prompts, "--output", tmp_path / "one", "--quiet"
    )
    assert status == 0, errors
    assert errors.count("passed over: 2b: ") == 1
    assert out == f"{tmp_path / 'one'}: 4 edited, 1 passed over\n"
    expected = written(tmp_path / "one")
    assert set(expected) == {f"{i}.png" for i in range(4)}
    assert len(set(expected.values())) == 4
    edits = as_list(photos, tmp_path / "edits.jsonl")
    argv = ("--list", edits, "--output", tmp_path / "two", "--side-by-side", "--batch-size", "4")
    status, out, errors = edited(tmp_path, *argv, devices=2)
    assert status == 0 and out.endswith("two: 5 edited\n"), errors
    found = written(tmp_path / "two")
    same_pictures(tmp_path / "one", tmp_path / "two")
    names = {f"00005-0{end}.png" for end in ("-1", "-2", "-side-by-side")}
    assert names < set(found) and "0-side-by-side.png" in found
    # Finished ones are skipped; what is missing, changed or asked for otherwise is made again.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").iterdir()}
    (tmp_path / "two" / "1.png").unlink()
    status, out, errors = edited(tmp_path, *argv, devices=2)
    assert status == 0 and out.endswith("two: 1 edited, 4 finished before\n"), errors
    changed = {path.name for path in before if path.stat().st_mtime_ns != before[path]}
    assert changed == {"1.png", "1.json", "1-side-by-side.png"}
    record = json.loads((tmp_path / "two" / "00005-0.json").read_text())
    assert record["edit"]["targets"] == ["a fox", "a dog"] and record["edit"]["seed"] == 7


@pytest.mark.long("three starts, one of which is killed")
def test_a_killed_run_goes_on_where_it_was(photos: Path, tmp_path: Path) -> None:
    kill_and_resume(photos, tmp_path, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_at_random_moments_lose_and_repeat_nothing(photos: Path, tmp_path: Path) -> None:
    kill_and_resume(photos, tmp_path, 10)


def kill_and_resume(photos: Path, tmp_path: Path, kills: int) -> None:
    """Kill the command after so many pictures and seconds, start it again, and so on."""
    photo(photos / "0.png", 9)
    draw = random.Random(kills)
    argv = ["--list", as_list(photos, tmp_path / "edits.jsonl", 4)]
    lines = (tmp_path / "edits.jsonl").read_text().splitlines()[:4] * 6
    renamed = [json.loads(line) | {"name": f"e{i}", "seed": i} for i, line in enumerate(lines)]
    (tmp_path / "edits.jsonl").write_text("\n".join(map(json.dumps, renamed)))
    assert edited(tmp_path, *argv, "--output", tmp_path / "whole")[0] == 0
    parts = tmp_path / "parts"
    made: dict[str, int] = {}
    for _ in range(kills):
        words = ["--model", "random", *argv, "--output", parts]
        fork = Fork(main, words, tmp_path / "killed.txt")
        wanted = len(written(parts)) + draw.randint(1, 2) if parts.is_dir() else 1
        end = time.monotonic() + 120
        while time.monotonic() < end and fork.poll() is None:
            if parts.is_dir() and len(written(parts)) >= wanted:
                break
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(fork.pid, signal.SIGKILL)
        fork.wait()
        for path in parts.glob("*.png"):  # nothing that was there is made again
            assert made.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns
    status, _, errors = edited(tmp_path, *argv, "--output", parts)
    assert status == 0, errors
    for name, moment in made.items():
        assert (parts / name).stat().st_mtime_ns == moment
    same_pictures(tmp_path / "whole", parts)
    assert len(written(parts)) == len(written(tmp_path / "whole"))
    assert not list(parts.glob(".*"))


@pytest.mark.slow
def test_two_processes_share_the_work(photos: Path, tmp_path: Path) -> None:
    argv = ["--model", "random", "--list", as_list(photos, tmp_path / "edits.jsonl")]
    group = ["--coordinator", free_address(), "--processes", "2", "--output", tmp_path / "two"]
    forks = [
        Fork(main, [*argv, *group, "--process-id", i], tmp_path / f"{i}.txt") for i in range(2)
    ]
    ends = [fork.wait() for fork in forks]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert [out.rpartition(": ")[2] for _, out, _ in ends] == ["3 edited\n", "2 edited\n"]
    alone = Fork(main, [*argv, "--output", tmp_path / "one"], tmp_path / "alone.txt")
    assert alone.wait()[0] == 0
    same_pictures(tmp_path / "one", tmp_path / "two")
    assert len(written(tmp_path / "two")) == len(written(tmp_path / "one"))


def test_files_of_a_person_are_kept(photos: Path, tmp_path: Path) -> None:
    """A result that would replace a photo is refused before anything is done."""
    argv = ("--image", photos, "--source", "a cat", "--target", "a dog", "--output", photos)
    before = written(photos)
    status, out, errors = edited(tmp_path, *argv)
    assert (status, out) == (2, "") and "is what is to be edited" in errors.splitlines()[-1]
    assert written(photos) == before


def test_a_folder_without_a_sound_picture_is_an_error(photos: Path, tmp_path: Path) -> None:
    for i in range(4):
        (photos / f"{i}.png").unlink()
    argv = ("--image", photos, "--source", "a", "--target", "b", "--output", tmp_path / "out")
    status, _, errors = edited(tmp_path, *argv)
    assert status == 2
    assert errors.splitlines()[-1] == "error: none of 1 images could be edited: see above"


# --- what is asked for ---


def test_texts_beside_pictures_say_what_they_show(photos: Path) -> None:
    with pytest.raises(UserError, match=r"0\.png: nothing says what it shows: give --source"):
        jobs_of_folder(photos, None, ["a dog"], 3)
    for i in range(4):
        (photos / f"{i}.txt").write_text(f"picture {i}\nanother caption\n")
    (photos / "2b.jpg").unlink()
    photo(photos / "0.webp", 5)
    jobs = jobs_of_folder(photos, None, ["a dog"], 3)
    names = ["0-png", "0-webp", "1", "2", "3"]
    assert sorted(job.name for job in jobs) == names
    assert {job.source for job in jobs} == {f"picture {i}" for i in range(4)}
    assert {job.seed for job in jobs} == {3}


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no json", "line 2: is not JSON"),
        ("[1]", "line 2: must be an object with image, source and target"),
        ('{"image": "a.png", "source": "a"}', "line 2: .*target"),
        ('{"image": "a.png", "source": "a", "target": " "}', "line 2: source and target must be"),
        ('{"image": "a.png", "source": "a", "target": []}', "line 2: source and target must be"),
        ('{"image": "a.png", "source": "a", "target": "b", "sed": 1}', "line 2: .*'sed'.*seed"),
        ('{"image": "a.png", "source": "a", "target": "b", "seed": "x"}', "line 2: .*seed"),
        ('{"image": "a.png", "source": "a", "target": "b", "name": "../x"}', "line 2: name"),
        ('{"image": "a.png", "source": "a", "target": "b", "name": "A"}', "two edits have the na"),
    ],
)
def test_a_line_that_cannot_be_used_is_told(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "edits.jsonl"
    first = {"image": "a.png", "source": "a", "target": "b", "name": "a"}
    path.write_text(f"{json.dumps(first)}\n{line}\n")
    with pytest.raises(UserError, match=told):
        jobs_of_list(path, 0)


def test_a_list_is_read_as_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text('\n{"image": "sub/a.b.png", "source": "a", "target": ["b", "c"]}\n\n')
    job = Job("00002-a.b", str(tmp_path / "sub" / "a.b.png"), "a", ("b", "c"), 5)
    assert jobs_of_list(path, 5) == [job]
    path.write_text("\n")
    with pytest.raises(UserError, match="holds no edits"):
        jobs_of_list(path, 5)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--list", "e.jsonl", "--source", "a"], "--list names images and prompts"),
        (["--list", "none.jsonl"], "none.jsonl: cannot be read"),
        (["--image", "photos"], "--target is missing"),
        (["--image", "photos", "--target", "a", "--reconstruct"], "--reconstruct takes one image"),
        (["--image", "photos", "--target", "a"], "nothing says what it shows"),
        (
            ["--image", "photos", "--source", "a", "--target", "b", "--batch-size", "0"],
            "--batch-size 0 must be a multiple of the 1 devices",
        ),
        (
            ["--image", "photos", "--source", "a", "--target", "b", "--processes", "2"],
            "--coordinator, --processes and --process-id go together",
        ),
    ],
)
def test_bad_requests_are_told(
    photos: Path, tmp_path: Path, argv: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e.jsonl").write_text("")
    with pytest.raises(UserError, match=told):
        edit(["--model", "random", *argv])
    assert not (tmp_path / "edits").exists()
    shutil.rmtree(photos)
