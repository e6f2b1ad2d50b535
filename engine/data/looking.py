"""``diffsiam inspect``: what lies at a path, before anything is trained on it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from engine import screen
from engine.data.broken import Broken, Quarantine, decoding_fault, image_size
from engine.data.fetching import fetch
from engine.data.prepare import SHEET_COLUMNS, SHEET_ROWS, contact_sheet
from engine.data.source import Source
from engine.errors import DataError
from engine.sheet import save
from engine.words import size_of

LOOKED_AT = 1000
CHUNK = 64
MODES = {
    "RGB": "RGB",
    "L": "grey",
    "P": "palette",
    "1": "one bit",
    "CMYK": "CMYK",
    "RGBA": "transparent",
    "LA": "grey, transparent",
    "I;16": "16 bit",
}


@dataclass
class Found:
    """What the images that were looked at are."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    bytes: int = 0
    broken: dict[int, str] = field(default_factory=dict)


def inspect(source: Source, everything: bool, px: int, out: Path | None, threads: int = 2) -> Found:
    """Decode images spread over a source, or all, print what they are, and write a contact sheet."""
    count = len(source)
    asked = (
        np.arange(count) if everything else np.unique(np.linspace(0, count - 1, LOOKED_AT).astype(np.int64))
    )
    found = look(source, asked, threads)
    screen.block(_rows(source, found, len(asked)), "images")
    for index, reason in list(found.broken.items())[:20]:
        screen.line(f"broken: {source.item(index)}; {reason}")
    if out is not None:
        whole = asked[~np.isin(asked, list(found.broken))]
        if not len(whole):
            raise DataError(f"every image is broken; {source.describe()}")
        shown = whole[np.linspace(0, len(whole) - 1, min(SHEET_ROWS * SHEET_COLUMNS, len(whole))).astype(int)]
        quarantine = Quarantine(source, count, quiet=True)
        save(contact_sheet(fetch(source, px, shown, threads, quarantine), source.describe()), out)
        screen.line(f"written: {out}")
    return found


def look(source: Source, asked: np.ndarray, threads: int = 2) -> Found:
    """Read and decode the items ``asked``."""
    found = Found()
    with screen.counting(len(asked), "images") as advance, ThreadPoolExecutor(threads) as pool:
        for chunk in np.split(asked, range(CHUNK, len(asked), CHUNK)):
            read = source.read(chunk)
            if not source.encoded:
                found.sizes += [image.shape[:2] for image in read]
                found.modes["RGB"] += len(chunk)
                found.kinds["pixels"] += len(chunk)
                found.bytes += sum(image.nbytes for image in read)
            else:
                _note(found, chunk, pool.map(_decoded, read, [source.region] * len(read)))
            advance(len(chunk))
    return found


def _note(found: Found, chunk: np.ndarray, decoded: Iterator[tuple]) -> None:
    for index, (fault, size, kind, mode, turned, length) in zip(chunk, decoded, strict=True):
        found.bytes += length
        if fault:
            found.broken[int(index)] = fault
            continue
        found.sizes.append(size)
        found.kinds[kind] += 1
        found.modes[mode] += 1
        found.turned += turned


def _decoded(contents: np.ndarray, region) -> tuple[str, tuple[int, int], str, str, bool, int]:
    """(fault or "", (height, width) as displayed, format, mode, whether EXIF turns it, bytes)."""
    try:
        height, width = image_size(contents)
        image_size(contents, region)
        with Image.open(io.BytesIO(contents.data)) as image:
            kind, mode = image.format or "?", MODES.get(image.mode, image.mode)
            turned = (height, width) != image.size[::-1]
            image.load()
    except Broken as broken:
        return str(broken), (0, 0), "", "", False, contents.nbytes
    except (OSError, SyntaxError, ValueError):
        return decoding_fault(contents), (0, 0), "", "", False, contents.nbytes
    return "", (height, width), kind, mode, turned, contents.nbytes


def _rows(source: Source, found: Found, looked: int) -> list[tuple[str, str]]:
    part = (
        "all" if looked == len(source) else f"{looked:,} of {len(source):,}, evenly spread (--all: every one)"
    )
    rows = [("found", source.describe()), ("looked at", part)]
    if found.sizes:
        heights, widths = np.array(found.sizes).T
        rows += [
            ("sizes", f"height {_spread(heights)}, width {_spread(widths)} (least, median, largest)"),
            ("formats", _counts(found.kinds)),
            ("modes", _counts(found.modes) + (f"; {found.turned} turned by EXIF" if found.turned else "")),
        ]
    each = size_of(found.bytes / looked)
    rows.append(("bytes", f"{each} an image, about {_total(source, found, looked)}"))
    if source.labels is not None:
        classes = ", ".join(map(str, source.classes[:10])) + (", ..." if len(source.classes) > 10 else "")
        rows.append(("classes", f"{len(source.classes)}: {classes}"))
    if source.attributes is not None:
        rows.append(
            ("attributes", f"{len(source.attribute_names)}: {', '.join(source.attribute_names[:6])} ..")
        )
    share = len(found.broken) / looked
    rows.append(("broken", f"{len(found.broken)} of {looked:,} ({share:.2%}; allowed: 0.1 %, at most 1,000)"))
    return rows


def _total(source: Source, found: Found, looked: int) -> str:
    return f"{size_of(found.bytes / looked * len(source))} in all"


def _spread(values: np.ndarray) -> str:
    return f"{values.min()}, {int(np.median(values))}, {values.max()}"


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counter.most_common())
