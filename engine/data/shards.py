"""Images in tar files (WebDataset and others), read where they lie: nothing is ever extracted."""

from __future__ import annotations

import hashlib
import tarfile
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.data.folder import first_folder, natural
from engine.data.source import SUFFIXES, Source
from engine.data.splits import Split, select
from engine.data.tar_index import index, read_range, stem
from engine.errors import UsageError


def find_shards(path: Path) -> list[Path]:
    """The tar files that a path is or holds, in natural order."""
    if path.is_dir():
        return sorted(path.glob("*.tar"), key=lambda file: natural(file.name))
    return [path] if path.suffix == ".tar" or (path.is_file() and tarfile.is_tarfile(path)) else []


READ = " ".join(SUFFIXES)


class TarSource(Source):
    """The images of uncompressed tar files, in the order in which they lie.

    A sample's label is its file .cls beside the image (WebDataset), else the first folder of its path. Of
    shards whose names state splits, those of ``split`` are read. Only regular members count: links and
    devices are passed over, and no name is used as a path.

    Raises:
        UsageError: no tar file, no image, a compressed or truncated archive.
    """

    name = "tar"

    def __init__(self, path: str | Path, split: Split = "train"):
        self.root = Path(path).expanduser()
        found = {file.name: file for file in find_shards(self.root)}
        self.shards = [str(found[name]) for name in select(found, split)]
        self.split = f" ({split})" if len(self.shards) < len(found) else ""
        if not self.shards:
            held = f"it holds {', '.join(list(found)[:4])}" if found else "it holds no .tar"
            raise UsageError(f"no tar files{f' of the split {split}' if found else ''} ({held}); {self.root}")
        listed = index(self.root, self.shards)
        if not listed.names:
            raise UsageError(f"no images in {len(self.shards)} tar files; {self.root}; files read: {READ}")
        self.names, self._places, self._codes = listed.names, listed.places, listed.codes

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: np.ndarray) -> list[np.ndarray]:
        """Contents of the members ``indices``, 1-D uint8 each."""
        return [self._contents(int(index)) for index in indices]

    def _contents(self, index: int) -> np.ndarray:
        number, start, size = self._places[index]
        return read_range(self.shards[number], int(start), int(size))

    def item(self, index: int) -> str:
        return f"{self.shards[self._places[index, 0]]}, member {self.names[index]}"

    @cached_property
    def _labelled(self) -> tuple[list[str], np.ndarray | None]:
        """Classes and labels."""
        shards = self._places[:, 0]
        keys = [f"{shard}/{stem(name)[0]}" for shard, name in zip(shards, self.names, strict=True)]
        if self._codes and all(key in self._codes for key in keys):
            labels = np.array([self._codes[key] for key in keys], dtype=np.int64)
            return [str(code) for code in range(int(labels.max()) + 1)], labels
        folders = [first_folder(name) for name in self.names]
        if not all(folders):
            return [], None
        classes = sorted(set(folders), key=natural)
        number = {name: i for i, name in enumerate(classes)}
        return classes, np.array([number[folder] for folder in folders], dtype=np.int64)

    @property
    def classes(self) -> list[str]:
        return self._labelled[0]

    @property
    def labels(self) -> np.ndarray | None:
        return self._labelled[1]

    def describe(self) -> str:
        classes = f" in {len(self.classes)} classes" if self.classes else ""
        shards = f" in {len(self.shards):,} shards" if len(self.shards) > 1 else ""
        return f"tar {self.root}: {len(self):,} images{classes}{shards}{self.split}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for name, (_, _, size) in zip(self.names, self._places, strict=True):
            digest.update(f"\0{name}\0{size}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
