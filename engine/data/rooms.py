"""Rooms: procedural bedrooms with known factors, the data set that needs no download.

Twelve independent factors, spread over four orders of granularity from the quilt's pattern to the room's
light, decide an image and nothing else does: there is no noise. Factors and images are pure functions of
(seed, index). A set is a seed with the indices [0, count); held-out rooms are those from ``count`` on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from engine.data.rooms_draw import Scene, draw
from engine.errors import UsageError
from kernels.philox import uniform_np

VERSION = "rooms@1"
STREAM_ROOMS = 16  # apart from the streams of training: no factor shares bits with a noise
SMALLEST_PX, LARGEST_PX = 16, 128
CHUNK_PIXELS = 1 << 17  # pixels drawn at once: many images, so that NumPy's cost per call is small

Granularity = Literal["fine", "medium", "coarse", "global"]


@dataclass(frozen=True)
class Factor:
    """One factor of variation: its values in order, and the order of granularity it was designed for."""

    name: str
    values: tuple[str, ...]
    granularity: Granularity


# What each value is drawn as. Neighbours in a table are neighbours in continuous mode.
QUILT = ("plain", "stripes", "bands", "checks", "border")
CLUTTER = ("none", "books", "box", "ball", "plant")
PICTURE = {  # colours of sky and land
    "sea": (0.66, 0.78, 0.84, 0.26, 0.42, 0.58),
    "meadow": (0.72, 0.80, 0.70, 0.32, 0.48, 0.26),
    "desert": (0.84, 0.78, 0.62, 0.64, 0.46, 0.26),
    "dusk": (0.78, 0.60, 0.58, 0.42, 0.24, 0.38),
}
LAMP = {"off": (0.0,), "low": (0.11,), "half": (0.22,), "full": (0.33,)}
BED_SIZE = {"single": (0.150,), "double": (0.176,), "queen": (0.202,), "king": (0.228,)}
WINDOW = {"far left": (0.195,), "left": (0.242,), "right": (0.289,), "far right": (0.336,)}
BED_COLOUR = {
    "linen": (0.86, 0.82, 0.74),
    "mustard": (0.84, 0.64, 0.22),
    "coral": (0.82, 0.40, 0.34),
    "violet": (0.52, 0.38, 0.66),
    "blue": (0.24, 0.42, 0.72),
    "teal": (0.20, 0.54, 0.50),
}
PAN = {"far left": (0.08,), "left": (0.04,), "centre": (0.0,), "right": (-0.04,), "far right": (-0.08,)}
WARMTH = {
    "moonlight": (0.82, 0.95, 1.12),
    "daylight": (0.97, 1.0, 1.0),
    "evening": (1.06, 0.97, 0.82),
    "candle": (1.12, 0.93, 0.65),
}
FLOOR = {
    "ash": (0.88, 0.82, 0.72),
    "oak": (0.72, 0.50, 0.28),
    "walnut": (0.27, 0.17, 0.12),
    "wine": (0.48, 0.14, 0.20),
    "slate": (0.36, 0.42, 0.52),
    "moss": (0.38, 0.52, 0.26),
}
BRIGHTNESS = {"dark": (0.45,), "dim": (0.64,), "clear": (0.85,), "bright": (1.08,)}
WALL = {
    "cream": (0.95, 0.91, 0.82),
    "ochre": (0.90, 0.66, 0.28),
    "rose": (0.86, 0.46, 0.47),
    "plum": (0.40, 0.20, 0.40),
    "navy": (0.13, 0.22, 0.44),
    "sage": (0.42, 0.62, 0.48),
}

FACTORS: tuple[Factor, ...] = (  # fine to coarse
    Factor("quilt", QUILT, "fine"),
    Factor("lamp", tuple(LAMP), "fine"),
    Factor("picture", tuple(PICTURE), "fine"),
    Factor("clutter", CLUTTER, "medium"),
    Factor("bed_size", tuple(BED_SIZE), "medium"),
    Factor("window", tuple(WINDOW), "medium"),
    Factor("bed_colour", tuple(BED_COLOUR), "coarse"),
    Factor("warmth", tuple(WARMTH), "coarse"),
    Factor("pan", tuple(PAN), "coarse"),
    Factor("floor", tuple(FLOOR), "coarse"),
    Factor("wall", tuple(WALL), "global"),
    Factor("brightness", tuple(BRIGHTNESS), "global"),
)
LEVELS = np.array([len(factor.values) for factor in FACTORS])


@dataclass(frozen=True)
class Rooms:
    """``count`` rooms of ``px`` pixels a side, whose factors are drawn uniformly and independently.

    With ``continuous``, factors are real numbers in [0, levels - 1] and neighbouring values are mixed. Room 0
    is number ``first`` of the seed's endless sequence. Raises UsageError for a size outside 16 .. 128 or a
    count below one.
    """

    px: int
    seed: int = 0
    count: int = 50_000
    continuous: bool = False
    first: int = 0

    def __post_init__(self) -> None:
        _check_px(self.px)
        if self.count < 1:
            raise UsageError(f"a set of {self.count} rooms is empty; data.count; ask for at least 1")

    def __len__(self) -> int:
        return self.count

    def held_out(self, count: int) -> Rooms:
        """``count`` rooms that follow this set's in its seed: the same distribution, other indices."""
        return replace(self, first=self.first + self.count, count=count)

    def factors(self, indices: np.ndarray) -> np.ndarray:
        """Levels (N, 12) of the rooms ``indices`` (N,): int64, float64 in [0, levels - 1] if continuous.

        Raises IndexError for an index outside [0, count).
        """
        indices = np.asarray(indices, np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= self.count):
            raise IndexError(f"rooms {indices.min()} to {indices.max()} asked of a set of {self.count}")
        uniform = uniform_np(self.seed, indices + self.first, len(FACTORS), STREAM_ROOMS).astype(np.float64)
        if self.continuous:
            return uniform * (LEVELS - 1)
        return np.floor(uniform * LEVELS).astype(np.int64)

    def images(self, indices: np.ndarray) -> np.ndarray:
        """The rooms ``indices`` (N,) int64 as uint8 (N, px, px, 3)."""
        return render(self.factors(indices), self.px)


def render(levels: np.ndarray, px: int) -> np.ndarray:
    """Rooms of the given levels (N, 12), whole or in between, as uint8 (N, px, px, 3).

    Raises UsageError for a size outside 16 .. 128, and for levels of another shape or out of range.
    """
    _check_px(px)
    levels = np.asarray(levels)
    if levels.ndim != 2 or levels.shape[1] != len(FACTORS):
        raise UsageError(f"levels have the shape {levels.shape}; rooms.render; give (N, {len(FACTORS)})")
    if (levels < 0).any() or (levels > LEVELS - 1).any():
        raise UsageError(f"levels out of range; rooms.render; keep within 0 and {(LEVELS - 1).tolist()}")
    images = np.empty((len(levels), px, px, 3), np.uint8)
    chunk = max(1, CHUNK_PIXELS // (px * px))
    for start in range(0, len(levels), chunk):
        images[start : start + chunk] = draw(scene(levels[start : start + chunk]), px)
    return images


def granularity(px: int, samples: int = 256, seed: int = 0) -> dict[str, float]:
    """Granularity of every factor: mean squared change of a pixel when only it is redrawn to another value.

    Pixels are in [0, 1]; the mean is over ``samples`` rooms, colours and positions.
    """
    rng = np.random.default_rng(seed)
    before = rng.integers(0, LEVELS, (samples, len(FACTORS)))
    images = render(before, px).astype(np.float32) / 255
    change = {}
    for index, factor in enumerate(FACTORS):
        after = before.copy()
        step = rng.integers(1, LEVELS[index], samples)
        after[:, index] = (before[:, index] + step) % LEVELS[index]
        change[factor.name] = float(np.square(render(after, px).astype(np.float32) / 255 - images).mean())
    return change


def scene(levels: np.ndarray) -> Scene:
    """What the levels (N, 12) decide, value tables mixed linearly between neighbouring levels."""
    columns = dict(zip((factor.name for factor in FACTORS), np.asarray(levels, np.float64).T, strict=True))
    picture = _mix(PICTURE, columns["picture"])
    return Scene(
        quilt=_weights(QUILT, columns["quilt"]),
        picture_sky=picture[:3],
        picture_land=picture[3:],
        lamp=_mix(LAMP, columns["lamp"])[0],
        clutter=_weights(CLUTTER, columns["clutter"]),
        bed_half_width=_mix(BED_SIZE, columns["bed_size"])[0],
        window_x=_mix(WINDOW, columns["window"])[0],
        bed=_mix(BED_COLOUR, columns["bed_colour"]),
        pan=_mix(PAN, columns["pan"])[0],
        floor=_mix(FLOOR, columns["floor"]),
        wall=_mix(WALL, columns["wall"]),
        light=_mix(WARMTH, columns["warmth"]) * _mix(BRIGHTNESS, columns["brightness"]),
    )


def _lerp(table: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Rows of ``table`` (L, C) at real positions ``levels`` (N,), as (C, N)."""
    low = np.minimum(levels.astype(np.int64), len(table) - 2)
    part = (levels - low).astype(np.float32)
    return (table[low].T * (1 - part) + table[low + 1].T * part).astype(np.float32)


def _mix(values: Mapping[str, tuple[float, ...]], levels: np.ndarray) -> np.ndarray:
    return _lerp(np.array(list(values.values()), np.float32), levels)


def _weights(values: tuple[str, ...], levels: np.ndarray) -> np.ndarray:
    return _lerp(np.eye(len(values), dtype=np.float32), levels)


def _check_px(px: int) -> None:
    if not SMALLEST_PX <= px <= LARGEST_PX:
        raise UsageError(f"rooms of {px} px cannot be drawn; data.px; choose {SMALLEST_PX} to {LARGEST_PX}")
