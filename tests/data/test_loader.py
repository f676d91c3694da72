"""Batches: order, sharing among processes, resuming, broken images, reading ahead."""

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext as nothing
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ie_jax.data.loader import ATTEMPTS, SHOWN, TELLING, Batch, BrokenImage, Loader, Tally
from ie_jax.errors import UserError


class Numbers:
    """Images that are their number and one drawn; some are broken."""

    def __init__(self, count: int, broken: Sequence[int] = (), seconds: float = 0) -> None:
        self.count, self.broken, self.seconds = count, set(broken), seconds
        self.threads: set[int] = set()

    def __len__(self) -> int:
        return self.count

    def read(self, index: int, rng: np.random.Generator) -> tuple[str, tuple[int, int]]:
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        if index in self.broken:
            raise UserError(f"image {index}: is broken")
        return f"image {index}", (index, int(rng.integers(1000)))

    def batch(self, items: Sequence[Any]) -> Batch:
        numbers, drawn = np.array(items).T
        return {"numbers": numbers, "drawn": drawn}


def loader(count: int, batch_size: int, broken: Sequence[int] = (), **options: Any) -> Loader:
    return Loader(Numbers(count, broken), range(count), batch_size, **options)


def take(loader: Loader, batches: int) -> list[list[tuple[int, int]]]:
    """Some batches as pairs of number and what was drawn."""
    return [
        list(zip(batch["numbers"].tolist(), batch["drawn"].tolist(), strict=True))
        for batch in islice(loader, batches)
    ]


def numbers(batches: list[list[tuple[int, int]]]) -> list[int]:
    return [number for batch in batches for number, _ in batch]


def together(parts: list[list[list[tuple[int, int]]]]) -> list[list[tuple[int, int]]]:
    """The global batches of several processes' batches."""
    return [list(chain(*batches)) for batches in zip(*parts, strict=True)]


# --- order ---


def test_each_epoch_has_every_image_once_in_another_order() -> None:
    stream = numbers(take(loader(10, 4), 10))
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert all(a != b for a, b in pairwise(epochs))


def test_the_seed_decides_all() -> None:
    first = take(loader(10, 4, seed=1), 8)
    assert (
        first
        == take(loader(10, 4, seed=1, workers=3), 8)
        == take(loader(10, 4, seed=1, workers=0), 8)
    )
    assert first != take(loader(10, 4, seed=2), 8)
    drawn = [dict(batch) for batch in first]
    assert len({d[0] for d in drawn if 0 in d}) > 1  # another draw each epoch


def test_names_are_those_of_the_last_batch() -> None:
    data = loader(10, 4)
    assert data.names == ()
    for batch in islice(data, 3):
        assert data.names == tuple(f"image {n}" for n in batch["numbers"])


def test_only_the_given_images_take_part() -> None:
    data = Loader(Numbers(10), range(3, 7), 4)
    assert set(numbers(take(data, 5))) == {3, 4, 5, 6}


def test_a_batch_may_be_larger_than_the_data() -> None:
    assert Counter(numbers(take(loader(3, 7), 3))) == {0: 7, 1: 7, 2: 7}
    assert numbers(take(loader(1, 2), 2)) == [0] * 4


# --- processes ---


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("broken", [(), (3, 5)])
def test_processes_together_see_what_one_sees(processes: int, broken: Sequence[int]) -> None:
    def parts(process: int, count: int) -> list[list[tuple[int, int]]]:
        options: dict[str, Any] = {"max_broken": 1.0, "process_index": process}
        return take(loader(10, 8, broken, process_count=count, **options), 6)

    with pytest.warns() if broken else nothing():
        whole = parts(0, 1)
        each = [parts(process, processes) for process in range(processes)]
    assert all(len(batch) == 8 // processes for part in each for batch in part)
    assert together(each) == whole


# --- validation ---


def test_validation_is_one_pass_in_order_each_time() -> None:
    data = loader(7, 3, training=False)
    for _ in range(2):
        assert [batch["numbers"].tolist() for batch in data] == [[0, 1, 2], [3, 4, 5], [6, 0, 1]]
    small = loader(2, 5, training=False)
    assert [batch["numbers"].tolist() for batch in small] == [[0, 1, 0, 1, 0]]


def test_validation_of_several_processes_ends_for_all_at_once() -> None:
    parts = [
        numbers(take(loader(5, 4, training=False, process_index=i, process_count=2), 9))
        for i in range(2)
    ]
    assert parts == [[0, 1, 4, 0], [2, 3, 1, 2]]


# --- resuming ---


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_resuming_continues_exactly(workers: int) -> None:
    """From everywhere: the start, the middle of an epoch, its end, and beyond."""
    options: dict[str, Any] = {"seed": 5, "workers": workers, "max_broken": 1.0}
    data = loader(10, 4, (2,), **options)
    states, batches = [data.get_state()], []
    with pytest.warns(BrokenImage, match="image 2"):
        for _ in range(9):
            batches += take(data, 1)
            states.append(json.loads(json.dumps(data.get_state())))
        for done in range(6):
            again = loader(10, 4, (2,), **options)
            again.set_state(states[done])
            assert take(again, 3) == batches[done : done + 3]
            assert again.get_state() == states[done + 3]


def test_going_back_in_a_running_loader() -> None:
    data = loader(10, 4)
    first = take(data, 2)
    state = data.get_state()
    later = take(data, 3)
    data.set_state(state)
    assert take(data, 3) == later
    data.rewind(0)
    assert take(data, 2) == first


def test_resuming_with_other_processes_and_batch_size() -> None:
    data = loader(10, 4, seed=3)
    take(data, 3)
    state = data.get_state()
    expected = numbers(take(data, 2))
    halves = []
    for process in range(2):
        half = loader(10, 4, seed=3, process_index=process, process_count=2)
        half.set_state(state)
        halves.append(take(half, 2))
    assert numbers(together(halves)) == expected
    smaller = loader(10, 2, seed=3)
    smaller.set_state(state)
    assert numbers(take(smaller, 4)) == expected


def test_a_state_of_other_data_is_refused() -> None:
    state = loader(10, 4, seed=3).get_state()
    for other in (loader(11, 4, seed=3), loader(10, 4, seed=4)):
        with pytest.raises(UserError, match="cannot resume"):
            other.set_state(state)


# --- broken images ---


def test_broken_images_are_replaced_counted_and_named() -> None:
    data = loader(200, 8, broken=(3, 14), max_broken=0.05)
    with pytest.warns(BrokenImage) as caught:
        stream = numbers(take(data, 75))
    assert not {3, 14} & set(stream) and len(stream) == 600
    assert sorted(str(w.message) for w in caught) == [
        "skipped a broken image: image 14: is broken",
        "skipped a broken image: image 3: is broken",
    ]
    assert (data.tally.seen, data.tally.broken) == (600, 6)


def test_too_large_a_share_of_broken_images_stops() -> None:
    data = loader(50, 5, broken=(3, 14), max_broken=0.02)
    with (
        pytest.warns(BrokenImage),
        pytest.raises(UserError, match=r"\d of 5\d images are broken.* 0\.02: image \d+: is"),
    ):
        take(data, 100)
    assert data.tally.seen >= 50


@pytest.mark.parametrize("count", [2, 9, 49, 50])
def test_one_broken_image_of_a_few_does_not_stop(count: int) -> None:
    data = loader(count, 1, broken=(1,), max_broken=0.01)
    with pytest.warns(BrokenImage, match="image 1: is broken"):
        take(data, 3 * count)
    assert (data.tally.seen, data.tally.broken) == (3 * count, 3)
    strict = loader(count, 1, broken=(1,), max_broken=0)
    with pytest.warns(BrokenImage), pytest.raises(UserError, match=f"1 of {count} images are b"):
        take(strict, count)


def test_one_broken_image_early_is_no_share() -> None:
    tally = Tally(0.01)
    with pytest.warns(BrokenImage):
        tally.count(0, ["first"])
    tally.count(TELLING, [])
    assert (tally.seen, tally.broken) == (TELLING + 1, 1)


def test_the_count_goes_on_after_resuming() -> None:
    data = loader(50, 5, broken=(3,), max_broken=0.5)
    with pytest.warns(BrokenImage, match="image 3"):
        take(data, 12)
    again = loader(50, 5, broken=(3,), max_broken=0.5)
    again.set_state(data.get_state())
    take(again, 12)  # would raise if it warned of image 3 anew
    assert again.tally.seen == 120 > data.tally.seen


def test_only_the_first_broken_images_are_named() -> None:
    tally = Tally(1.0)
    with pytest.warns(BrokenImage) as caught:
        tally.count(5, [f"image {i}" for i in range(30)])
    assert len(caught) == SHOWN and "further ones are not named" in str(caught[-1].message)
    assert tally.broken == 30


@pytest.mark.parametrize("count", [1, 7, 300])
def test_entirely_broken_data_stop_at_once(count: int) -> None:
    data = Loader(Numbers(count, range(count)), range(count), 4, max_broken=1.0)
    with (
        pytest.warns(BrokenImage),
        pytest.raises(UserError, match=r"all of \d+ images tried are broken"),
    ):
        next(data)
    assert data.tally.seen <= ATTEMPTS + 1


def test_the_last_sound_image_is_found() -> None:
    data = loader(ATTEMPTS, 4, broken=range(1, ATTEMPTS), max_broken=1.0)
    with pytest.warns(BrokenImage):
        assert numbers(take(data, 1)) == [0] * 4


def test_other_errors_arrive_as_they_are() -> None:
    class Faulty(Numbers):
        def read(self, index: int, rng: np.random.Generator) -> Any:
            raise ZeroDivisionError("a mistake of the program")

    with pytest.raises(ZeroDivisionError):
        next(Loader(Faulty(3), range(3), 2))


# --- what is asked for ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"batch_size": 6, "process_count": 4}, "multiple of the 4 processes"),
        ({"batch_size": 2, "seed": -1}, "seed -1"),
        ({"batch_size": 2, "indices": range(0)}, "no images"),
    ],
)
def test_impossible_requests_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loader(Numbers(5), **{"indices": range(5), **options})


# --- reading ahead ---


def test_a_slow_consumer_never_waits() -> None:
    data = Loader(Numbers(100, seconds=0.005), range(100), 4, workers=4)
    next(data)
    waits = []
    for _ in range(5):
        time.sleep(0.1)  # in which 4 threads read 80 images
        start = time.perf_counter()
        next(data)
        waits.append(time.perf_counter() - start)
    data.close()
    assert sorted(waits)[2] < 0.02  # the median: other work on the machine may delay some
    dataset = data.dataset
    assert isinstance(dataset, Numbers) and len(dataset.threads) > 1
    assert threading.get_ident() not in dataset.threads


def test_closing_ends_the_threads() -> None:
    before = {*threading.enumerate()}
    data = loader(100, 4)
    next(data)
    started = {*threading.enumerate()} - before
    assert started
    data.close()
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in started) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.is_alive() for thread in started)


def test_a_program_may_end_with_an_open_loader() -> None:
    code = (
        "from tests.data.test_loader import loader\n"
        "data = loader(100, 4)\nnext(data)\nprint('done')"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert done.stdout == "done\n" and "Traceback" not in done.stderr
