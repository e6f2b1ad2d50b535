"""The sheet of ``diffsiam rooms``: some rooms, and one of them at every value of every factor."""

from __future__ import annotations

import numpy as np
from PIL import Image

from engine.data.rooms import FACTORS, LEVELS, Rooms, render
from engine.sheet import sheet

ROWS_OF_ROOMS = 2  # above the rows of single factors


def rooms_sheet(px: int, seed: int) -> Image.Image:
    """Rooms of ``seed``, then one row per factor: the first room with that factor at each of its values.

    The values which that room has itself are framed.

    Raises:
        UsageError: for a size that cannot be drawn.
    """
    columns = int(LEVELS.max())
    drawn = Rooms(px, seed, count=ROWS_OF_ROOMS * columns)
    images = drawn.images(np.arange(len(drawn))).reshape(ROWS_OF_ROOMS, columns, px, px, 3)
    first = drawn.factors(np.array([0]))[0]
    factor_rows = [factor_row(first, index, px, columns) for index in range(len(FACTORS))]
    names = ["rooms", *[""] * (ROWS_OF_ROOMS - 1), *(factor.name for factor in FACTORS)]
    own = [(ROWS_OF_ROOMS + index, int(level)) for index, level in enumerate(first)]
    return sheet(np.concatenate((images, factor_rows)), names, framed=[(0, 0), *own])


def factor_row(room: np.ndarray, factor: int, px: int, columns: int) -> np.ndarray:
    """A room's levels (12,) -> it at every value of one factor, white beyond, uint8 (columns, px, px, 3)."""
    levels = np.tile(room, (LEVELS[factor], 1))
    levels[:, factor] = np.arange(LEVELS[factor])
    row = np.full((columns, px, px, 3), 255, np.uint8)
    row[: len(levels)] = render(levels, px)
    return row
