"""The views that linear recipes train and test on: random crops with flips, and the zoomed centre."""

from __future__ import annotations

from math import exp, log

import torch
from torch import Tensor
from torch.nn import functional as F

SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10


def crops(images: Tensor, px: int, seed: int) -> Tensor:
    """A random resized crop of every image, mirrored with probability 1/2: (N, px, px, 3) uint8.

    Area 8 to 100 %, aspect ratio 3/4 to 4/3, bicubic: SimSiam's linear evaluation.
    """
    generator = torch.Generator().manual_seed(seed)
    found = torch.empty(len(images), px, px, 3, dtype=torch.uint8)
    for i, image in enumerate(images):
        top, left, height, width = _box(image.shape[0], image.shape[1], generator)
        piece = _resized(image[top : top + height, left : left + width], px)
        mirrored = torch.rand((), generator=generator) < 0.5
        found[i] = piece.flip(1) if mirrored else piece
    return found


def zoomed(images: Tensor, px: int) -> Tensor:
    """Every image resized to 8/7 of ``px`` and cropped at the centre, as the recipes test."""
    side = int(px * 8 / 7)
    edge = (side - px) // 2
    return torch.stack([_resized(image, side)[edge : edge + px, edge : edge + px] for image in images])


def _box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """top, left, height, width; the whole image if no try fits."""
    for _ in range(TRIES):
        u = torch.rand(4, generator=generator).tolist()
        area = height * width * (SCALE[0] + u[0] * (SCALE[1] - SCALE[0]))
        ratio = exp(log(RATIO[0]) + u[1] * (log(RATIO[1]) - log(RATIO[0])))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1)), h, w
    return 0, 0, height, width


def _resized(image: Tensor, side: int) -> Tensor:
    x = image.permute(2, 0, 1)[None].float()
    x = F.interpolate(x, (side, side), mode="bicubic", antialias=True, align_corners=False)
    return x[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8)
