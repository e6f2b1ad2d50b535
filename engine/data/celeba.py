"""CelebA as it is downloaded: aligned images, the list of its parts, the list of 40 attributes.

Every image (178 x 218 pixels) is cut to 128 x 128 at (57, 25), as DiffAE, PDAE and DiTi do.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from engine.data.folder import FolderSource
from engine.data.source import Region
from engine.data.splits import Split
from engine.errors import UsageError

FOLDER = "img_align_celeba"
REGION: Region = (57, 25, 128, 128)
COUNT = 202_599
# First and last image of each part in the order of file names, as published.
PARTS = {"train": (0, 162_770), "valid": (162_770, 182_637), "test": (182_637, COUNT)}
PARTITION = ("list_eval_partition.txt", "list_eval_partition.csv")
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv", "CelebAMask-HQ-attribute-anno.txt")


def is_celeba(path: Path) -> bool:
    """Whether a folder is CelebA's, or its folder of images."""
    return (path / FOLDER).is_dir() or (path.name == FOLDER and path.is_dir())


class CelebASource(FolderSource):
    """The aligned images of one part, with their attributes.

    Args:
        path: the folder that holds img_align_celeba and the lists, or img_align_celeba beside them.
        split: part of list_eval_partition; without that list, of the published order if all images are there.

    Raises:
        UsageError: no images, or a list that does not name them.
    """

    name = "celeba"
    region = REGION

    def __init__(self, path: str | Path, split: Split = "train"):
        path = Path(path).expanduser()
        images = path / FOLDER if (path / FOLDER).is_dir() else path
        super().__init__(images, "all")
        self.name = "celeba"
        self._lists = [path, images, images.parent]
        total = len(self.files)
        self._kept = self._part(split)
        self.files = [self.files[i] for i in self._kept]
        self.split = f" ({split})" if len(self.files) < total else ""

    def _part(self, split: Split) -> np.ndarray:
        everything = np.arange(len(self.files))
        if split == "all":
            return everything
        if listed := _first(self._lists, PARTITION):
            number = {file: int(part) for file, part in _rows(listed)[1]}
            wanted = list(PARTS).index(split)
            try:
                parts = np.array([number[Path(file).name] for file in self.files])
            except KeyError as error:
                raise UsageError(f"the list of parts does not name {error.args[0]}; {listed}") from None
            return everything[parts == wanted]
        return everything[slice(*PARTS[split])] if len(everything) == COUNT else everything

    @cached_property
    def _attributes(self) -> tuple[list[str], np.ndarray] | None:
        listed = _first(self._lists, ATTRIBUTES)
        if listed is None:
            return None
        names, rows = _rows(listed)
        table = {file: values for file, *values in rows}
        try:
            signs = [table[Path(file).name] for file in self.files]
        except KeyError as error:
            raise UsageError(f"the list of attributes does not name {error.args[0]}; {listed}") from None
        return names, _present(signs)

    @property
    def attributes(self) -> np.ndarray | None:
        return None if self._attributes is None else self._attributes[1]

    @property
    def attribute_names(self) -> list[str]:
        return [] if self._attributes is None else self._attributes[0]

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        return []

    def describe(self) -> str:
        known = f", {len(self.attribute_names)} attributes" if self.attribute_names else ""
        top, left, height, width = REGION
        cut = f"cut to {height} x {width} at ({top}, {left})"
        return f"CelebA {self.root}: {len(self):,} images{self.split}{known}, {cut}"

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{super().fingerprint()} {REGION}".encode()).hexdigest()


def attributes_beside(folder: Path, count: int) -> tuple[list[str], np.ndarray] | None:
    """Names and (count, A) uint8 of a folder's list of attributes, if it has one row an image."""
    listed = _first([folder], ATTRIBUTES)
    if listed is None:
        return None
    names, rows = _rows(listed)
    signs = [values for _, *values in rows]
    return (names, _present(signs)) if len(signs) == count else None


def _first(folders: list[Path], names: tuple[str, ...]) -> Path | None:
    return next((path for folder in folders for name in names if (path := folder / name).is_file()), None)


def _rows(path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """Names of the columns after the file's and one row a file, of a list as published or as a CSV copy."""
    lines = path.read_text().splitlines()
    if path.suffix == ".csv":
        try:
            table = list(csv.reader(lines)) or [[]]
        except csv.Error as error:
            raise UsageError(f"this is no list of CelebA; {path}; {error}") from error
        return table[0][1:], iter(table[1:])
    if lines and lines[0].strip().isdecimal():  # a count, then the names
        return lines[1].split(), (line.split() for line in lines[2:] if line)
    return [], (line.split() for line in lines if line)


def _present(signs: list[list[str]]) -> np.ndarray:
    """-1 and 1 (or 0 and 1) as written -> (N, A) uint8."""
    return (np.array(signs, dtype=np.int8) > 0).astype(np.uint8)
