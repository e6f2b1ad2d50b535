"""Labelled images to evaluate on: a folder, one factor of Rooms, or a data set that torchvision reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffsiam.evaluation.many_shot import Metric, top_1
from engine.data.fetching import fetch
from engine.data.rooms import FACTORS, LEVELS, Rooms
from engine.data.sources import FolderSource, Source
from engine.errors import UsageError

ROOMS_SEED = (1 << 40) + 300  # no training set's seed
ROOMS_TRAIN, ROOMS_TEST = 4000, 2000
FEWEST_CLASSES = 5  # factors of Rooms with as many levels serve as classes, 5-way episodes among them
TEST_SHARE = 0.3  # of a folder that has no test part
Pixels = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Part:
    """Some labelled images.

    Attributes:
        pixels: gives them, (N, px, px, 3) uint8; called only where features are not cached.
        labels: (N,) int64.
        key: names exactly these images, for the cache.
    """

    pixels: Pixels
    labels: np.ndarray
    key: str


@dataclass(frozen=True)
class Labelled:
    """A data set with a training and a test part.

    Attributes:
        name: as in the tables.
        parts: (train, validation) indices into the training part where the set has them, else None.
        metric: what the data set is scored by.
    """

    name: str
    train: Part
    test: Part
    classes: int
    metric: Metric = top_1
    parts: tuple[np.ndarray, np.ndarray] | None = None


def rooms_sets(px: int, limit: int | None = None) -> list[Labelled]:
    """Rooms that no run was trained on, classified by each factor of at least five values."""
    train, test = (min(count, limit or count) for count in (ROOMS_TRAIN, ROOMS_TEST))
    rooms = Rooms(px, ROOMS_SEED, train + test)
    sets = []
    for k, factor in enumerate(FACTORS):
        if LEVELS[k] >= FEWEST_CLASSES:
            parts = [
                _rooms_part(rooms, np.arange(first, last), k)
                for first, last in ((0, train), (train, train + test))
            ]
            sets.append(Labelled(f"Rooms {factor.name}", parts[0], parts[1], int(LEVELS[k])))
    return sets


def _rooms_part(rooms: Rooms, indices: np.ndarray, factor: int) -> Part:
    labels = rooms.factors(indices)[:, factor]
    return Part(lambda: rooms.images(indices), labels, f"{rooms} {indices[0]} {len(indices)}")


def folder_set(path: Path, px: int, limit: int | None = None, name: str = "") -> Labelled:
    """A folder of images whose first subfolders are classes, or train/ and test/ (and val/) of such.

    Without a test part three tenths of every class are drawn for it, by a fixed seed.

    Raises:
        UsageError: the folder holds no images, or images without a class.
    """
    name = name or path.name
    if (path / "train").is_dir() and (path / "test").is_dir():
        sources = [_labelled(path / part) for part in ("train", "test")]
        classes = sorted({label for source in sources for label in source.classes})
        chosen = [np.arange(len(source)) for source in sources]
    else:
        whole = _labelled(path)
        sources, classes = [whole, whole], sorted(whole.classes)
        chosen = list(_stratified(_labels(whole, classes)))
    parts = []
    for source, indices in zip(sources, chosen, strict=True):
        kept = _spread(indices, limit)
        parts.append(_source_part(source, kept, _labels(source, classes)[kept], px))
    return Labelled(name, parts[0], parts[1], len(classes))


def _labelled(path: Path) -> FolderSource:
    source = FolderSource(path)
    if source.labels is None:
        raise UsageError(f"{path}: images without a class; put each into a subfolder named after its class")
    return source


def _labels(source: Source, classes: list[str]) -> np.ndarray:
    """Labels of a source numbered by ``classes``."""
    number = np.array([classes.index(name) for name in source.classes])
    assert source.labels is not None
    return number[source.labels]


def _source_part(source: Source, indices: np.ndarray, labels: np.ndarray, px: int) -> Part:
    key = f"{source.fingerprint()} {px} {len(indices)} {indices[:1]} {indices[-1:]}"
    return Part(lambda: fetch(source, px, indices), labels, key)


def _stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, test) indices, a fixed share of every class for test."""
    rng, test = np.random.default_rng(0), []
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        test.append(members[: round(TEST_SHARE * len(members))])
    chosen = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def _spread(indices: np.ndarray, limit: int | None) -> np.ndarray:
    """At most ``limit`` of the indices, evenly spread: all classes of a sorted folder keep their share."""
    if limit is None or limit >= len(indices):
        return indices
    return indices[np.arange(limit) * len(indices) // limit]


def limited(data: Labelled, limit: int | None) -> Labelled:
    """The first ``limit`` images of each part, which the set has in random order."""
    if limit is None:
        return data

    def cut(part: Part) -> Part:
        kept = _spread(np.arange(len(part.labels)), limit)
        return Part(lambda: part.pixels()[kept], part.labels[kept], f"{part.key} {limit}")

    return replace(data, train=cut(data.train), test=cut(data.test), parts=None)
