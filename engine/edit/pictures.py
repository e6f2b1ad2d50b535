"""The images of an edit: files, or items of the training set by number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffsiam.sampling import to_uint8
from engine.data.fetching import fetch
from engine.data.sources import FolderSource, Source
from engine.edit.opening import Trained, training_images
from engine.errors import UsageError


class Files(FolderSource):
    """Image files anywhere, in the order given.

    Raises:
        UsageError: one does not exist.
    """

    def __init__(self, paths: Sequence[str]):
        self.root, self.files = Path(), list(paths)
        for path in paths:
            if not Path(path).is_file():
                raise UsageError(f"--image {path}: neither a file nor a number of the training set's images")


@dataclass(frozen=True)
class Pictures:
    """uint8 images (N, px, px, 3), and what each of them is."""

    images: Tensor
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)


def pictures(opened: Trained, asked: Sequence[str], data: Path | None, count: int) -> Pictures:
    """The images asked for by path or number; without any, the first ``count`` that training never saw, or,
    of a folder, the first ones.

    Raises:
        UsageError: a file does not exist, a number is out of range.
        DataError: a file is no image.
    """
    if asked and not all(_is_number(name) for name in asked):
        numbered = [name for name in asked if _is_number(name) and not Path(name).is_file()]
        if numbered:
            raise UsageError(f"--image {numbered[0]}: give either paths or numbers, not both")
        return Pictures(torch.from_numpy(fetch(Files(asked), opened.px, range(len(asked)))), list(asked))
    indices = [int(name) for name in asked]
    source = training_images(opened, data, least=1 + max(indices, default=0))
    if not indices:
        indices = unseen(opened, data, count)
        source = training_images(opened, data, least=1 + indices[-1])
    if max(indices) >= len(source):
        raise UsageError(f"--image {max(indices)}: there are {len(source)} images, from 0 on")
    found = fetch(source, opened.px, np.array(indices))
    return Pictures(torch.from_numpy(found), [source.item(index) for index in indices])


def pairs_of(pictures: Pictures) -> list[tuple[int, int]]:
    """Each two that follow one another make a pair.

    Raises:
        UsageError: their number is odd.
    """
    if len(pictures) % 2:
        raise UsageError(f"--image was given {len(pictures)} times, but every two make a pair")
    return [(i, i + 1) for i in range(0, len(pictures), 2)]


def pixels(images: Tensor) -> np.ndarray:
    """Images (..., 3, px, px) in [-1, 1] -> (..., px, px, 3) uint8."""
    flat = to_uint8(images.flatten(0, -4))
    return flat.view(*images.shape[:-3], *flat.shape[1:]).cpu().numpy()


def labelled_images(source: Source, samples: int) -> np.ndarray:
    """Indices of at most ``samples`` images (0: all), spread evenly over the source."""
    count = len(source) if samples == 0 else min(samples, len(source))
    return np.arange(count, dtype=np.int64) * len(source) // count


def unseen(opened: Trained, data: Path | None, count: int) -> list[int]:
    """Numbers of the first ``count`` images that training never saw or, of a folder, of the first ones."""
    trained = opened.images
    rooms = data is None and trained is not None and trained.data.source == "rooms"
    start = trained.data.count if rooms and trained is not None else 0
    return list(range(start, start + count))


def _is_number(name: str) -> bool:
    return name.isdecimal()
