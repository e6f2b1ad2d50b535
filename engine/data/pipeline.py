"""From a source to batches of images: a loader without state, and single items for looking at."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from torch import Tensor

from engine.data.draws import augmentation
from engine.data.feeds import Feed, Reader
from engine.data.source import Source
from engine.data.stream import open_stream, passes_directly
from engine.errors import UsageError

DEPTH = 2  # micro-batches that are decoded ahead
READ_AHEAD = 4  # micro-batches that are read ahead of the decoder
FETCH_BATCH = 64


def positions(
    step: int, micro_step: int, *, batch_size: int, rank: int, world: int, micro_batch: int
) -> np.ndarray:
    """Stream positions of one rank's micro-batch, (m,) int64.

    step * B + (micro_step * world + rank) * m + (0 .. m - 1), for the global batch B and the micro-batch m.
    """
    start = step * batch_size + (micro_step * world + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)


class Loader:
    """Micro-batches of one rank, without end: step by step, and within a step micro-step by micro-step.

    What a position holds (image, mirror, views) depends on the seed and the position alone; so ``start_step``
    continues a run exactly, and ranks and accumulation only divide the work.

    Args:
        source: the images.
        px: side of the output in pixels.
        seed: of order and augmentation.
        batch_size: global B = world * micro_batch * accumulation.
        rank, world: this process and how many there are.
        micro_batch: samples m of one rank in one micro-step.
        views: also give the two SimSiam views.
        augment: recipe of the views, see :func:`engine.data.draws.augmentation`.
        flip: mirror x_0 with probability one half.
        threads: of reading and of the image graph.
        device_id: GPU that decodes, augments and holds the output; None for the CPU.
        start_step: first step to give.
        accumulation: micro-steps per step.

    Yields:
        dict of "x_0" and, with ``views``, "view_1" and "view_2", uint8 (m, px, px, 3); "position" (in the
        stream) and "index" (in the source), int64 (m,); all on the device.

    Raises:
        UsageError: the sizes do not multiply to ``batch_size``, or the recipe is unknown, or DALI is missing
            where it is needed.
        DataError: while iterating, when an image cannot be read or decoded; it names the image.
    """

    def __init__(
        self,
        source: Source,
        px: int,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
        views: bool = True,
        augment: str = "auto",
        flip: bool = True,
        threads: int = 2,
        device_id: int | None = None,
        start_step: int = 0,
        accumulation: int = 1,
    ):
        micro_batch = batch_size // (world * accumulation) if micro_batch is None else micro_batch
        if world * micro_batch * accumulation != batch_size:
            raise UsageError(
                f"batch {batch_size} is not {world} ranks x micro-batch {micro_batch} x {accumulation} "
                "accumulation steps; train.batch_size; make the product equal the batch"
            )
        recipe = augmentation(augment, px)
        self.reader = Reader(source, px, seed, recipe if views else None, flip)
        self.wait_seconds = 0.0  # host time spent in __next__ so far
        self._place = {"batch_size": batch_size, "rank": rank, "world": world, "micro_batch": micro_batch}
        self._accumulation = accumulation
        self._next_micro_step = start_step * accumulation
        self._pool = ThreadPoolExecutor(min(threads, READ_AHEAD), thread_name_prefix="read")
        self._reading: deque[Future[Feed]] = deque()
        self._images = open_stream(
            self.reader, self._feed, batch=micro_batch, threads=threads, device_id=device_id, depth=DEPTH
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        started = time.perf_counter()
        batch = self._images.run()
        self.wait_seconds += time.perf_counter() - started
        return batch

    def close(self) -> None:
        """Stop reading ahead and free the graph; the loader gives nothing afterwards."""
        self._pool.shutdown(cancel_futures=True)
        self._images.close()

    def _feed(self) -> Feed:
        """The next micro-batch as read; keeps the readers busy behind it."""
        while len(self._reading) < READ_AHEAD:
            step, micro_step = divmod(self._next_micro_step, self._accumulation)
            self._next_micro_step += 1
            asked = positions(step, micro_step, **self._place)
            self._reading.append(self._pool.submit(self.reader.stream, asked))
        return self._reading.popleft().result()


def route(source: Source, px: int, views: bool, on_gpu: bool) -> str:
    """How the images of a source get into a batch, for people."""
    if passes_directly(source, px, views):
        return "straight from memory"
    return "DALI on GPU (mixed decode)" if on_gpu else "DALI on CPU"


def fetch(source: Source, px: int, indices: Sequence[int] | np.ndarray, threads: int = 2) -> np.ndarray:
    """The items ``indices`` as x_0, never mirrored, (N, px, px, 3) uint8, by the CPU. Raises DataError."""
    indices = np.asarray(indices, dtype=np.int64)
    if not len(indices):
        return np.empty((0, px, px, 3), np.uint8)
    reader = Reader(source, px)
    chunks = np.split(indices, range(FETCH_BATCH, len(indices), FETCH_BATCH))
    feeds = map(reader.items, chunks)
    images = open_stream(
        reader, lambda: next(feeds), batch=FETCH_BATCH, threads=threads, device_id=None, depth=1
    )
    return np.concatenate([images.run()["x_0"].numpy() for _ in chunks])
