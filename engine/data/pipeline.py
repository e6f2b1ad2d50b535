"""From a source to batches of images: a loader without state, and single items for looking at."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Thread

import numpy as np
import torch
from torch import Tensor

from engine.data import augment as pixels
from engine.data.broken import Quarantine
from engine.data.draws import VIEW_STREAMS, ViewDraws, augmentation, flips, view_draws
from engine.data.feeds import Reader
from engine.data.resident import DeviceStream, ResidentSource
from engine.data.share import Share
from engine.data.source import Source
from engine.data.stream import DirectStream, ImageStream, Stream, device_of, one_thread, passes_directly
from engine.errors import UsageError

POLL_SECONDS, CLOSE_SECONDS = 0.2, 10.0
DEPTH = 2  # micro-batches that are decoded ahead
CHUNK_PIXELS = 128 * 128  # that a CPU thread augments at a time, so that they stay in its cache


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
        threads: of reading and decoding, and on the CPU of augmentation.
        device_id: GPU that decodes, augments and holds the output; None for the CPU.
        start_step: first step to give.
        accumulation: micro-steps per step.
        workers: processes that read files in place of threads.
        depth: micro-batches that are made ahead.
        quarantine: which broken images may be passed over; None: none.

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
        workers: int = 0,
        depth: int = DEPTH,
        quarantine: Quarantine | None = None,
    ):
        micro_batch = batch_size // (world * accumulation) if micro_batch is None else micro_batch
        if world * micro_batch * accumulation != batch_size:
            raise UsageError(
                f"batch {batch_size} is not {world} ranks x micro-batch {micro_batch} x {accumulation} "
                "accumulation steps; train.batch_size; make the product equal the batch"
            )
        recipe = augmentation(augment, px)
        self.reader = Reader(source, px, seed, recipe if views else None, flip, quarantine)
        self.wait_seconds = 0.0  # host time spent in __next__ so far
        self._device, self._depth, self._threads = device_of(device_id), depth, threads
        share = Share(batch_size, rank, world, micro_batch, accumulation, start_step * accumulation)
        self._images = _open_stream(self.reader, share, threads, device_id, depth, workers)
        self._augmenters = ThreadPoolExecutor(threads, "augment", initializer=one_thread)
        self._maker = ThreadPoolExecutor(1, "batches", initializer=one_thread)
        self._made: deque[Future[dict[str, Tensor]]] = deque()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        started = time.perf_counter()
        batch = self._make() if self._device.type == "cuda" else self._made_ahead()
        self.wait_seconds += time.perf_counter() - started
        return batch

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Wait until the next batch is there, or until ``given_up()``, which is asked five times a second."""
        if self._device.type == "cpu":
            self._make_ahead()
            while not given_up() and not wait((self._made[0],), POLL_SECONDS).done:
                pass

    def close(self) -> None:
        """Stop reading ahead and free the graph; the loader gives nothing afterwards.

        Whoever leaves does not wait for a file system that is gone.
        """
        closing = Thread(target=self._close, name="closing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _close(self) -> None:
        self._maker.shutdown(cancel_futures=True)
        self._augmenters.shutdown(cancel_futures=True)
        self._images.close()

    def _made_ahead(self) -> dict[str, Tensor]:
        """The next batch of a CPU, which threads decode and augment while the step runs."""
        self._make_ahead()
        return self._made.popleft().result()

    def _make_ahead(self) -> None:
        while len(self._made) <= self._depth:
            self._made.append(self._maker.submit(self._make))

    def _make(self) -> dict[str, Tensor]:
        batch = self._images.run()
        drawn = _Drawn(self.reader, batch["position"].numpy())
        if self._device.type == "cpu":
            self._augment_in_chunks(batch, drawn)
            return batch
        drawn.apply(batch, slice(None))
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}

    def _augment_in_chunks(self, batch: dict[str, Tensor], drawn: _Drawn) -> None:
        """As :meth:`_Drawn.apply` of the whole batch."""
        count, px = len(batch["position"]), self.reader.px
        size = max(1, CHUNK_PIXELS // px**2)
        chunks = [slice(start, start + size) for start in range(0, count, size)]
        made = {name: torch.empty_like(batch["x_0"]) for name in drawn.made}

        def every(first: int) -> None:
            for chunk in chunks[first :: self._threads]:
                part = {name: tensor[chunk] for name, tensor in batch.items()}
                drawn.apply(part, chunk)
                for name, images in made.items():
                    images[chunk] = part[name]

        list(self._augmenters.map(every, range(self._threads)))
        batch |= made


class _Drawn:
    """The drawn parameters of a batch, and their application."""

    def __init__(self, reader: Reader, positions: np.ndarray):
        self._recipe = reader.views
        self._flips = flips(reader.seed, positions) if reader.flip else None
        self._views: dict[str, ViewDraws] = {}
        if reader.views is not None:
            self._views = {
                name: view_draws(reader.seed, positions, stream) for name, stream in VIEW_STREAMS.items()
            }

    @property
    def made(self) -> list[str]:
        """Names of the images that :meth:`apply` makes anew."""
        return [*self._views, *(["x_0"] if self._flips is not None else [])]

    def apply(self, batch: dict[str, Tensor], rows: slice) -> None:
        """Mirror x_0 and make the views of ``batch``, which holds those rows of the drawn batch, in place."""
        square = batch["x_0"]
        for name, drawn in self._views.items():
            assert self._recipe is not None, "there are views only under a recipe"
            batch[name] = pixels.view(batch.get(name, square), drawn.rows(rows), self._recipe)
        if self._flips is not None:
            batch["x_0"] = pixels.mirrored(square, self._flips[rows])


def _open_stream(
    reader: Reader, share: Share, threads: int, device_id: int | None, depth: int, workers: int
) -> Stream:
    if isinstance(reader.source, ResidentSource) and reader.source.on_device:
        return DeviceStream(reader, share)
    if passes_directly(reader):
        return DirectStream(reader.stream, share, threads, device_of(device_id))
    return ImageStream(
        reader,
        reader.stream,
        share,
        batch=share.micro_batch,
        threads=threads,
        device_id=device_id,
        depth=depth,
        workers=workers,
    )


def route(source: Source, px: int, recipe: str | None, on_gpu: bool) -> str:
    """How the images of a source get into a batch, for people; ``recipe``: of the views, if there are any."""
    if isinstance(source, ResidentSource) and source.on_device:
        return "straight from device memory"
    if passes_directly(Reader(source, px, views=augmentation(recipe, px) if recipe else None)):
        return "straight from memory"
    return "DALI on GPU (mixed decode)" if on_gpu else "DALI on CPU"
