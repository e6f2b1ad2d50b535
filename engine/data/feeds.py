"""What the image graph is fed: the images of a micro-batch as read, and where to cut each of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from engine.data import draws
from engine.data.broken import Broken, Quarantine, image_size
from engine.data.draws import Augmentation
from engine.data.order import locate, order
from engine.data.source import Source
from engine.errors import DataError

Arguments = dict[str, np.ndarray]
Candidates = Callable[
    [np.ndarray, np.ndarray], np.ndarray
]  # (rows, broken ones passed over by each) -> indices


@dataclass(frozen=True)
class Feed:
    """One micro-batch before decoding.

    Attributes:
        positions, indices: (B,) int64, place in the endless stream and in the source.
        images: B file contents (1-D uint8) or B pictures (HWC uint8).
        arguments: "x_0.start" and "x_0.end", and for views that are cut "view_1.crop_at" and
            "view_1.crop_size", first axis B.
    """

    positions: np.ndarray
    indices: np.ndarray
    images: Sequence[np.ndarray] | np.ndarray
    arguments: Arguments


class Reader:
    """Reads the samples of a source and says where to cut them; a function of (seed, positions).

    Threads may share it; processes get it pickled.

    Args:
        px: side of the square output in pixels.
        seed: of the order and of all draws.
        views: recipe of the two views, None for no views.
        flip: mirror x_0 with probability one half.
        quarantine: what to do with broken images; None: none is passed over.
    """

    def __init__(
        self,
        source: Source,
        px: int,
        seed: int = 0,
        views: Augmentation | None = None,
        flip: bool = False,
        quarantine: Quarantine | None = None,
    ):
        self.source, self.px, self.seed, self.views, self.flip = source, px, seed, views, flip
        self.quarantine = Quarantine(source, allowed=0) if quarantine is None else quarantine

    @property
    def names(self) -> list[str]:
        """Names of the arguments of every feed, in order."""
        return list(self._arguments(np.zeros(1, np.int64), np.ones((1, 2), np.int64)))

    def stream(self, positions: np.ndarray) -> Feed:
        """The samples at ``positions`` (B,) int64 of the endless stream."""
        return self._feed(positions, self._of_epoch(*locate(positions, len(self.source))))

    def _of_epoch(self, epoch: np.ndarray, places: np.ndarray) -> Candidates:
        """In place of a broken image comes the next one of the same permutation."""
        count = len(self.source)
        return lambda rows, tried: order(self.seed, epoch[rows], (places[rows] + tried) % count, count)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """What lies at ``positions`` (B,), as far as broken images are known: nothing is read."""
        epoch, places = locate(positions, len(self.source))
        return self._unsuspected(
            np.arange(len(positions)), np.zeros_like(positions), self._of_epoch(epoch, places)
        )

    def items(self, indices: np.ndarray) -> Feed:
        """The items ``indices`` (B,) int64 of the source; in place of a broken one the next that is whole."""
        return self._feed(indices, lambda rows, tried: (indices[rows] + tried) % len(self.source))

    def _feed(self, positions: np.ndarray, candidates: Candidates) -> Feed:
        rows, tried = np.arange(len(positions)), np.zeros(len(positions), np.int64)
        indices, sizes = np.empty_like(positions), np.empty((len(positions), 2), np.int64)
        images: Sequence[np.ndarray] | np.ndarray = []
        while len(rows):
            asked = self._unsuspected(rows, tried, candidates)
            read = self.source.read(asked)
            if len(rows) == len(positions):
                images = read
            else:
                images = list(images)
                for row, image in zip(rows, read, strict=True):
                    images[row] = image
            indices[rows] = asked
            rows = self._measure(rows, read, asked, sizes)
        return Feed(positions, indices, images, self._arguments(positions, sizes))

    def _measure(
        self, rows: np.ndarray, read: Sequence[np.ndarray] | np.ndarray, asked: np.ndarray, sizes: np.ndarray
    ) -> np.ndarray:
        """Fill in the sizes of those rows; returns the rows whose image is broken and goes to quarantine."""
        if not self.source.encoded:
            sizes[rows] = [image.shape[:2] for image in read]
            return rows[:0]
        broken = []
        for row, image, index in zip(rows, read, asked, strict=True):
            try:
                sizes[row] = image_size(image, self.source.region)
            except Broken as fault:
                self.quarantine.add(int(index), str(fault))
                broken.append(row)
        return np.array(broken, dtype=np.int64)

    def _unsuspected(
        self,
        rows: np.ndarray,
        tried: np.ndarray,
        candidates: Candidates,
    ) -> np.ndarray:
        """The first candidates that are not known to be broken; ``tried`` counts on."""
        asked = candidates(rows, tried[rows])
        while len(suspects := [i for i, index in enumerate(asked) if int(index) in self.quarantine]):
            tried[rows[suspects]] += 1
            if tried.max() >= len(self.source):
                raise DataError(f"every image is broken; {self.source.describe()}")
            asked[suspects] = candidates(rows[suspects], tried[rows[suspects]])
        return asked

    def _arguments(self, positions: np.ndarray, sizes: np.ndarray) -> Arguments:
        out = {f"x_0.{name}": value for name, value in square_arguments(sizes, self.px).items()}
        for view, boxes in self.boxes(positions, sizes).items():
            out[f"{view}.crop_at"] = boxes[:, :2].astype(np.int32)  # a copy: DALI reads dense arrays only
            out[f"{view}.crop_size"] = boxes[:, 2:].astype(np.int32)
        return out

    def boxes(self, positions: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Of each view that is cut from its image: (B, 4) top, left, height, width in pixels."""
        if self.views is None or not self.views.crop:
            return {}
        return {
            view: draws.crop_boxes(draws.view_draws(self.seed, positions, stream).crop, sizes)
            for view, stream in draws.VIEW_STREAMS.items()
        }

    def confirm(self, positions: np.ndarray, indices: np.ndarray) -> None:
        """Quarantine here what a reader in another process passed over to arrive at ``indices``."""
        if not np.array_equal(self.indices(positions), indices):
            self.stream(positions)


def square_arguments(sizes: np.ndarray, px: int) -> Arguments:
    """The region that torchvision's Resize(px) and CenterCrop(px) keep of images of ``sizes`` (B, 2), (h, w).

    "start" and "end" are (B, 2) float32 in pixels of the image, fractions included. Resampling this region,
    with the pixels around it in reach of the filter, equals resizing the image and cropping afterwards.
    """
    resized = px * sizes // sizes.min(axis=1, keepdims=True)
    offset = np.rint((resized - px) / 2)
    scale = sizes / resized
    return {"start": (offset * scale).astype(np.float32), "end": ((offset + px) * scale).astype(np.float32)}
