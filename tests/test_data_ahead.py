"""Batches made ahead: in their order, whole, and with errors in the place of the batch that they concern."""

import threading
import time

import numpy as np
import pytest
import torch

from engine.data.ahead import Ahead
from engine.data.stream import Decoded
from engine.errors import DataError

PX, BATCH, END = 64, 10, 6


class Numbered:
    """A stream whose images are all of the number of their batch; odd batches take longer to finish."""

    def __init__(self, broken_row: int | None = None, broken_batch: int | None = None):
        self.broken_row, self.broken_batch, self.given = broken_row, broken_batch, 0
        self.askers: set[str] = set()

    def __call__(self) -> Decoded:
        number, self.given = self.given, self.given + 1
        self.askers.add(threading.current_thread().name)
        if number == self.broken_batch:
            raise DataError("batch")
        if number == END:
            raise StopIteration
        positions = np.arange(BATCH) + number * BATCH
        return Decoded(positions, 2 * positions, PX, ("x_0",), lambda rows: self.rows(number, rows))

    def rows(self, number: int, rows: slice) -> dict[str, torch.Tensor]:
        time.sleep(0.002 * (number % 2))
        count = len(range(BATCH)[rows])
        if number == 2 and self.broken_row in range(BATCH)[rows]:
            raise DataError("row")
        return {"x_0": torch.full((count, PX, PX, 3), number, dtype=torch.uint8)}


@pytest.fixture(params=[(1, 1), (3, 0), (2, 9)], ids=["1 thread", "none ahead", "all ahead"])
def options(request):
    return dict(zip(("threads", "depth"), request.param, strict=True))


def numbers(ahead: Ahead) -> list[int]:
    """The numbers of whole batches until the end."""
    out = []
    for batch in ahead:
        assert batch["x_0"].shape == (BATCH, PX, PX, 3)
        assert batch["x_0"].unique().tolist() == [len(out)]
        assert batch["position"].tolist() == list(range(len(out) * BATCH, (len(out) + 1) * BATCH))
        assert batch["index"].tolist() == [2 * position for position in batch["position"].tolist()]
        out.append(len(out))
    return out


def test_batches_come_whole_and_in_order_until_the_stream_ends(options):
    ahead = Ahead(Numbered(), **options)
    assert numbers(ahead) == list(range(END))
    ahead.close()


def test_one_thread_alone_asks_the_stream():
    stream = Numbered()
    ahead = Ahead(stream, threads=3, depth=4)
    numbers(ahead)
    ahead.close()
    assert len(stream.askers) == 1


@pytest.mark.parametrize("fault", [{"broken_batch": 2}, {"broken_row": 7}], ids=["decoding", "finishing"])
def test_an_error_comes_in_place_of_its_batch_and_not_before(options, fault):
    ahead = Ahead(Numbered(**fault), **options)
    assert [int(next(ahead)["x_0"][0, 0, 0, 0]) for _ in range(2)] == [0, 1]
    with pytest.raises(DataError):
        next(ahead)
    ahead.close()


def test_closing_leaves_no_thread_behind():
    before = threading.active_count()
    ahead = Ahead(Numbered(), threads=3, depth=5)
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
