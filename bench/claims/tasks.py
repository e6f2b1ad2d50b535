"""What the features are asked for: a source task and eleven transfers, made of rooms nobody was trained on.

They follow the kinds of thesis Table 4.1: fine details, textures, scenes, colours, poses, other styles, other
viewpoints, unequal classes. A task's classes are the combinations of its factors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from diffsiam.evaluation.many_shot import Metric, mean_per_class, top_1
from engine.data.rooms import FACTORS, LEVELS, Rooms

NAMES = [factor.name for factor in FACTORS]
SEED = (1 << 40) + 1  # no training set's seed: all models and seeds are asked the same
STANDARD, SPECIAL = (2000, 2000), (1200, 1200)  # images for training and validation, and for test


@dataclass(frozen=True)
class Task:
    """Classify rooms by the combination of some factors.

    Attributes:
        name: for tables.
        kind: what it stands for.
        factors: whose combinations are the classes.
        style: of the images, a key of STYLES.
        metric: of the test score.
    """

    name: str
    kind: str
    factors: tuple[str, ...]
    style: str = "plain"
    metric: Metric = top_1

    def labels(self, levels: np.ndarray) -> np.ndarray:
        """Levels (N, 12) -> classes (N,) int64."""
        columns = [NAMES.index(factor) for factor in self.factors]
        return np.ravel_multi_index(levels[:, columns].T, LEVELS[columns])

    @property
    def classes(self) -> int:
        """Number of combinations."""
        return int(np.prod([LEVELS[NAMES.index(factor)] for factor in self.factors]))


TASKS = (
    Task("objects", "source", ("clutter", "quilt")),
    Task("details", "fine details", ("picture", "lamp")),
    Task("backgrounds", "scenes", ("wall", "floor")),
    Task("colours", "colours", ("bed_colour",)),
    Task("places", "poses", ("window", "pan")),
    Task("sizes", "sizes", ("bed_size", "window")),
    Task("light", "light", ("warmth", "brightness")),
    Task("recoloured", "another style", ("clutter", "quilt"), "recoloured"),
    Task("mirrored", "another pose", ("clutter", "window"), "mirrored"),
    Task("close-up", "another viewpoint", ("bed_colour", "quilt"), "close-up"),
    Task("mixed", "unseen values", ("wall",), "mixed"),
    Task("unequal", "unequal classes", ("clutter", "bed_colour"), "unequal", mean_per_class),
)
SOURCE, TRANSFERS = TASKS[0], TASKS[1:]


@dataclass(frozen=True)
class Images:
    """Rooms in one style, the training part first.

    Attributes:
        images: (N, px, px, 3) uint8.
        levels: (N, 12) int64.
        train: how many of them are for training and validation.
    """

    images: torch.Tensor
    levels: np.ndarray
    train: int


def draw(style: str, px: int) -> Images:
    """The images of a style."""
    (train, test), place = STANDARD if style == "plain" else SPECIAL, list(STYLES).index(style)
    rooms = Rooms(px, SEED + place, train + test, continuous=style == "mixed")
    indices = np.arange(len(rooms))
    levels, images = rooms.factors(indices), rooms.images(indices)
    if style == "close-up":
        images = Rooms(2 * px, SEED + place, train + test).images(indices)
    levels = np.rint(levels).astype(np.int64)
    kept = STYLES[style](levels, train)
    return Images(
        torch.from_numpy(_restyled(style, images, px)[kept]), levels[kept], int((kept < train).sum())
    )


def _restyled(style: str, images: np.ndarray, px: int) -> np.ndarray:
    if style == "recoloured":  # channels exchanged, light inverted
        return 255 - images[..., [2, 0, 1]]
    if style == "mirrored":
        return np.ascontiguousarray(images[:, :, ::-1])
    if style == "close-up":  # the lower middle of the room, where the bed is, twice as large
        return np.ascontiguousarray(images[:, px - px // 8 : 2 * px - px // 8, px // 2 : px // 2 + px])
    return images


def _all(levels: np.ndarray, train: int) -> np.ndarray:
    return np.arange(len(levels))


def _unequal(levels: np.ndarray, train: int) -> np.ndarray:
    """Training images of the i-th clutter are kept with probability 1 / 2^i; test is left alone."""
    keep = np.random.default_rng(SEED).random(len(levels)) < 0.5 ** levels[:, NAMES.index("clutter")]
    return np.flatnonzero(keep | (np.arange(len(levels)) >= train))


STYLES: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "plain": _all,
    "recoloured": _all,
    "mirrored": _all,
    "close-up": _all,
    "mixed": _all,
    "unequal": _unequal,
}
