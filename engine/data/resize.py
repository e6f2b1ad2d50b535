"""Cutting and resizing one decoded image on the CPU: torchvision's operations on uint8 tensors.

torch resizes uint8 with antialiasing several times faster there than DALI does, whose graph does it on GPUs
(:mod:`engine.data.graph`); both keep within 0.5 / 255 of Pillow on average.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def squared(image: np.ndarray, px: int) -> Tensor:
    """``center_crop(resize(image, px), px)`` of (H, W, 3) uint8: (px, px, 3)."""
    height, width = image.shape[:2]
    short = min(height, width)
    resized = _resized(torch.from_numpy(image), px * height // short, px * width // short)
    top, left = (round((length - px) / 2) for length in resized.shape[:2])
    return resized[top : top + px, left : left + px]


def cut(image: np.ndarray, box: np.ndarray, px: int) -> Tensor:
    """``resized_crop`` of (H, W, 3) uint8 at ``box``, (4,) top, left, height, width: (px, px, 3)."""
    top, left, height, width = (int(value) for value in box)
    return _resized(torch.from_numpy(image[top : top + height, left : left + width]), px, px)


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with antialiasing."""
    if tuple(image.shape[:2]) == (height, width):
        return image
    planes = image.permute(2, 0, 1)[None]
    out = functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)
    return out[0].permute(1, 2, 0)
