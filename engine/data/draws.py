"""Augmentation parameters as pure functions of (seed, position), so that any split of a batch agrees on them.

The two views follow SimSiam (arXiv 2011.10566, appendices A and D): random resized crop of scale 0.2 to 1,
colour jitter (0.4, 0.4, 0.4, 0.1) with probability 0.8, grey with probability 0.2, Gaussian blur of sigma 0.1
to 2 with probability 0.5, horizontal flip. Crop boxes are drawn relative to the image and resolved once its
size is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from engine.errors import UsageError
from kernels.philox import STREAM_FLIP, STREAM_VIEW_1, STREAM_VIEW_2, uniform_np

VIEW_STREAMS = {"view_1": STREAM_VIEW_1, "view_2": STREAM_VIEW_2}

# Which uniform of a view's stream decides what; the crop's tries of (area, ratio, top, left) follow.
FLIP, JITTER, BRIGHTNESS, CONTRAST, SATURATION, HUE, GREY, BLUR, SIGMA = range(9)
CROP = 12
CROP_TRIES = 10
DRAWS = CROP + 4 * CROP_TRIES

FLIP_CHANCE = 0.5
JITTER_CHANCE, JITTER_STRENGTH, HUE_STRENGTH = 0.8, 0.4, 0.1
GREY_CHANCE = 0.2
BLUR_CHANCE, SIGMA_RANGE = 0.5, (0.1, 2.0)
CROP_SCALE, CROP_RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
CROP_UP_TO_PX = 32


@dataclass(frozen=True)
class Augmentation:
    """Which parts of the SimSiam augmentation a recipe uses (colour: jitter and grey)."""

    crop: bool = False
    flip: bool = False
    colour: bool = False
    blur: bool = False


AUGMENTATIONS = {
    # SimSiam on CIFAR-10 (arXiv 2011.10566, appendix D): no blur at 32 px.
    "crop": Augmentation(crop=True, flip=True, colour=True),
    # The whole image, for sets where the layout is part of what z describes.
    "blur": Augmentation(flip=True, colour=True, blur=True),
    "none": Augmentation(),
}


def augmentation(name: str, px: int) -> Augmentation:
    """The recipe ``name``; "auto" is "crop" up to 32 px and "blur" above. Raises UsageError for others."""
    if name == "auto":
        name = "crop" if px <= CROP_UP_TO_PX else "blur"
    if name not in AUGMENTATIONS:
        raise UsageError(f"unknown augmentation {name!r}; data.augment; use auto, {', '.join(AUGMENTATIONS)}")
    return AUGMENTATIONS[name]


def blur_window(px: int) -> int:
    """Width of the blur kernel in pixels, odd: about a tenth of the image (7 at 64 px, 13 at 128 px)."""
    return px // 20 * 2 + 1


def flips(seed: int, positions: np.ndarray) -> np.ndarray:
    """Whether x_0 is mirrored, (B,) bool, with probability one half."""
    return uniform_np(seed, positions, 1, STREAM_FLIP)[:, 0] < FLIP_CHANCE


@dataclass(frozen=True)
class ViewDraws:
    """The parameters of one view of B samples; those of a step that a sample skips are its neutral element.

    Attributes:
        flip, grey, blur: (B,) bool.
        brightness, contrast, saturation: (B,) float32 factors in [0.6, 1.4]; 1 changes nothing.
        hue: (B,) float32 in [-0.1, 0.1] of a full turn; 0 changes nothing.
        sigma: (B,) float32 in [0.1, 2] pixels, the standard deviation of the blur.
        crop: (B, 10, 4) float64 in [0, 1): tries of (area, ratio, top, left) for :func:`crop_boxes`.
    """

    flip: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    grey: np.ndarray
    blur: np.ndarray
    sigma: np.ndarray
    crop: np.ndarray

    def rows(self, rows: slice) -> ViewDraws:
        """The parameters of some of the samples."""
        return ViewDraws(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def view_draws(seed: int, positions: np.ndarray, stream: int) -> ViewDraws:
    """The parameters of view STREAM_VIEW_1 or STREAM_VIEW_2 at ``positions``, (B,) int64."""
    u = uniform_np(seed, positions, DRAWS, stream)
    jitter = u[:, JITTER] < JITTER_CHANCE

    def jittered(element: int, centre: float, strength: float) -> np.ndarray:
        drawn = centre + strength * (2 * u[:, element] - 1)
        return np.where(jitter, drawn, centre).astype(np.float32)

    low, high = SIGMA_RANGE
    return ViewDraws(
        flip=u[:, FLIP] < FLIP_CHANCE,
        brightness=jittered(BRIGHTNESS, 1.0, JITTER_STRENGTH),
        contrast=jittered(CONTRAST, 1.0, JITTER_STRENGTH),
        saturation=jittered(SATURATION, 1.0, JITTER_STRENGTH),
        hue=jittered(HUE, 0.0, HUE_STRENGTH),
        grey=u[:, GREY] < GREY_CHANCE,
        blur=u[:, BLUR] < BLUR_CHANCE,
        sigma=(low + (high - low) * u[:, SIGMA]).astype(np.float32),
        crop=u[:, CROP:].reshape(-1, CROP_TRIES, 4).astype(np.float64),
    )


def crop_boxes(crop: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The boxes of torchvision's RandomResizedCrop: the first try that fits, else a central one.

    Args:
        crop: (B, 10, 4) uniforms of :class:`ViewDraws`.
        sizes: (B, 2) heights and widths in pixels.

    Returns:
        (B, 4) int64: top, left, height, width in pixels, inside the image.
    """
    size = np.asarray(sizes, dtype=np.int64)
    height, width = size[:, :1], size[:, 1:]
    area = height * width * (CROP_SCALE[0] + (CROP_SCALE[1] - CROP_SCALE[0]) * crop[..., 0])
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = np.exp(low + (high - low) * crop[..., 1])
    w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (0 < w) & (w <= width) & (0 < h) & (h <= height)
    top = np.floor(crop[..., 2] * (height - h + 1)).astype(np.int64)
    left = np.floor(crop[..., 3] * (width - w + 1)).astype(np.int64)
    tries = np.stack((top, left, h, w), axis=-1)
    first = tries[np.arange(len(tries)), fits.argmax(axis=1)]
    return np.where(fits.any(axis=1, keepdims=True), first, _central_boxes(size))


def _central_boxes(size: np.ndarray) -> np.ndarray:
    """The largest central box whose ratio is within CROP_RATIO, (B, 4) int64."""
    height, width = size[:, 0], size[:, 1]
    h = np.minimum(height, np.rint(width / CROP_RATIO[0])).astype(np.int64)
    w = np.minimum(width, np.rint(height * CROP_RATIO[1])).astype(np.int64)
    return np.stack(((height - h) // 2, (width - w) // 2, h, w), axis=-1)
