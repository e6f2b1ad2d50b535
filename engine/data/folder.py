"""Images as files in a folder, at any depth: classes, the published split, or FFHQ's thousands."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.data.source import SUFFIXES, Source
from engine.data.splits import Split, select, split_of
from engine.errors import DataError, UsageError

FFHQ_FILE = re.compile(r"(?:.*/)?(\d{5})\.png", re.DOTALL)


class FolderSource(Source):
    """JPEG, PNG, WebP and BMP files of any size, anywhere under a folder, in natural order of their paths.

    Where all files lie in folders named after splits (train, val, test), those of ``split`` are taken and the
    folder of the split is left out of their paths. The label of a file is the first folder of its path; there
    are labels only if every file has one. Hidden files and folders are skipped, symbolic links followed.

    Raises:
        UsageError: ``path`` does not exist, is not a folder, cannot be listed, or holds no such file.
    """

    name = "folder"
    split = ""

    def __init__(self, path: str | Path, split: Split = "train"):
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
        self.split = self._divide(split)
        if is_ffhq(self.files):
            self.name = "ffhq"

    def _divide(self, split: Split) -> str:
        """Keep the files of ``split`` if the first folders are splits; returns what to say about it."""
        tops = dict.fromkeys(map(first_folder, self.files))
        if (
            split == "all"
            or not all(split_of(top) == _exactly(top) for top in tops)
            or not all(map(_exactly, tops))
        ):
            return ""
        chosen = select(tops, split)
        if not chosen:
            raise UsageError(
                f"no images of the split {split} ({self.root} holds {', '.join(tops)}); set data.split to "
                "one of them, or to all"
            )
        self.files = [file for file in self.files if first_folder(file) in chosen]
        if len(chosen) == 1:
            self.root /= chosen[0]
            self.files = [file.partition(os.sep)[2] for file in self.files]
        return f" ({split})"

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
    def classes(self) -> list[str]:  # type: ignore[override]
        if self.name == "ffhq":  # its folders are thousands, not classes
            return []
        names = dict.fromkeys(first_folder(file) for file in self.files)
        return [] if "" in names else list(names)

    @cached_property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]
        if not self.classes:
            return None
        label = {name: i for i, name in enumerate(self.classes)}
        return np.array([label[first_folder(file)] for file in self.files], dtype=np.int64)

    def describe(self) -> str:
        kind = "FFHQ" if self.name == "ffhq" else "folder"
        classes = f" in {len(self.classes)} classes" if self.classes else ""
        return f"{kind} {self.root}: {len(self):,} images{classes}{self.split}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.name} {len(self)}".encode())
        for index, file in enumerate(self.files):
            digest.update(f"\0{file}\0{os.stat(self.item(index)).st_size}".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def is_ffhq(files: list[str]) -> bool:
    """Whether files are FFHQ's: five digits .png, in folders of thousands or in one."""
    if not (files[0].endswith(".png") and files[-1].endswith(".png")):
        return False
    for file in files:
        match = FFHQ_FILE.fullmatch(file)
        if match is None:
            return False
        folder = os.path.basename(os.path.dirname(file))
        if folder.isdecimal() and int(folder) != int(match[1]) // 1000 * 1000:
            return False
    return True


def first_folder(relative: str) -> str:
    """The first folder of a path, "" if it has none."""
    head, separator, _ = relative.partition(os.sep)
    return head if separator else ""


def natural(name: str) -> list[tuple[int, int | str]]:
    """A sorting key that puts img2 before img10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts] + [(2, name)]


def _exactly(name: str) -> str | None:
    """The split of a folder that is named after it and nothing else: "training data" may be a class."""
    return split_of(name) if name.isalpha() else None


def _walk(root: str, relative: str, other: Counter[str], seen: set[str]) -> Iterator[str]:
    """Paths, relative to ``root``, of the images below ``root``/``relative``; ``other`` counts the rest."""
    folder = os.path.join(root, relative)
    if (real := os.path.realpath(folder)) in seen:  # a symbolic link back to a folder already read
        return
    seen.add(real)
    with os.scandir(folder) as found:
        entries = [entry for entry in found if not entry.name.startswith(".")]
    entries.sort(key=lambda entry: natural(entry.name))
    for entry in entries:
        path = os.path.join(relative, entry.name)
        if entry.is_dir():
            yield from _walk(root, path, other, seen)
        elif entry.is_file() and entry.name.lower().endswith(SUFFIXES):
            yield path
        else:
            other[os.path.splitext(entry.name)[1].lower() or "no suffix"] += 1


def _inventory(other: Counter[str]) -> str:
    """What a folder without images holds, in a few words."""
    if not other:
        return "it holds no files"
    return "it holds " + ", ".join(f"{count} {suffix}" for suffix, count in other.most_common(4))
