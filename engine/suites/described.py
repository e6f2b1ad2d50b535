"""Images with many attributes each: Rooms, CelebA (40, binary) and LFW (73, real), in three parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.data.rooms import FACTORS, LEVELS, Rooms
from engine.errors import UsageError
from engine.suites.labelled import ROOMS_SEED, Part

CELEBA_CORNER, CELEBA_SIDE = (25, 57), 128  # left, top of PDAE's and DiTi's crop of the aligned images
LFW_MARGIN = 70 / 64  # DiTi: resized to 70, centre 64
LFW_FILE = "lfw_attributes.txt"
Files = list[Path]


@dataclass(frozen=True)
class Described:
    """A data set whose images have A attributes.

    Attributes:
        parts: train, validation and test; of each the images and the attributes (N, A): 0 or 1, or real.
        names: of the attributes.
        binary: whether they are 0 or 1.
    """

    name: str
    parts: tuple[tuple[Part, np.ndarray], ...]
    names: list[str]
    binary: bool


def rooms_described(px: int, binary: bool, limit: int | None = None) -> Described:
    """Rooms: whether each factor is in the upper half of its values, or its place among them (continuous)."""
    counts = [min(count, limit or count) for count in (3000, 1000, 2000)]
    rooms = Rooms(px, ROOMS_SEED + 1 + (not binary), sum(counts), continuous=not binary)
    ends = np.cumsum([0, *counts])
    parts = []
    for first, last in zip(ends[:-1], ends[1:], strict=True):
        indices = np.arange(first, last)
        levels = rooms.factors(indices)
        values = (levels >= LEVELS / 2).astype(np.float32) if binary else levels.astype(np.float32)
        drawn = _part(partial(rooms.images, indices), len(indices), f"{rooms} {first} {last}")
        parts.append((drawn, values))
    names = [factor.name for factor in FACTORS]
    return Described("Rooms binary" if binary else "Rooms continuous", tuple(parts), names, binary)


def celeba(root: Path, px: int, limit: int | None = None) -> Described:
    """CelebA where torchvision's download lies; the official parts.

    Raises:
        UsageError: its files are not there.
    """
    folder = root / "celeba" if (root / "celeba").is_dir() else root
    rows = _rows(folder / "list_attr_celeba.txt", "CelebA")
    names, attributes = rows[1].split(), {row.split()[0]: row.split()[1:] for row in rows[2:] if row.strip()}
    split = dict(row.split() for row in _rows(folder / "list_eval_partition.txt", "CelebA") if row.strip())
    parts = []
    for number in "012":
        files = [file for file, part in split.items() if part == number][:limit]
        values = np.array([[value == "1" for value in attributes[file]] for file in files], dtype=np.float32)
        paths = [folder / "img_align_celeba" / file for file in files]
        parts.append((_files_part(paths, px, _celeba_crop), values))
    return Described("CelebA", tuple(parts), names, binary=True)


def lfw(root: Path, px: int, limit: int | None = None) -> Described:
    """LFW (funnelled) with lfw_attributes.txt and the people's lists.

    Validation is a fifth of the training part; images without attributes are left out.

    Raises:
        UsageError: its files are not there.
    """
    folder = root / "lfw-py" if (root / "lfw-py").is_dir() else root
    rows = _rows(folder / LFW_FILE, "LFW's attributes")
    names = rows[1].lstrip("#\t ").split("\t")[2:]
    known = {}
    for row in rows[2:]:
        person, number, *values = row.split("\t")
        known[f"{person.replace(' ', '_')}_{int(number):04d}"] = np.array(values, dtype=np.float32)
    found = [_lfw_part(folder, which, known) for which in ("Train", "Test")]
    [(train, train_y), (test, test_y)] = [(files[:limit], values[:limit]) for files, values in found]
    order = np.random.default_rng(0).permutation(len(train))
    cut = len(train) // 5
    parts = []
    for chosen in (order[cut:], order[:cut]):
        parts.append((_files_part([train[i] for i in chosen], px, _lfw_crop), train_y[chosen]))
    parts.append((_files_part(test, px, _lfw_crop), test_y))
    return Described("LFW", tuple(parts), names, binary=False)


def _lfw_part(folder: Path, which: str, known: dict[str, np.ndarray]) -> tuple[Files, np.ndarray]:
    files: Files = []
    values: list[np.ndarray] = []
    for row in _rows(folder / f"peopleDev{which}.txt", "LFW")[1:]:
        person, count = row.split()
        for number in range(1, int(count) + 1):
            name = f"{person}_{number:04d}"
            if name in known:
                files.append(folder / "lfw_funneled" / person / f"{name}.jpg")
                values.append(known[name])
    if not files:
        raise UsageError(f"{folder}: no image of LFW's {which.lower()} part has attributes")
    return files, np.array(values)


def _rows(path: Path, what: str) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: {what} is not there ({error.strerror}); give the folder that holds it"
        ) from error


def _files_part(files: Files, px: int, crop: Callable[[Any], Any]) -> Part:
    def pixels() -> np.ndarray:
        return np.stack([_read(file, px, crop) for file in files])

    ends = f"{files[0]} {files[-1]}" if files else ""
    return _part(pixels, len(files), f"{ends} {len(files)} {px}")


def _read(file: Path, px: int, crop: Callable[[Any], Any]) -> np.ndarray:
    try:
        image = Image.open(file).convert("RGB")
    except OSError as error:
        raise UsageError(f"{file}: cannot be read as an image ({error}); is the data set whole?") from error
    return np.asarray(crop(image).resize((px, px), Image.Resampling.BICUBIC))


def _celeba_crop(image: Image.Image) -> Image.Image:
    left, top = CELEBA_CORNER
    return image.crop((left, top, left + CELEBA_SIDE, top + CELEBA_SIDE))


def _lfw_crop(image: Image.Image) -> Image.Image:
    width, height = image.size
    side = round(min(width, height) / LFW_MARGIN)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _part(pixels: Callable[[], np.ndarray], count: int, key: str) -> Part:
    return Part(pixels, np.zeros(count, np.int64), key)
