"""Procedural rooms as a source."""

from __future__ import annotations

import hashlib
import math

import numpy as np

from engine.data import rooms
from engine.data.source import Source

CACHE_BYTES = 1 << 30


class RoomsSource(Source):
    """Procedural rooms. They are kept once drawn, if all fit in 1 GiB, so that later epochs cost nothing."""

    name = "rooms"
    encoded = False

    def __init__(self, drawn: rooms.Rooms):
        self.rooms, self.px = drawn, drawn.px
        shape = (len(drawn), drawn.px, drawn.px, 3)
        self._kept = np.empty(shape, np.uint8) if math.prod(shape) <= CACHE_BYTES else None
        self._is_kept = np.zeros(len(drawn), dtype=bool)

    def __len__(self) -> int:
        return len(self.rooms)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The rooms ``indices``, (B, px, px, 3) uint8."""
        if self._kept is None:
            return self.rooms.images(indices)
        # Two threads may both draw a room: they write the same bytes, and mark it only when it is whole.
        missing = np.unique(indices[~self._is_kept[indices]])
        if missing.size:
            self._kept[missing] = self.rooms.images(missing)
            self._is_kept[missing] = True
        return self._kept[indices]

    def item(self, index: int) -> str:
        return f"room {index} of seed {self.rooms.seed}"

    @property
    def framing(self) -> str:
        return "drawn at this size"

    def describe(self) -> str:
        return f"procedural rooms: {len(self):,} images of {self.rooms.px} px, seed {self.rooms.seed}"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{rooms.VERSION} {self.rooms}".encode()).hexdigest()
