"""Images that training never sees."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from engine.data.rooms_source import RoomsSource
from engine.data.source import Source
from engine.errors import UsageError


class Part(Source):
    """Some items of a source, as a source of its own.

    Args:
        whole: the source.
        indices: of the items in it, (N,) int64.
        what: for the description, such as "without 100 held out".
    """

    def __init__(self, whole: Source, indices: np.ndarray, what: str):
        self.whole, self.indices, self.what = whole, indices, what
        self.name, self.encoded, self.px, self.region = whole.name, whole.encoded, whole.px, whole.region

    @property
    def framing(self) -> str:
        return self.whole.framing

    @property
    def classes(self) -> Sequence[str]:
        return self.whole.classes

    @property
    def attribute_names(self) -> Sequence[str]:
        return self.whole.attribute_names

    @property
    def attributes(self) -> np.ndarray | None:
        attributes = self.whole.attributes
        return None if attributes is None else attributes[self.indices]

    @cached_property
    def labels(self) -> np.ndarray | None:
        labels = self.whole.labels
        return None if labels is None else labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, indices: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """The items ``indices`` (B,) of this part."""
        return self.whole.read(self.indices[indices])

    def item(self, index: int) -> str:
        return self.whole.item(int(self.indices[index]))

    def describe(self) -> str:
        return f"{self.whole.describe()}, {self.what}"

    def fingerprint(self) -> str:
        return self.whole.fingerprint()  # of the images; which of them is said by the config


def split(source: Source, count: int) -> tuple[Source, Source | None]:
    """(what is trained on, ``count`` images held out); the second is None for a count of 0.

    Of a folder every (N / count)-th image is held out, so that all its classes are represented. Rooms have no
    end: the ones that follow are held out, and training sees what it saw without.

    Raises:
        UsageError: nothing would be left to train on.
    """
    if count == 0:
        return source, None
    if isinstance(source, RoomsSource):
        return source, RoomsSource(source.rooms.held_out(count))
    if count >= len(source):
        raise UsageError(
            f"data.held_out = {count} leaves nothing of {len(source)} images to train on; lower data.held_out"
        )
    kept_out = np.arange(count, dtype=np.int64) * len(source) // count
    rest = np.setdiff1d(np.arange(len(source), dtype=np.int64), kept_out)
    return Part(source, rest, f"without {count:,} held out"), Part(source, kept_out, "held out")
