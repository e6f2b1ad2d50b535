"""Single items of a source as they are trained on, for looking at and for keeping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from engine.data.ahead import Ahead
from engine.data.broken import Quarantine
from engine.data.feeds import Reader
from engine.data.source import Source
from engine.data.stream import DirectStream, ImageStream, Stream, passes_directly

FETCH_BATCH = 64


def fetch(
    source: Source,
    px: int,
    indices: Sequence[int] | np.ndarray,
    threads: int = 2,
    quarantine: Quarantine | None = None,
) -> np.ndarray:
    """The items ``indices`` as x_0, never mirrored, (N, px, px, 3) uint8, by the CPU.

    Raises:
        DataError: one cannot be read or decoded, and ``quarantine`` is None or full; otherwise the next item
            stands in its place.
    """
    indices = np.asarray(indices, dtype=np.int64)
    images = np.empty((len(indices), px, px, 3), np.uint8)
    for start, part, _ in fetch_parts(source, px, indices, threads, quarantine):
        images[start : start + len(part)] = part
    return images


def fetch_parts(
    source: Source, px: int, indices: np.ndarray, threads: int = 2, quarantine: Quarantine | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(place in ``indices``, images, the items that they are) piece by piece, see :func:`fetch`."""
    if not len(indices):
        return
    reader = Reader(source, px, quarantine=quarantine)
    chunks = np.split(indices, range(FETCH_BATCH, len(indices), FETCH_BATCH))
    stream: Stream
    if passes_directly(reader):
        stream = DirectStream(reader.items, chunks, threads, torch.device("cpu"))
    else:
        batch = len(chunks[0])
        stream = ImageStream(
            reader, reader.items, chunks, batch=batch, threads=threads, device_id=None, depth=1
        )
    ahead = Ahead(stream.run, threads, depth=1)
    try:
        for number, made in enumerate(ahead):
            yield number * FETCH_BATCH, made["x_0"].numpy(), made["index"].numpy()
    finally:
        ahead.close()
        stream.close()
