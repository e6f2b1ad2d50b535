"""What people write to load the same batches: torch's DataLoader over Pillow and torchvision's transforms v2.

It is given our order and our draws, so that both loaders do equal work and their outputs can be compared; the
steps that a sample does not take are skipped, as transforms v2 do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional

from engine.data.draws import (
    VIEW_STREAMS,
    Augmentation,
    ViewDraws,
    augmentation,
    blur_window,
    crop_boxes,
    flips,
    view_draws,
)
from engine.data.order import locate, order
from engine.data.source import Source

PARAMETERS = 4096  # positions whose draws a worker makes at a time: drawing one by one would slow it down


class UsualDataset(Dataset):
    """One item a position of the endless stream: x_0 and two views, uint8 (3, px, px)."""

    def __init__(self, source: Source, px: int, seed: int, recipe: str, length: int):
        self.source, self.px, self.seed, self.length = source, px, seed, length
        self.steps: Augmentation = augmentation(recipe, px)
        self._block = -1

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> tuple[Tensor, ...]:
        self._draw(position // PARAMETERS)
        at = position % PARAMETERS
        image = self._image(int(self._indices[at]))
        square = functional.center_crop(functional.resize(image, [self.px]), [self.px])
        views = [self._view(image, square, drawn, at) for drawn in self._views]
        x_0 = functional.horizontal_flip(square) if self._flips[at] else square
        return tuple(functional.pil_to_tensor(each) for each in (x_0, *views))

    def _draw(self, block: int) -> None:
        if block == self._block:
            return
        positions = np.arange(block * PARAMETERS, (block + 1) * PARAMETERS)
        epoch, places = locate(positions, len(self.source))
        self._indices = order(self.seed, epoch, places, len(self.source))
        self._flips = flips(self.seed, positions)
        self._views = [view_draws(self.seed, positions, stream) for stream in VIEW_STREAMS.values()]
        self._block = block

    def _image(self, index: int) -> Image.Image:
        read = self.source.read(np.array([index]))[0]
        if not self.source.encoded:
            return Image.fromarray(read)
        return Image.open(io.BytesIO(read.data)).convert("RGB")

    def _view(self, image: Image.Image, square: Image.Image, drawn: ViewDraws, at: int) -> Any:
        out = square
        if self.steps.crop:
            size = np.array([image.size[::-1]])
            box = crop_boxes(drawn.crop[at : at + 1], size)[0].tolist()
            out = functional.resized_crop(image, *box, [self.px, self.px])
        if self.steps.flip and drawn.flip[at]:
            out = functional.horizontal_flip(out)
        if self.steps.colour:
            if drawn.brightness[at] != 1:
                out = functional.adjust_brightness(out, float(drawn.brightness[at]))
                out = functional.adjust_contrast(out, float(drawn.contrast[at]))
                out = functional.adjust_saturation(out, float(drawn.saturation[at]))
                out = functional.adjust_hue(out, float(drawn.hue[at]))
            if drawn.grey[at]:
                out = functional.rgb_to_grayscale(out, 3)
        if self.steps.blur and drawn.blur[at]:
            window = blur_window(self.px)
            out = functional.gaussian_blur(out, [window, window], [float(drawn.sigma[at])] * 2)
        return out


class UsualLoader:
    """Batches of a DataLoader with as many processes as ours has threads."""

    def __init__(
        self, source: Source, px: int, seed: int, recipe: str, batch: int, batches: int, workers: int
    ):
        dataset = UsualDataset(source, px, seed, recipe, batch * batches)
        self._loader = DataLoader(
            dataset, batch, shuffle=False, num_workers=workers, prefetch_factor=2 if workers else None
        )
        self._batches: Iterator[Any] | None = iter(self._loader)

    def __next__(self) -> dict[str, Tensor]:
        assert self._batches is not None, "it was closed"
        made = next(self._batches)
        names = ("x_0", *VIEW_STREAMS)
        return {name: images.permute(0, 2, 3, 1) for name, images in zip(names, made, strict=True)}

    def close(self) -> None:
        """End the processes."""
        self._batches = None


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Mean absolute difference of each output, in levels of 255."""
    return {
        name: float((ours[name].cpu().to(torch.int16) - theirs[name].to(torch.int16)).abs().float().mean())
        for name in theirs
    }
