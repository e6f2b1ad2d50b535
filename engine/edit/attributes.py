"""Labels of attributes: factors of Rooms, what a set itself says (CelebA's 40, classes), or a CSV."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.data.rooms import FACTORS, LEVELS
from engine.data.sources import FolderSource, RoomsSource, Source
from engine.errors import UsageError

ROOMS_DEFAULT = ("brightness", "lamp")


@dataclass(frozen=True)
class Labels:
    """Two-valued labels of images.

    Attributes:
        names: of the attributes.
        indices: (N,) int64, of the labelled images in the source.
        values: (N, attributes) bool.
    """

    names: list[str]
    indices: np.ndarray
    values: np.ndarray


def read_labels(source: Source, indices: np.ndarray, asked: list[str], file: Path | None) -> Labels:
    """Labels of the images ``indices`` of a source, for the attributes asked for.

    Args:
        asked: of Rooms "FACTOR", which is true in the upper half of its values, or "FACTOR=VALUE"; of other
            sets their attributes or classes; of a file the names of its columns; none: brightness and lamp,
            or the first.
        file: CelebA's list_attr_celeba.txt, or a CSV whose first column names the images (by path below the
            folder, or by file name) and whose other columns are attributes: 1 for true, 0 or -1 for false.

    Raises:
        UsageError: there are no labels, an attribute is unknown, or no image of the source is labelled.
    """
    if file is not None:
        return _of_file(source, indices, asked, file)
    if isinstance(source, RoomsSource):
        names = asked or list(ROOMS_DEFAULT)
        levels = source.rooms.factors(indices)
        return Labels(names, indices, np.stack([_of_rooms(name, levels) for name in names], axis=1))
    if own_names(source):
        return _of_source(source, indices, asked)
    raise UsageError("these images have no labels; --labels: give a CSV, or CelebA's list_attr_celeba.txt")


def own_names(source: Source) -> list[str]:
    """What a set itself says of its images: its attributes, or else its classes."""
    if source.attributes is not None:
        return list(source.attribute_names)
    return list(source.classes) if source.labels is not None else []


def _of_source(source: Source, indices: np.ndarray, asked: list[str]) -> Labels:
    names = own_names(source)
    chosen = asked or names[:1]
    for name in chosen:
        if name not in names:
            raise UsageError(f"--attribute {name}: {_nearest(name, names)}")
    columns = [names.index(name) for name in chosen]
    if source.attributes is not None:
        values = source.attributes[indices][:, columns].astype(bool)
    else:
        assert source.labels is not None, "it has names"
        values = source.labels[indices][:, None] == np.array(columns)
    return Labels(chosen, np.asarray(indices), values)


def _of_rooms(name: str, levels: np.ndarray) -> np.ndarray:
    factor, _, value = name.partition("=")
    names = [f.name for f in FACTORS]
    if factor not in names:
        raise UsageError(f"--attribute {name}: {_nearest(factor, names)}")
    k = names.index(factor)
    if not value:
        return levels[:, k] >= LEVELS[k] / 2
    if value not in FACTORS[k].values:
        raise UsageError(f"--attribute {name}: {factor} is one of {', '.join(FACTORS[k].values)}")
    return levels[:, k] == FACTORS[k].values.index(value)


def _of_file(source: Source, indices: np.ndarray, asked: list[str], file: Path) -> Labels:
    if not isinstance(source, FolderSource):
        raise UsageError("--labels: names files, but these images are drawn; leave it out")
    names, rows = read_table(file)
    chosen = asked or names[:1]
    for name in chosen:
        if name not in names:
            raise UsageError(f"--attribute {name}: {file} has no such column; {_nearest(name, names)}")
    columns = [names.index(name) for name in chosen]
    kept, values = [], []
    for index in indices:
        path = source.files[index]
        row = rows.get(path, rows.get(Path(path).name))
        if row is not None:
            kept.append(index)
            values.append([row[column] for column in columns])
    if not kept:
        raise UsageError(f"--labels {file}: names none of the images of {source.root}")
    return Labels(chosen, np.array(kept, dtype=np.int64), np.array(values, dtype=bool))


def read_table(file: Path) -> tuple[list[str], dict[str, list[bool]]]:
    """Names of the attributes, and the labels of each image by its name.

    Raises:
        UsageError: the file cannot be read, or a line is not what it should be.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--labels {file}: {error}") from error
    if (
        lines and lines[0].strip().isdecimal()
    ):  # CelebA: the number of images, names, then "000001.jpg -1 1 ..."
        names, start = (lines[1].split() if len(lines) > 1 else []), 2
        split = [line.split() for line in lines[start:]]
    else:
        try:
            table = list(csv.reader(lines))
        except csv.Error as error:
            raise UsageError(f"--labels {file}: {error}") from error
        names, start = [name.strip() for name in (table[0][1:] if table else [])], 1
        split = table[1:]
    if not names:
        raise UsageError(f"--labels {file}: its head names no attribute")
    rows = {}
    for number, cells in enumerate(split, start=start + 1):
        if not cells:
            continue
        if len(cells) != len(names) + 1:
            raise UsageError(f"--labels {file}:{number}: {len(cells) - 1} labels for {len(names)} attributes")
        rows[cells[0].strip()] = [_truth(cell.strip(), file, number) for cell in cells[1:]]
    return names, rows


def _truth(cell: str, file: Path, number: int) -> bool:
    if cell not in ("1", "0", "-1"):
        raise UsageError(f"--labels {file}:{number}: {cell!r} is neither 1 nor 0 nor -1")
    return cell == "1"


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1)
    return f"the nearest is {near[0]}" if near else f"there are {', '.join(names)}"
