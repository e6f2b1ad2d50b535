"""Batches on the CPU, made ahead of whoever takes them: one is decoded while those before it are finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.data.stream import Decoded, one_thread

CHUNK_PIXELS = 128 * 128  # that a thread finishes at a time, so that they stay in its cache


@dataclass(frozen=True)
class _Growing:
    """A batch, complete when all its parts are done."""

    batch: dict[str, Tensor]
    parts: list[Future[None]]


class Ahead:
    """The batches of a stream in their order, whatever the number of threads.

    Args:
        decode: gives the next batch; one thread calls it. Its end is StopIteration.
        threads: that finish rows (:attr:`Decoded.rows`), of several batches at a time.
        depth: batches that are made ahead.

    Raises:
        Exception: while iterating, what ``decode`` or a row raised, in place of the batch that it concerns.
    """

    def __init__(self, decode: Callable[[], Decoded], threads: int, depth: int):
        self._decode, self._threads, self._depth = decode, threads, depth
        self._decoder = ThreadPoolExecutor(1, "decode", initializer=one_thread)
        self._finishers = ThreadPoolExecutor(threads, "finish", initializer=one_thread)
        self._growing: deque[Future[_Growing]] = deque()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
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
        """Stop; nothing of the stream is used afterwards."""
        self._decoder.shutdown(cancel_futures=True)
        self._finishers.shutdown(cancel_futures=True)

    def _fill(self) -> None:
        while len(self._growing) <= self._depth:
            self._growing.append(self._decoder.submit(self._begin))

    def _begin(self) -> _Growing:
        decoded = self._decode()
        count, px = len(decoded.positions), decoded.px
        made = {name: torch.empty((count, px, px, 3), dtype=torch.uint8) for name in decoded.names}
        size = max(1, CHUNK_PIXELS // px**2)
        chunks = [slice(start, start + size) for start in range(0, count, size)]

        def every(first: int) -> None:
            # One task a thread: one a chunk would cost as much as resizing it.
            for rows in chunks[first :: self._threads]:
                for name, images in decoded.rows(rows).items():
                    made[name][rows] = images

        parts = [self._finishers.submit(every, first) for first in range(self._threads)]
        return _Growing(made | decoded.where(), parts)
