"""From a source to batches of images: reading ahead, one image graph for CPU and GPU, and positions that need no state."""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.data.draws import augmentation
from engine.data.feeds import Feed, Reader, reason
from engine.data.sources import Source
from engine.errors import DataError, UsageError

OUTPUTS = ("x_0", "view_1", "view_2")
DEPTH = 2  # micro-batches that are decoded ahead
READ_AHEAD = 4  # micro-batches that are read ahead of the decoder
FETCH_BATCH = 64


def positions(step: int, micro_step: int, *, batch_size: int, rank: int, world: int, micro_batch: int) -> np.ndarray:
    """Stream positions, (m,) int64, of one rank's micro-batch: step * B + micro_step * world * m + rank * m + (0 .. m-1)."""
    start = step * batch_size + (micro_step * world + rank) * micro_batch
    return np.arange(start, start + micro_batch, dtype=np.int64)


class Loader:
    """Micro-batches of one rank, without end: step by step, and within a step micro-step by micro-step.

    What a position holds (image, mirror, views) depends on the seed and the position alone; so ``start_step`` continues a run exactly, and
    ranks and accumulation only divide the work.

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
        dict of "x_0" and, with ``views``, "view_1", "view_2": uint8 (m, px, px, 3) on the device; "position", "index": int64 (m,) on the CPU.

    Raises:
        UsageError: the sizes do not multiply to ``batch_size``, the recipe is unknown, or DALI is not installed.
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
                f"batch {batch_size} is not {world} ranks x micro-batch {micro_batch} x {accumulation} accumulation steps; "
                "train.batch_size; make the product equal the batch"
            )
        recipe = augmentation(augment, px)
        self.reader = Reader(source, px, seed, recipe if views else None, flip)
        self.wait_seconds = 0.0  # host time spent in __next__ so far
        self._place = {"batch_size": batch_size, "rank": rank, "world": world, "micro_batch": micro_batch}
        self._accumulation = accumulation
        self._next_micro_step = start_step * accumulation
        self._pool = ThreadPoolExecutor(min(threads, READ_AHEAD), thread_name_prefix="read")
        self._reading: deque[Future[Feed]] = deque()
        self._images = _Images(
            self.reader, self._feed, batch=micro_batch, threads=threads, device_id=device_id, depth=DEPTH
        )

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        started = time.perf_counter()
        feed, images = self._images.run()
        self.wait_seconds += time.perf_counter() - started
        return images | {"position": torch.from_numpy(feed.positions), "index": torch.from_numpy(feed.indices)}

    def close(self) -> None:
        """Stop reading ahead and free the graph; the loader gives nothing afterwards."""
        self._pool.shutdown(cancel_futures=True)
        self._images.close()

    def _feed(self) -> Feed:
        """The next micro-batch as read; keeps the readers busy behind it."""
        while len(self._reading) < READ_AHEAD:
            step, micro_step = divmod(self._next_micro_step, self._accumulation)
            self._next_micro_step += 1
            self._reading.append(self._pool.submit(self.reader.stream, positions(step, micro_step, **self._place)))
        return self._reading.popleft().result()


def fetch(source: Source, px: int, indices: Sequence[int] | np.ndarray, threads: int = 2) -> np.ndarray:
    """The items ``indices`` as x_0 without mirroring, (N, px, px, 3) uint8, decoded on the CPU. Raises DataError."""
    indices = np.asarray(indices, dtype=np.int64)
    if not len(indices):
        return np.empty((0, px, px, 3), np.uint8)
    reader = Reader(source, px)
    chunks = iter(np.split(indices, range(FETCH_BATCH, len(indices), FETCH_BATCH)))
    images = _Images(
        reader, lambda: reader.items(next(chunks)), batch=FETCH_BATCH, threads=threads, device_id=None, depth=1
    )
    count = -(-len(indices) // FETCH_BATCH)
    return np.concatenate([images.run()[1]["x_0"].numpy() for _ in range(count)])


class _Images:
    """A running image graph: feeds in, torch tensors out, and a name for the image that broke it."""

    def __init__(
        self, reader: Reader, feed: Callable[[], Feed], *, batch: int, threads: int, device_id: int | None, depth: int
    ):
        self._graph, self._source, self._next_feed = _graph(), reader.source, feed
        self._device = torch.device("cpu" if device_id is None else f"cuda:{device_id}")
        self._fed: deque[Feed] = deque()
        self._pipeline = self._graph.build(
            self._feed,
            reader.names,
            px=reader.px,
            encoded=reader.source.encoded,
            batch=batch,
            threads=threads,
            device_id=device_id,
            depth=depth,
        )

    def run(self) -> tuple[Feed, dict[str, Tensor]]:
        """The oldest feed and its images, uint8 (B, px, px, 3) on the device. Raises DataError."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        try:
            outputs = self._pipeline.run(stream)
        except RuntimeError as error:
            raise self._diagnosis(error) from error
        images = (self._graph.to_torch(output, self._device, stream) for output in outputs)
        return self._fed.popleft(), dict(zip(OUTPUTS, images, strict=False))

    def close(self) -> None:
        del self._pipeline

    def _feed(self) -> Sequence:
        feed = self._next_feed()
        self._fed.append(feed)
        return [feed.images, *feed.arguments.values()]

    def _diagnosis(self, error: RuntimeError) -> DataError:
        """The error of a graph does not say which image it failed on: try them one by one."""
        if self._source.encoded:
            for feed in self._fed:
                for contents, index in zip(feed.images, feed.indices, strict=True):
                    if not self._graph.decodes(contents):
                        return DataError(f"cannot decode an image; {self._source.item(index)}; {_fault(contents)}")
        return DataError(f"the image graph failed; {self._source.describe()}; {error}")


def _fault(contents: np.ndarray) -> str:
    """What is wrong with a file that DALI cannot decode."""
    try:
        with Image.open(io.BytesIO(contents)) as image:
            image.load()
            return f"this kind of {image.format} is not supported, convert it to JPEG or PNG"
    except (OSError, SyntaxError, ValueError) as error:
        return reason(error)


def _graph() -> ModuleType:
    """The graph module; imported late, as DALI takes half a second."""
    try:
        from engine.data import graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise UsageError("NVIDIA DALI is not installed; it reads the images; pip install nvidia-dali-cuda130") from error
    return graph
