"""The shards of a prepared set: making one, its record, checking one.

A shard and its record are renamed into place when they are whole, the record last. So what has a record is
whole, whenever the process that made it was killed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.data.broken import Quarantine
from engine.data.fetching import fetch_parts
from engine.data.source import Source
from engine.json_files import DAMAGED


@dataclass(frozen=True)
class Plan:
    """What is being made; a folder that holds another plan is not touched.

    Attributes:
        source: what its images are of, for people.
        fingerprint: of the source.
        count: images of the source, broken ones included.
        format: "jpeg" or "raw".
        quality: of JPEGs, 0 for raw pixels.
        shard: images of a shard, broken ones included.
        allowed: images that may be broken.
    """

    source: str
    fingerprint: str
    count: int
    px: int
    format: str
    quality: int
    shard: int
    allowed: int

    def shards(self) -> range:
        return range(-(-self.count // self.shard))

    def indices(self, shard: int) -> np.ndarray:
        """Items of the source that a shard holds."""
        return np.arange(shard * self.shard, min((shard + 1) * self.shard, self.count), dtype=np.int64)

    def file(self, shard: int) -> str:
        return f"{shard:05d}.{'tar' if self.format == 'jpeg' else 'npy'}"


def make_shard(source: Source, target: Path, plan: Plan, number: int) -> dict[str, Any]:
    """Make one shard and its record, in a process of its own; returns the record."""
    asked = plan.indices(number)
    quarantine = Quarantine(source, len(source), quiet=True)
    kept, pictures = [], []
    for start, pixels, found in fetch_parts(source, plan.px, asked, 1, quarantine):
        whole = found == asked[start : start + len(found)]
        kept.append(found[whole])
        pictures.append(pixels[whole])
    indices, images = np.concatenate(kept), np.concatenate(pictures)
    part = target / f"{plan.file(number)}.part"
    places = (
        _write_tar(part, source, plan, indices, images) if plan.format == "jpeg" else _write_raw(part, images)
    )
    made = {
        "file": plan.file(number),
        "count": len(indices),
        "bytes": part.stat().st_size,
        "sha256": _sha256(part),
        "indices": indices.tolist(),
        "places": places,
        "broken": {
            str(i): [source.item(i), quarantine.faults[i]] for i in map(int, asked) if i in quarantine.faults
        },
    }
    os.replace(part, target / plan.file(number))
    write(target / f"{number:05d}.json", json.dumps(made).encode())
    return made


def check_shard(target: Path, plan: Plan, number: int) -> tuple[int, str, int]:
    """(number, what is wrong with a shard or "", its images)."""
    known = record(target, number)
    if known is None:
        return number, "a shard is not whole", 0
    path = target / known["file"]
    if _sha256(path) != known["sha256"]:
        return number, "a shard is not what was written", 0
    if plan.format == "raw":
        shape = np.load(path, mmap_mode="r").shape
        right = shape == (known["count"], plan.px, plan.px, 3)
        return number, "" if right else f"a shard holds {shape}", known["count"]
    data = path.read_bytes()
    for start, size in known["places"]:
        with Image.open(io.BytesIO(data[start : start + size])) as image:
            if image.size != (plan.px, plan.px) or image.format != "JPEG":
                return number, f"an image at byte {start} is {image.format} of {image.size}", 0
            image.load()
    return number, "", known["count"]


def record(target: Path, number: int) -> dict[str, Any] | None:
    """What a whole shard holds, or None."""
    try:
        known = json.loads((target / f"{number:05d}.json").read_text())
        return known if (target / known["file"]).stat().st_size == known["bytes"] else None
    except (*DAMAGED, KeyError, TypeError):
        return None


def _write_tar(
    part: Path, source: Source, plan: Plan, indices: np.ndarray, images: np.ndarray
) -> list[tuple[int, int]]:
    """A shard of WebDataset: KEY.jpg and, with labels, KEY.cls; returns (first byte, size) of every image."""
    places, labels = [], source.labels
    with tarfile.open(part, "w", format=tarfile.USTAR_FORMAT) as archive:
        for index, picture in zip(indices, images, strict=True):
            contents = encoded(picture, plan)
            places.append((archive.offset + tarfile.BLOCKSIZE, len(contents)))
            _add(archive, f"{index:08d}.jpg", contents)
            if labels is not None:
                _add(archive, f"{index:08d}.cls", str(labels[index]).encode())
    return places


def _add(archive: tarfile.TarFile, name: str, contents: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(contents)
    archive.addfile(member, io.BytesIO(contents))


def _write_raw(part: Path, images: np.ndarray) -> list[tuple[int, int]]:
    with open(part, "wb") as file:
        np.save(file, images)
    return []


def encoded(picture: np.ndarray, plan: Plan) -> bytes:
    """What a shard holds of a picture (px, px, 3) uint8."""
    if plan.format == "raw":
        return picture.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=plan.quality, subsampling=0)
    return buffer.getvalue()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, contents: bytes) -> None:
    """Whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(contents)
    os.replace(part, path)
