"""From feeds to torch tensors: through the image graph, or directly where it would have nothing to do."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from engine.data.broken import decoding_fault
from engine.data.draws import VIEW_STREAMS
from engine.data.feeds import Feed, Reader
from engine.data.resize import cut, squared
from engine.errors import DataError, UsageError
from engine.processes import leave_requests_to_the_parent

READ_AHEAD = 4  # micro-batches that are read ahead of the decoder


class Runs(Protocol):
    """Positions (or indices) of micro-batches by their number; those without end raise no IndexError."""

    def __getitem__(self, run: int) -> np.ndarray: ...


class Stream(Protocol):
    """Batches without end, not augmented yet."""

    def run(self) -> dict[str, Tensor]:
        """The next batch, on the device: x_0 and views that are cut, uint8 (B, px, px, 3), not mirrored;
        position and index, int64 (B,), on the CPU.

        Raises:
            DataError: an image cannot be read or decoded, and no more may be passed over.
        """

    def close(self) -> None:
        """Free what runs ahead; may be called again."""


class ReadAhead:
    """Feeds in their order, read by threads ahead of whoever takes them."""

    def __init__(self, make: Callable[[np.ndarray], Feed], runs: Runs, threads: int, first: int = 0):
        self._make, self._runs, self._next = make, runs, first
        self._pool = ThreadPoolExecutor(min(threads, READ_AHEAD), thread_name_prefix="read")
        self._reading: deque[Future[Feed]] = deque()
        self.failure: Exception | None = None  # of a reader; DALI passes on its text alone

    def __call__(self) -> Feed:
        while len(self._reading) < READ_AHEAD:
            try:
                asked = self._runs[self._next]
            except IndexError:
                break
            self._reading.append(self._pool.submit(self._make, asked))
            self._next += 1
        if not self._reading:
            raise StopIteration
        try:
            return self._reading.popleft().result()
        except Exception as error:
            self.failure = error
            raise

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class DirectStream:
    """Pictures that have the right size already and are not cut: without DALI."""

    def __init__(self, make: Callable[[np.ndarray], Feed], runs: Runs, threads: int, device: torch.device):
        self._feeds, self._device = ReadAhead(make, runs, threads), device

    def run(self) -> dict[str, Tensor]:
        feed = self._feeds()
        x_0 = torch.from_numpy(np.array(feed.images))  # a copy: the source may keep its pictures
        return {"x_0": x_0.to(self._device, non_blocking=True)} | _names(feed.positions, feed.indices)

    def close(self) -> None:
        self._feeds.close()


def passes_directly(reader: Reader) -> bool:
    """Whether the image graph would have nothing to decode, to resize or to cut."""
    cut = reader.views is not None and reader.views.crop
    return not cut and not reader.source.encoded and reader.source.px == reader.px


class ImageStream:
    """Runs the image graph on the feeds of a reader; what it cannot decode is found and passed over.

    Args:
        reader: whose feeds they are.
        make: gives the feed of positions or indices: :meth:`Reader.stream` or :meth:`Reader.items`.
        runs: positions or indices of a micro-batch by its number.
        batch: largest number of samples of a micro-batch.
        threads: of the graph, and that read.
        device_id: GPU, or None for the CPU.
        depth: runs that are prepared ahead.
        workers: processes that read in place of threads.
        resize: whether the graph cuts and resizes; None: on a GPU it does, on the CPU torch is faster.

    Raises:
        UsageError: DALI is not installed.
    """

    def __init__(
        self,
        reader: Reader,
        make: Callable[[np.ndarray], Feed],
        runs: Runs,
        *,
        batch: int,
        threads: int,
        device_id: int | None,
        depth: int,
        workers: int = 0,
        resize: bool | None = None,
    ):
        self._resizes = device_id is not None if resize is None else resize
        self._pool = ThreadPoolExecutor(threads, "resize", initializer=one_thread)
        self._graph, self._reader, self._make, self._runs = _graph(), reader, make, runs
        self._batch, self._threads, self._depth, self._workers = batch, threads, depth, workers
        self._device_id, self._device = device_id, device_of(device_id)
        self._cut = list(VIEW_STREAMS) if reader.views is not None and reader.views.crop else []
        self._run = 0
        self._start()

    def _start(self) -> None:
        """Build the graph so that its first run is ``self._run``."""
        feed: Callable[..., Sequence]
        if self._workers:
            self._feeds = None
            feed = WorkerFeed(self._make, self._runs, self._run, self._resizes)
        else:
            self._feeds = ReadAhead(self._make, self._runs, self._threads, self._run)
            feed = ThreadFeed(self._feeds, self._resizes)
        self._pipeline: Any = self._graph.build(
            feed,
            self._reader.names if self._resizes else [],
            self._cut,
            px=self._reader.px if self._resizes else None,
            encoded=self._reader.source.encoded,
            region=self._reader.source.region,
            batch=self._batch,
            threads=self._threads,
            device_id=self._device_id,
            depth=self._depth,
            workers=self._workers,
        )

    def run(self) -> dict[str, Tensor]:
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        while True:
            try:
                *outputs, index = self._pipeline.run(stream)
                break
            except RuntimeError as error:
                self._pass_over(error)
        asked, indices = self._runs[self._run], np.array(index.as_tensor()).reshape(-1)
        if self._workers:
            self._reader.confirm(asked, indices)
        self._run += 1
        if not self._resizes:
            return self._resized(outputs[0], asked) | _names(asked, indices)
        made = zip(["x_0", *self._cut], outputs, strict=True)
        images = {name: self._graph.to_torch(output, self._device, stream) for name, output in made}
        return images | _names(asked, indices)

    def _resized(self, decoded: Any, positions: np.ndarray) -> dict[str, Tensor]:
        """x_0 and the views that are cut, of images as decoded."""
        images = [np.asarray(decoded.at(i)) for i in range(len(decoded))]
        px, sizes = self._reader.px, np.array([image.shape[:2] for image in images])
        boxes = self._reader.boxes(positions, sizes)
        shape = (len(images), px, px, 3)
        made = {name: torch.empty(shape, dtype=torch.uint8) for name in ("x_0", *boxes)}

        def every(first: int) -> None:
            # One task a thread: one an image would cost as much as the resizing.
            for i in range(first, len(images), self._threads):
                made["x_0"][i] = squared(images[i], px)
                for view, box in boxes.items():
                    made[view][i] = cut(images[i], box[i], px)

        list(self._pool.map(every, range(self._threads)))
        return made

    def close(self) -> None:
        self._pipeline = None
        self._pool.shutdown(cancel_futures=True)
        if self._feeds is not None:
            self._feeds.close()

    def _pass_over(self, error: RuntimeError) -> None:
        """Quarantine what the graph failed on, which its error does not say, and build it anew.

        The graph works ahead, so the image may be of a later run than the one that was asked for.
        """
        if self._feeds is not None and self._feeds.failure is not None:
            raise self._feeds.failure
        known = len(self._reader.quarantine)
        if self._reader.source.encoded:
            for run in range(self._run, self._run + self._depth + 2):
                try:
                    feed = self._make(self._runs[run])
                except IndexError:
                    break
                for contents, index in zip(feed.images, feed.indices, strict=True):
                    if not self._graph.decodes(contents, self._device_id):
                        self._reader.quarantine.add(int(index), decoding_fault(contents))
        if len(self._reader.quarantine) == known:
            said = " ".join(str(error).split())
            raise DataError(f"the image graph failed; {self._reader.source.describe()}; {said}") from error
        if self._feeds is not None:
            self._feeds.close()
        self._start()


class ThreadFeed:
    """What the graph calls for its inputs when threads of this process read."""

    def __init__(self, feeds: ReadAhead, with_arguments: bool):
        self._feeds, self._with_arguments = feeds, with_arguments

    def __call__(self) -> Sequence:
        return _inputs(self._feeds(), self._with_arguments)


class WorkerFeed:
    """What the graph calls in processes that read: a function of the number of the run.

    Sources open their files when they first read, so each process has its own.
    """

    def __init__(self, make: Callable[[np.ndarray], Feed], runs: Runs, first: int, with_arguments: bool):
        self._make, self._runs, self._first, self._with_arguments = make, runs, first, with_arguments

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        leave_requests_to_the_parent()

    def __call__(self, info: Any) -> Sequence:
        return _inputs(self._make(self._runs[self._first + info.iteration]), self._with_arguments)


def _inputs(feed: Feed, with_arguments: bool) -> Sequence:
    images = [feed.images, feed.indices.reshape(-1, 1)]
    return [*images, *feed.arguments.values()] if with_arguments else images


def _names(positions: np.ndarray, indices: np.ndarray) -> dict[str, Tensor]:
    return {"position": torch.from_numpy(positions), "index": torch.from_numpy(indices)}


def one_thread() -> None:
    """Threads of ours share the cores among them; torch must not split their work once more."""
    torch.set_num_threads(1)


def device_of(device_id: int | None) -> torch.device:
    """The GPU of that number; None: the CPU."""
    return torch.device("cpu" if device_id is None else f"cuda:{device_id}")


def _graph() -> ModuleType:
    """The graph module; imported late, as DALI takes half a second."""
    try:
        from engine.data import graph
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
        raise UsageError(
            "NVIDIA DALI is not installed; it reads the images; pip install nvidia-dali-cuda130"
        ) from error
    return graph
