"""Pictures inside the page: as WebP, as good as the size of the page allows."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

QUALITIES = (None, 88, 75, 60, 40)  # None: lossless
EFFORT = 2  # of WebP, 0 to 6: the page is also written while the run trains


@dataclass(frozen=True)
class Embedded:
    """A picture as a data URI with its size in pixels, or why it was left out."""

    uri: str
    width: int
    height: int
    left_out: str = ""


def embed(paths: Sequence[Path], budget: int) -> dict[Path, Embedded]:
    """All pictures within ``budget`` bytes of text: the best quality at which they fit, the largest left out
    if none does. A file that is no picture is left out too.
    """
    pictures, found = {}, {}
    for path in paths:
        try:
            with Image.open(path) as image:
                pictures[path] = image.convert("RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            found[path] = Embedded("", 0, 0, f"{path.name} cannot be read: {error}")
    encoded: dict[Path, bytes] = {}
    for quality in QUALITIES:
        encoded = {path: _smaller(image, quality, encoded.get(path)) for path, image in pictures.items()}
        if sum(map(_as_text, encoded.values())) <= budget:
            break
    left = budget
    for path, data in sorted(encoded.items(), key=lambda item: len(item[1])):
        left -= _as_text(data)
        width, height = pictures[path].size
        uri = f"data:image/webp;base64,{base64.b64encode(data).decode()}"
        told = f"{path} is left out: the page would grow too large" if left < 0 else ""
        found[path] = Embedded("" if told else uri, width, height, told)
    return found


def _smaller(image: Image.Image, quality: int | None, before: bytes | None) -> bytes:
    """In this quality, unless it was no larger in a better one."""
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "WEBP", lossless=True, method=EFFORT)
    else:
        image.save(buffer, "WEBP", quality=quality, method=EFFORT)
    data = buffer.getvalue()
    return data if before is None or len(data) < len(before) else before


def _as_text(data: bytes) -> int:
    return 4 * (len(data) + 2) // 3 + 32
