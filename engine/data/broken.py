"""Broken images: what is converted, what is quarantined, and how many are too many.

Converted: grey, palette, one-bit and CMYK images to RGB; 16 bits to their upper eight; transparency is
dropped; EXIF orientation is applied. Quarantined: what is empty, cut off, no image, of another format,
smaller than 8 pixels on a side, or larger than 64 million pixels (a decompression bomb). In the place of a
quarantined image stands the next one of the same permutation, so order and resume stay functions of the
images alone.
"""

from __future__ import annotations

import io
import json
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine import screen
from engine.data.source import Region, Source
from engine.errors import DataError
from engine.json_files import read_lines

SMALLEST_PX, LARGEST_PIXELS = 8, 64_000_000
SHARE, MOST = 0.001, 1000  # of a set that may be broken
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
LAST = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}  # what whole files hold behind their pixels
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
FAULTS_SHOWN = 5

# The size is compared below, before anything is decoded.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Broken(Exception):
    """An image cannot be trained on; the message says why."""


def image_size(contents: np.ndarray, region: Region | None = None) -> tuple[int, int]:
    """(height, width) of an encoded image as displayed, from its header; that of ``region`` where one is cut.

    Raises:
        Broken: its header or its end already shows that it cannot be used.
    """
    if not contents.size:
        raise Broken("it is empty")
    data = contents.tobytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            kind = str(image.format)
            if kind not in FORMATS:
                raise Broken(f"{kind} is not supported, convert it to JPEG or PNG")
            # Without the first condition Pillow decodes a whole PNG to look behind its pixels.
            sideways = "exif" in image.info and image.getexif().get(ORIENTATION_TAG) in SIDEWAYS
    except PILLOW_ERRORS as error:
        raise Broken(_words(error)) from error
    if height * width > LARGEST_PIXELS:
        raise Broken(f"{width} x {height} pixels are more than {LARGEST_PIXELS:,}")
    least_height, least_width = (
        (region[0] + region[2], region[1] + region[3]) if region else (SMALLEST_PX,) * 2
    )
    height, width = (width, height) if sideways else (height, width)
    if height < least_height or width < least_width:
        raise Broken(f"{width} x {height} pixels are less than {least_width} x {least_height}")
    if data.rfind(LAST.get(kind, b""), len(data) // 2) < 0:
        _decode(data)  # cut off, unless it only lost its last bytes
    return region[2:] if region else (height, width)


def _decode(data: bytes) -> str:
    """The format of a file that Pillow can decode.

    Raises:
        Broken: it cannot.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return str(image.format)
    except PILLOW_ERRORS as error:
        raise Broken(_words(error)) from error


def decoding_fault(contents: np.ndarray) -> str:
    """What is wrong with a file that DALI cannot decode."""
    try:
        return f"this kind of {_decode(contents.tobytes())} is not supported, convert it to JPEG or PNG"
    except Broken as fault:
        return str(fault)


def _words(error: Exception) -> str:
    """Why Pillow cannot read an image, without the address of the buffer it was given."""
    return "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)


class Quarantine:
    """The broken images of a source that were met so far; threads share it, other processes get a copy.

    Args:
        allowed: how many are passed over; by default 0.1 % of the source, at most 1,000.
        quiet: say nothing of an image that is passed over.
        path: file that each is written to, one JSON object a line, and from which those met before are taken.
    """

    def __init__(
        self, source: Source, allowed: int | None = None, path: Path | None = None, quiet: bool = False
    ):
        self.source, self._path, self._quiet = source, path, quiet
        self.allowed: float = min(int(SHARE * len(source)), MOST) if allowed is None else allowed
        self.faults: dict[int, str] = {}
        self._lock = threading.Lock()
        if path is not None and path.is_file():
            for met in read_lines(path):
                index = met.get("index")
                if (
                    isinstance(index, int)
                    and index in range(len(source))
                    and source.item(index) == met.get("item")
                ):
                    self.faults[index] = str(met.get("reason"))

    def __contains__(self, index: int) -> bool:
        return index in self.faults

    def __len__(self) -> int:
        return len(self.faults)

    def add(self, index: int, reason: str) -> None:
        """Take an image out.

        Raises:
            DataError: more are broken than allowed.
        """
        with self._lock:
            if index in self.faults:
                return
            self.faults[index] = reason
            if self._path is not None:
                entry = {"index": index, "item": self.source.item(index), "reason": reason}
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with open(self._path, "a") as file:  # one write a line: several ranks may append
                    file.write(json.dumps(entry) + "\n")
        if len(self) > self.allowed:
            raise DataError(self._verdict())
        if not self._quiet:
            screen.warn(f"passed over a broken image; {self.source.item(index)}; {reason}")

    def _verdict(self) -> str:
        """The list, shortened to fit a line; the file has all of it."""
        shown = [f"{self.source.item(i)}; {why}" for i, why in list(self.faults.items())[-FAULTS_SHOWN:]]
        listed = f"; all are listed in {self._path}" if self._path else ""
        return (
            f"cannot read or decode {len(self)} of {len(self.source):,} images, {self.allowed:.0f} may be "
            f"broken (data.broken); {'; '.join(shown)}{listed}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """A reader in another process passes over what it meets; the training process finds it again."""
        silent = {"_path": None, "_quiet": True, "allowed": float("inf")}
        return {"source": self.source, "faults": dict(self.faults), **silent}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
