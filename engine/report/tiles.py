"""Many small images in one picture, none of them twice."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

WIDTH = 2048  # of the picture, in pixels


class Tiles:
    """Square images of one size, numbered in the order they came.

    Attributes:
        columns: tile i stands in row i // columns, column i % columns.
    """

    def __init__(self, px: int):
        self.px, self.columns = px, max(1, WIDTH // px)
        self._numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def add_all(self, images: np.ndarray) -> Any:
        """Keep images (..., px, px, 3) uint8; returns their numbers as nested lists (...)."""
        flat = images.reshape(-1, *images.shape[-3:])
        numbers = [self._numbers.setdefault(image.tobytes(), len(self._numbers)) for image in flat]
        return np.array(numbers).reshape(images.shape[:-3]).tolist()

    def picture(self) -> Image.Image:
        """All of them; white where there is none."""
        rows = -(-len(self) // self.columns)
        canvas = np.full((rows, self.columns, self.px, self.px, 3), 255, dtype=np.uint8)
        for pixels, number in self._numbers.items():
            tile = np.frombuffer(pixels, np.uint8).reshape(self.px, self.px, 3)
            canvas[number // self.columns, number % self.columns] = tile
        return Image.fromarray(canvas.swapaxes(1, 2).reshape(rows * self.px, self.columns * self.px, 3))
