"""What the image graph is fed: the images of a micro-batch as read, and every parameter of every step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.data import draws
from engine.data.draws import Augmentation, ViewDraws
from engine.data.order import locate, order
from engine.data.source import Source
from engine.errors import DataError

Arguments = dict[str, np.ndarray]

PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


@dataclass(frozen=True)
class Feed:
    """One micro-batch before decoding.

    Attributes:
        positions, indices: (B,) int64, place in the endless stream and in the source.
        images: B file contents (1-D uint8) or B pictures (HWC uint8).
        arguments: parameters by name, such as "x_0.start" or "view_1.brightness", first axis B. A step whose
            arguments are absent is not run.
    """

    positions: np.ndarray
    indices: np.ndarray
    images: Sequence[np.ndarray] | np.ndarray
    arguments: Arguments


class Reader:
    """Reads the samples of a source and draws their parameters, without state: threads may share it.

    Args:
        px: side of the square output in pixels.
        seed: of the order and of all draws.
        views: recipe of the two views, None for no views.
        flip: mirror x_0 with probability one half.
    """

    def __init__(
        self, source: Source, px: int, seed: int = 0, views: Augmentation | None = None, flip: bool = False
    ):
        self.source, self.px, self.seed, self.views, self.flip = source, px, seed, views, flip

    @property
    def names(self) -> list[str]:
        """Names of the arguments of every feed, in order."""
        return list(self._arguments(np.zeros(1, np.int64), np.ones((1, 2), np.int64)))

    def stream(self, positions: np.ndarray) -> Feed:
        """The samples at ``positions`` (B,) int64 of the endless stream."""
        epoch, places = locate(positions, len(self.source))
        return self._feed(positions, order(self.seed, epoch, places, len(self.source)))

    def items(self, indices: np.ndarray) -> Feed:
        """The items ``indices`` (B,) int64 of the source, as they lie."""
        return self._feed(indices, indices)

    def _feed(self, positions: np.ndarray, indices: np.ndarray) -> Feed:
        images = self.source.read(indices)
        if self.source.encoded:
            sizes = [self._size(image, index) for image, index in zip(images, indices, strict=True)]
        else:
            sizes = [image.shape[:2] for image in images]
        return Feed(positions, indices, images, self._arguments(positions, np.array(sizes, dtype=np.int64)))

    def _size(self, contents: np.ndarray, index: int) -> tuple[int, int]:
        try:
            return image_size(contents)
        except PILLOW_ERRORS as error:
            raise DataError(f"cannot read an image; {self.source.item(index)}; {reason(error)}") from error

    def _arguments(self, positions: np.ndarray, sizes: np.ndarray) -> Arguments:
        out = _prefixed("x_0", square_arguments(sizes, self.px))
        if self.flip:
            out["x_0.flip"] = draws.flips(self.seed, positions).astype(np.int32)
        if self.views is not None:
            for view, stream in draws.VIEW_STREAMS.items():
                drawn = draws.view_draws(self.seed, positions, stream)
                out |= _prefixed(view, view_arguments(drawn, self.views, sizes, self.px))
        return out


def square_arguments(sizes: np.ndarray, px: int) -> Arguments:
    """The region that torchvision's Resize(px) and CenterCrop(px) keep of images of ``sizes`` (B, 2), (h, w).

    "start" and "end" are (B, 2) float32 in pixels of the image, fractions included. Resampling this region,
    with the pixels around it in reach of the filter, equals resizing the image and cropping afterwards.
    """
    resized = px * sizes // sizes.min(axis=1, keepdims=True)
    offset = np.rint((resized - px) / 2)
    scale = sizes / resized
    return {"start": (offset * scale).astype(np.float32), "end": ((offset + px) * scale).astype(np.float32)}


def view_arguments(drawn: ViewDraws, steps: Augmentation, sizes: np.ndarray, px: int) -> Arguments:
    """The arguments of one view's steps, first axis B."""
    out: Arguments = {}
    if steps.crop:
        boxes = draws.crop_boxes(drawn.crop, sizes).astype(np.int32)
        out |= {
            "crop_at": boxes[:, :2].copy(),
            "crop_size": boxes[:, 2:].copy(),
        }  # DALI reads dense arrays only
    if steps.flip:
        out["flip"] = drawn.flip.astype(np.int32)
    if steps.colour:
        out |= {"brightness": drawn.brightness, "contrast": drawn.contrast, "saturation": drawn.saturation}
        out |= {"hue_sign": np.sign(drawn.hue).astype(np.int16), "hue_hold": 1 - 6 * np.abs(drawn.hue)}
        out |= {"grey": drawn.grey.astype(np.uint8), "coloured": (~drawn.grey).astype(np.uint8)}
    if steps.blur:
        out["window"] = np.where(drawn.blur, draws.blur_window(px), 1).astype(np.int32)
        out["sigma"] = drawn.sigma
    return out


def image_size(contents: np.ndarray) -> tuple[int, int]:
    """(height, width) of an encoded image as displayed, from its header. Raises one of PILLOW_ERRORS."""
    with Image.open(io.BytesIO(contents.data)) as image:
        width, height = image.size
        sideways = image.getexif().get(ORIENTATION_TAG) in SIDEWAYS
    return (width, height) if sideways else (height, width)


def reason(error: Exception) -> str:
    """Why Pillow cannot read an image, without the address of the buffer it was given."""
    return "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)


def _prefixed(prefix: str, arguments: Arguments) -> Arguments:
    return {f"{prefix}.{name}": value for name, value in arguments.items()}
