"""Batches of the CPU, made ahead of whoever takes them: while one is decoded, others are augmented."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.stream import one_thread

# What a thread augments at a time: few enough pixels to stay in its cache, and of small images enough for the
# work of a call to outweigh the call, during which other threads wait.
ALONE_PX = 128
CHUNK_PIXELS = 2 * 128 * 128

Batch = dict[str, Tensor]
Augment = Callable[[Batch, slice], Batch]


@dataclass(frozen=True)
class _Growing:
    """A batch, complete when all its parts are done."""

    batch: Batch
    parts: list[Future[None]]


class Ahead:
    """The batches of a stream, augmented, in their order whatever the number of threads.

    Args:
        decode: gives the next batch, whose "x_0" is (B, px, px, 3), and what augments it: a function of the
            tensors of some rows and of these rows, to images by name. One thread calls, until StopIteration.
        made: names of the images that augmenting gives, uint8 (B, px, px, 3).
        threads: that augment, several batches at a time.
        depth: batches that are made ahead.

    Raises:
        Exception: while iterating, what decoding or augmenting raised, in place of its batch.
    """

    def __init__(
        self, decode: Callable[[], tuple[Batch, Augment]], made: list[str], threads: int, depth: int
    ):
        self._decode, self._names, self._threads, self._depth = decode, made, threads, depth
        self._decoder = ThreadPoolExecutor(1, "decode", initializer=one_thread)
        self._augmenters = ThreadPoolExecutor(threads, "augment", initializer=one_thread)
        self._growing: deque[Future[_Growing]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        self._fill()
        grown = self._growing.popleft().result()
        for part in grown.parts:
            part.result()
        return grown.batch

    def is_ready(self, seconds: float) -> bool:
        """Whether the next batch, or its error, is there at once; waits about so long for it."""
        self._fill()
        head = self._growing[0]
        if not wait((head,), seconds).done:
            return False
        return head.exception() is not None or not wait(head.result().parts, seconds).not_done

    def close(self) -> None:
        """Stop; what decodes is not called afterwards."""
        self._decoder.shutdown(cancel_futures=True)
        self._augmenters.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        while len(self._growing) <= self._depth:
            self._growing.append(self._decoder.submit(self._begin))

    def _begin(self) -> _Growing:
        batch, augment = self._decode()
        made = {name: torch.empty_like(batch["x_0"]) for name in self._names}
        count, px = batch["x_0"].shape[:2]
        size = 1 if px >= ALONE_PX else max(1, CHUNK_PIXELS // px**2)
        chunks = [slice(start, start + size) for start in range(0, count, size)]

        def every(first: int) -> None:
            # One task a thread: one a chunk would cost as much as some of the steps.
            for rows in chunks[first :: self._threads]:
                images = augment({name: tensor[rows] for name, tensor in batch.items()}, rows)
                for name in self._names:
                    made[name][rows] = images[name]

        parts = [self._augmenters.submit(every, first) for first in range(self._threads)]
        return _Growing(batch | made, parts)
