"""Sets made by ``diffsiam prepare``: images of one size in shards, with what is known about each.

A folder of ``prepared.json``, shards and, where the source has them, ``labels.npy`` and ``attributes.npy``.
Shards of JPEGs are tar files that any reader of WebDataset takes, with ``index.npy`` (N, 3) int64 of (shard,
first byte, size); shards of pixels are .npy, (n, px, px, 3) uint8.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.source import Source
from engine.data.tar_index import read_range
from engine.errors import DataError, UsageError
from engine.json_files import DAMAGED

MANIFEST = "prepared.json"
VERSION = 1


def is_prepared(path: Path) -> bool:
    """Whether a folder was made by ``diffsiam prepare``, to its end."""
    return (path / MANIFEST).is_file()


class PreparedSource(Source):
    """Images of one size; JPEGs are decoded, pixels are taken from the file as they are.

    Raises:
        UsageError: the manifest cannot be read, or a shard is missing or of another size than it states.
    """

    name = "prepared"

    def __init__(self, path: str | Path):
        self.root = Path(path).expanduser()
        try:
            self.manifest: dict[str, Any] = json.loads((self.root / MANIFEST).read_text())
            self._shards = self.manifest["shards"]
            self.px, self.encoded = self.manifest["px"], self.manifest["format"] == "jpeg"
            self._count = sum(shard["count"] for shard in self._shards)
        except (*DAMAGED, KeyError, TypeError) as error:
            raise UsageError(f"this is no set made by diffsiam prepare; {self.root}; {error}") from error
        if self.manifest.get("version") != VERSION:
            raise UsageError(f"made by another version of diffsiam prepare; {self.root}; prepare it again")
        for shard in self._shards:
            file = self.root / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size:,} of {shard['bytes']:,} bytes"
                raise UsageError(f"a shard {found}; {file}; run diffsiam prepare again")
        self._first = np.cumsum([0, *(shard["count"] for shard in self._shards)])
        self._open: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # maps are made anew where they are read

    @cached_property
    def _index(self) -> np.ndarray:
        return np.load(self.root / "index.npy", mmap_mode="r")

    def __len__(self) -> int:
        return self._count

    def read(self, indices: np.ndarray) -> Sequence[np.ndarray] | np.ndarray:
        """Contents (1-D uint8 each) of JPEGs, or pixels (B, px, px, 3)."""
        if self.encoded:
            return [self._contents(int(index)) for index in indices]
        return np.stack([self._pixels(int(index)) for index in indices])

    def _contents(self, index: int) -> np.ndarray:
        shard, start, size = (int(value) for value in self._index[index])
        return read_range(str(self.root / self._shards[shard]["file"]), start, size)

    def _pixels(self, index: int) -> np.ndarray:
        shard = int(np.searchsorted(self._first, index, side="right")) - 1
        if shard not in self._open:
            file = self.root / self._shards[shard]["file"]
            try:
                self._open[shard] = np.load(file, mmap_mode="r")
            except (OSError, ValueError) as error:
                raise DataError(f"cannot read a shard; {file}; {error}") from error
        return self._open[shard][index - self._first[shard]]

    @property
    def framing(self) -> str:
        return self.manifest.get("framing", super().framing)

    @property
    def labels(self) -> np.ndarray | None:
        return self._beside("labels.npy")

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def attributes(self) -> np.ndarray | None:
        return self._beside("attributes.npy")

    @property
    def attribute_names(self) -> list[str]:
        return self.manifest["attribute_names"]

    def _beside(self, name: str) -> np.ndarray | None:
        return np.load(self.root / name) if (self.root / name).is_file() else None

    def item(self, index: int) -> str:
        return f"{self.root}, image {index}"

    def describe(self) -> str:
        what = f"JPEGs of quality {self.manifest['quality']}" if self.encoded else "raw pixels"
        images = f"{len(self):,} images of {self.px} px"
        return f"prepared {self.root}: {images}, {what} (from {self.manifest['source']})"

    def fingerprint(self) -> str:
        return self.manifest["sha256"]
