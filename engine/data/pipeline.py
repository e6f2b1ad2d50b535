"""From a source to batches of images: a loader without state, and single items for looking at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from threading import Thread

import numpy as np
from torch import Tensor

from engine.data import augment as pixels
from engine.data.ahead import Ahead, Augment
from engine.data.broken import Quarantine
from engine.data.draws import VIEW_STREAMS, ViewDraws, augmentation, flips, view_draws
from engine.data.feeds import Reader
from engine.data.resident import DeviceStream, ResidentSource
from engine.data.share import Share
from engine.data.source import Source
from engine.data.stream import DirectStream, ImageStream, Stream, device_of, passes_directly
from engine.errors import UsageError

POLL_SECONDS, CLOSE_SECONDS = 0.2, 10.0
DEPTH = 2  # micro-batches that are decoded ahead


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
        self._device = device_of(device_id)
        share = Share(batch_size, rank, world, micro_batch, accumulation, start_step * accumulation)
        self._images = _open_stream(self.reader, share, threads, device_id, depth, workers)
        self._ahead = None
        if self._device.type == "cpu":
            made = ["x_0", *(VIEW_STREAMS if views else ())]
            # Half of the threads: Python lets few of them call torch's small operations at once, and the
            # other half decodes and resizes.
            self._ahead = Ahead(self._decoded, made, max(1, threads // 2), depth)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self

    def __next__(self) -> dict[str, Tensor]:
        started = time.perf_counter()
        batch = self._on_device() if self._ahead is None else next(self._ahead)
        self.wait_seconds += time.perf_counter() - started
        return batch

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Wait until the next batch is there, or until ``given_up()``, which is asked five times a second."""
        while self._ahead is not None and not self._ahead.is_ready(POLL_SECONDS) and not given_up():
            pass

    def close(self) -> None:
        """Stop reading ahead and free the graph; the loader gives nothing afterwards.

        Whoever leaves does not wait for a file system that is gone.
        """
        closing = Thread(target=self._close, name="closing", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)

    def _close(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._images.close()

    def _decoded(self) -> tuple[dict[str, Tensor], Augment]:
        batch = self._images.run()
        return batch, _Drawn(self.reader, batch["position"].numpy()).augmented

    def _on_device(self) -> dict[str, Tensor]:
        batch, augment = self._decoded()
        batch |= augment(batch, slice(None))
        return {name: tensor.to(self._device, non_blocking=True) for name, tensor in batch.items()}


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

    def augmented(self, batch: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
        """x_0 mirrored and the views; ``batch`` holds those rows of the drawn batch."""
        square = batch["x_0"]
        made = {"x_0": square if self._flips is None else pixels.mirrored(square, self._flips[rows])}
        for name, drawn in self._views.items():
            assert self._recipe is not None, "there are views only under a recipe"
            made[name] = pixels.view(batch.get(name, square), drawn.rows(rows), self._recipe)
        return made


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
