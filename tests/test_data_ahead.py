"""Batches made ahead: in their order, whole, and with errors in the place of the batch that they concern."""

import threading
import time

import pytest
import torch

from engine.data.ahead import Ahead
from engine.errors import DataError

PX, BATCH, END = 64, 10, 6


class Numbered:
    """A stream whose images are all of the number of their batch; odd batches take longer to augment."""

    def __init__(self, broken_row: int | None = None, broken_batch: int | None = None):
        self.broken_row, self.broken_batch, self.given = broken_row, broken_batch, 0
        self.askers: set[str] = set()

    def __call__(self):
        number, self.given = self.given, self.given + 1
        self.askers.add(threading.current_thread().name)
        if number == self.broken_batch:
            raise DataError("batch")
        if number == END:
            raise StopIteration
        batch = {
            "x_0": torch.zeros((BATCH, PX, PX, 3), dtype=torch.uint8),
            "position": torch.arange(BATCH) + number * BATCH,
        }
        return batch, lambda part, rows: self.augmented(number, part, rows)

    def augmented(self, number: int, part: dict, rows: slice) -> dict[str, torch.Tensor]:
        time.sleep(0.002 * (number % 2))
        assert part["position"].tolist() == list(range(number * BATCH, (number + 1) * BATCH))[rows]
        if number == 2 and self.broken_row in range(BATCH)[rows]:
            raise DataError("row")
        return {"x_0": part["x_0"] + number, "view_1": part["x_0"] + 100 + number}


def opened(stream: Numbered, threads: int, depth: int) -> Ahead:
    return Ahead(stream, ["x_0", "view_1"], threads, depth)


@pytest.fixture(params=[(1, 1), (3, 0), (2, 9)], ids=["1 thread", "none ahead", "all ahead"])
def options(request):
    return dict(zip(("threads", "depth"), request.param, strict=True))


def numbers(ahead: Ahead) -> list[int]:
    """The numbers of whole batches until the end."""
    out = []
    for batch in ahead:
        number = len(out)
        assert batch["x_0"].shape == batch["view_1"].shape == (BATCH, PX, PX, 3)
        assert batch["x_0"].unique().tolist() == [number]
        assert batch["view_1"].unique().tolist() == [100 + number]
        assert batch["position"].tolist() == list(range(number * BATCH, (number + 1) * BATCH))
        out.append(number)
    return out


def test_batches_come_whole_and_in_order_until_the_stream_ends(options):
    ahead = opened(Numbered(), **options)
    assert numbers(ahead) == list(range(END))
    ahead.close()


def test_one_thread_alone_asks_the_stream():
    stream = Numbered()
    ahead = opened(stream, threads=3, depth=4)
    numbers(ahead)
    ahead.close()
    assert len(stream.askers) == 1


@pytest.mark.parametrize("fault", [{"broken_batch": 2}, {"broken_row": 7}], ids=["decoding", "augmenting"])
def test_an_error_comes_in_place_of_its_batch_and_not_before(options, fault):
    ahead = opened(Numbered(**fault), **options)
    assert [int(next(ahead)["x_0"][0, 0, 0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(DataError):
        next(ahead)
    ahead.close()


def test_closing_leaves_no_thread_behind():
    before = threading.active_count()
    ahead = opened(Numbered(), threads=3, depth=5)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
