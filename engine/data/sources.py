"""Where images come from: a folder of files, or procedural rooms."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.data import rooms
from engine.errors import DataError, UsageError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
CACHE_BYTES = 1 << 30


class Source(Protocol):
    """A finite, indexable set of images.

    Attributes:
        name: one word for logs, such as "folder".
        encoded: whether :meth:`read` gives file contents (1-D uint8) or pixels (HWC uint8, RGB).
        px: side of every image where all are square and of one size, else None.
        labels: class of every item, (N,) int64, or None.
        classes: names of the classes, indexed by label; empty without labels.
    """

    name: str
    encoded: bool

    @property
    def px(self) -> int | None: ...
    @property
    def labels(self) -> np.ndarray | None: ...
    @property
    def classes(self) -> list[str]: ...
    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray) -> list[np.ndarray] | np.ndarray:
        """The items ``indices`` (B,), in that order. Called from several threads at once."""

    def item(self, index: int) -> str:
        """What to call one item in an error message: a path where there is one."""

    def describe(self) -> str:
        """One line: what it is, where, how many."""

    def fingerprint(self) -> str:
        """Hexadecimal digest that changes when items are added, removed, renamed or resized."""


class FolderSource:
    """JPEG, PNG, WebP and BMP files of any size, anywhere under a folder, in natural order of their paths.

    The label of a file is the first folder of its path below ``path``; there are labels only if every file
    has one. Hidden files and folders are skipped, symbolic links followed.

    Raises:
        UsageError: ``path`` does not exist, is not a folder, cannot be listed, or holds no such file.
    """

    name = "folder"
    encoded = True
    px = None

    def __init__(self, path: str | Path):
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            problem = "is not a folder" if self.root.exists() else "does not exist"
            raise UsageError(f"the image folder {problem}; {self.root}; set data.path to a folder of images")
        other: Counter[str] = Counter()
        try:
            self.files = list(_walk(str(self.root), "", other, set()))
        except OSError as error:
            raise UsageError(f"cannot list a folder of images; {error.filename}; {error.strerror}") from error
        if not self.files:
            held = _inventory(other)
            raise UsageError(f"no images found ({held}); {self.root}; files read: {' '.join(SUFFIXES)}")

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Contents of the files ``indices``, 1-D uint8 each. Raises DataError for one that cannot be read."""
        return [self._contents(self.item(index)) for index in indices]

    @staticmethod
    def _contents(path: str) -> np.ndarray:
        try:
            return np.fromfile(path, dtype=np.uint8)
        except OSError as error:
            raise DataError(f"cannot read an image file; {path}; {error.strerror}") from error

    def item(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])

    @cached_property
    def classes(self) -> list[str]:
        names = dict.fromkeys(_first_folder(file) for file in self.files)
        return [] if "" in names else list(names)

    @cached_property
    def labels(self) -> np.ndarray | None:
        if not self.classes:
            return None
        label = {name: i for i, name in enumerate(self.classes)}
        return np.array([label[_first_folder(file)] for file in self.files], dtype=np.int64)

    def describe(self) -> str:
        classes = f" in {len(self.classes)} classes" if self.classes else ""
        return f"folder {self.root}: {len(self):,} images{classes}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for index, file in enumerate(self.files):
            digest.update(f"\0{file}\0{os.stat(self.item(index)).st_size}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class RoomsSource:
    """Procedural rooms. They are kept once drawn, if all fit in 1 GiB, so that later epochs cost nothing."""

    name = "rooms"
    encoded = False
    labels = None

    def __init__(self, drawn: rooms.Rooms):
        self.rooms, self.px = drawn, drawn.px
        shape = (len(drawn), drawn.px, drawn.px, 3)
        self._kept = np.empty(shape, np.uint8) if math.prod(shape) <= CACHE_BYTES else None
        self._is_kept = np.zeros(len(drawn), dtype=bool)

    @property
    def classes(self) -> list[str]:
        return []

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

    def describe(self) -> str:
        return f"procedural rooms: {len(self):,} images of {self.rooms.px} px, seed {self.rooms.seed}"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{rooms.VERSION} {self.rooms}".encode()).hexdigest()


def open_source(source: str, path: str | Path | None, px: int, seed: int, count: int) -> Source:
    """The source that a config names: "folder" (of ``path``) or "rooms" (of ``px``, ``seed``, ``count``)."""
    if source == "rooms":
        return RoomsSource(rooms.Rooms(px, seed, count))
    if source != "folder":
        raise UsageError(f"unknown data source {source!r}; data.source; use folder or rooms")
    if not path:
        raise UsageError("data.source=folder needs a folder; data.path is not set; set data.path=FOLDER")
    return FolderSource(path)


def _walk(root: str, relative: str, other: Counter[str], seen: set[str]) -> Iterator[str]:
    """Paths, relative to ``root``, of the images below ``root``/``relative``; ``other`` counts the rest."""
    folder = os.path.join(root, relative)
    if (real := os.path.realpath(folder)) in seen:  # a symbolic link back to a folder already read
        return
    seen.add(real)
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    entries.sort(key=lambda entry: _natural(entry.name))
    for entry in entries:
        path = os.path.join(relative, entry.name)
        if entry.is_dir():
            yield from _walk(root, path, other, seen)
        elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
            yield path
        else:
            other[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1


def _natural(name: str) -> list[tuple[int, int | str]]:
    """A sorting key that puts img2 before img10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts] + [(2, name)]


def _first_folder(relative: str) -> str:
    head, separator, _ = relative.partition(os.sep)
    return head if separator else ""


def _inventory(other: Counter[str]) -> str:
    """What a folder without images holds, in a few words."""
    if not other:
        return "it holds no files"
    return "it holds " + ", ".join(f"{count} {suffix}" for suffix, count in other.most_common(4))
