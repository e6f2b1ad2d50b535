"""What every source of images can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Region = tuple[int, int, int, int]


class Source(ABC):
    """A finite, indexable set of images; readers in other processes get it pickled.

    Attributes:
        name: one word for logs, such as "folder".
        encoded: whether :meth:`read` gives file contents (1-D uint8) or pixels (HWC uint8, RGB).
        px: side of every image where all are square and of one size, else None.
        region: (top, left, height, width) in pixels that every image is cut to first, or None.
        labels: class of every item, (N,) int64, or None.
        classes: names of the classes, indexed by label; empty without labels.
        attributes: (N, A) uint8, 1 where an item has an attribute, or None.
        attribute_names: A names; empty without attributes.
    """

    name: str
    encoded: bool = True
    px: int | None = None
    region: Region | None = None

    @property
    def labels(self) -> np.ndarray | None:
        return None

    @property
    def classes(self) -> Sequence[str]:
        return ()

    @property
    def attributes(self) -> np.ndarray | None:
        return None

    @property
    def attribute_names(self) -> Sequence[str]:
        return ()

    @property
    def framing(self) -> str:
        """What of each image is trained on, in words."""
        if self.region is None:
            return "centre square, resized"
        top, left, height, width = self.region
        return f"{width} x {height} pixels from row {top}, column {left}, resized"

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, indices: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """The items ``indices`` (B,), in that order. Called from several threads at once.

        Raises:
            DataError: the medium fails. Contents that are no image are not its business.
        """

    @abstractmethod
    def item(self, index: int) -> str:
        """What to call one item in an error message: a path where there is one."""

    @abstractmethod
    def describe(self) -> str:
        """One line: what it is, where, how many."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when items are added, removed, renamed or resized."""
