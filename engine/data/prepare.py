"""``diffsiam prepare``: any source once through decoding and resizing, into shards that load fast.

Shards are made by processes of their own; a run that was killed goes on with the shards that are missing. The
images are x_0 as training would see it, so raw pixels give what the source itself gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine import screen
from engine.data.broken import Quarantine
from engine.data.fetching import fetch
from engine.data.prepare_shards import Plan, check_shard, encoded, make_shard, record, write
from engine.data.prepared import MANIFEST, VERSION
from engine.data.source import Source
from engine.errors import DataError, UsageError
from engine.json_files import read_object
from engine.sheet import save, sheet
from engine.words import size_of

SHARD = 4096  # images
SAMPLE = 64  # images from which the size of the whole is estimated
SPARE = 1.1
SHEET_ROWS, SHEET_COLUMNS = 4, 8
PLAN, SHEET = "plan.json", "contact_sheet.png"
RAW_UP_TO_PX = 64


def prepare(
    source: Source,
    target: Path,
    px: int,
    kind: str = "auto",
    quality: int = 95,
    workers: int = 2,
    allowed: int | None = None,
    shard: int | None = None,
) -> dict[str, Any]:
    """Make, verify and describe a prepared set; goes on where an earlier call was killed.

    Args:
        target: folder to make.
        px: side of the images in pixels.
        kind: "jpeg" (4:4:4), "raw" (uint8 pixels) or "auto": raw up to 64 px.
        quality: of JPEGs, 1 to 100.
        workers: processes.
        allowed: images that may be broken (None: 0.1 %, at most 1,000); they are left out and listed.
        shard: images of a shard.

    Returns:
        The manifest.

    Raises:
        UsageError: the folder holds something else, or the disk is too small.
        DataError: too many images are broken, or a shard does not verify.
    """
    kind = ("raw" if px <= RAW_UP_TO_PX else "jpeg") if kind == "auto" else kind
    allowed = int(Quarantine(source, allowed).allowed)
    plan = Plan(
        source.describe(),
        source.fingerprint(),
        len(source),
        px,
        kind,
        quality if kind == "jpeg" else 0,
        shard or SHARD,
        allowed,
    )
    _claim(target, plan)
    missing = [number for number in plan.shards() if record(target, number) is None]
    _demand_space(source, target, plan, missing)
    _make(source, target, plan, missing, workers)
    records = [record(target, number) or {} for number in plan.shards()]
    _verify(target, plan, records, workers)
    return _finish(source, target, plan, records)


def _claim(target: Path, plan: Plan) -> None:
    """Write the plan, or find the same one."""
    target.mkdir(parents=True, exist_ok=True)
    if (target / PLAN).is_file():
        if (there := read_object(target / PLAN)) != asdict(plan):
            differing = [key for key, value in asdict(plan).items() if there.get(key) != value]
            raise UsageError(
                f"{target} was begun with other {', '.join(differing)}; name another folder, or remove it"
            )
    elif any(target.iterdir()):
        raise UsageError(f"{target} holds something else; name a folder that does not exist")
    else:
        write(target / PLAN, json.dumps(asdict(plan), indent=1).encode())
    for left in target.glob("*.part"):  # of a run that was killed
        left.unlink()


def _demand_space(source: Source, target: Path, plan: Plan, missing: list[int]) -> None:
    """Estimate what the missing shards need from images spread over the source."""
    if not missing:
        return
    asked = np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(np.int64)
    pictures = fetch(source, plan.px, asked, quarantine=Quarantine(source, len(source), quiet=True))
    each = float(np.mean([len(encoded(picture, plan)) for picture in pictures]))
    images = sum(len(plan.indices(number)) for number in missing)
    needs, free = int(SPARE * each * images), shutil.disk_usage(target).free
    if needs > free:
        raise UsageError(
            f"{target}: {images:,} images of about {size_of(each)} need {size_of(needs)}, and "
            f"{size_of(free)} are free; make room, lower --px or --quality, or name another disk"
        )
    screen.line(
        f"{len(missing):,} shard{'s' * (len(missing) > 1)} to make, about {size_of(needs)} "
        f"({size_of(free)} free)"
    )


def _make(source: Source, target: Path, plan: Plan, missing: list[int], workers: int) -> None:
    broken = sum(len((record(target, number) or {"broken": {}})["broken"]) for number in plan.shards())
    with screen.counting(sum(len(plan.indices(number)) for number in missing), "images") as advance:
        for made in _in_processes(make_shard, missing, workers, source, target, plan):
            advance(made["count"] + len(made["broken"]))
            broken += len(made["broken"])
            for item, reason in made["broken"].values():
                screen.warn(f"left out a broken image; {item}; {reason}")
            if broken > plan.allowed:
                raise DataError(
                    f"{broken} of {plan.count:,} images are broken, {plan.allowed} may be (--broken); "
                    f"{'; '.join('; '.join(fault) for fault in list(made['broken'].values())[:5])}"
                )


def _in_processes(
    function: Callable[..., Any], numbers: list[int], workers: int, *arguments: Any
) -> Iterator[Any]:
    """Results of function(*arguments, number) as they come; each process gets the arguments once."""
    if not numbers:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(numbers)), context, initializer=_remember, initargs=(function, arguments)
    ) as pool:
        tasks = [pool.submit(_call, number) for number in numbers]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(cancel_futures=True)


_remembered: list[Callable[[int], Any]] = []


def _remember(function: Callable[..., Any], arguments: tuple) -> None:
    _remembered.append(partial(function, *arguments))


def _call(number: int) -> Any:
    return _remembered[0](number)


def _verify(target: Path, plan: Plan, records: list[dict[str, Any]], workers: int) -> None:
    """Read every shard back from the disk: its sum, its count, and whether every image decodes."""
    with screen.counting(sum(each["count"] for each in records), "verified") as advance:
        for number, fault, count in _in_processes(check_shard, list(plan.shards()), workers, target, plan):
            if fault:
                (target / f"{number:05d}.json").unlink()
                raise DataError(
                    f"{fault}; {target / plan.file(number)}; run the same command again to remake it"
                )
            advance(count)


def _finish(source: Source, target: Path, plan: Plan, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Write what the source knows of its images, the contact sheet, and last the manifest."""
    indices = np.array([index for each in records for index in each["indices"]], dtype=np.int64)
    for name, known in (("labels", source.labels), ("attributes", source.attributes)):
        if known is not None:
            _save(target / f"{name}.npy", known[indices])
    if plan.format == "jpeg":
        places = [(n, *place) for n, each in enumerate(records) for place in each["places"]]
        _save(target / "index.npy", np.array(places, dtype=np.int64))
    total = hashlib.sha256("".join(each["sha256"] for each in records).encode()).hexdigest()
    broken = {key: fault for each in records for key, fault in each["broken"].items()}
    manifest = {
        "version": VERSION,
        **{key: getattr(plan, key) for key in ("source", "px", "format", "quality")},
        "framing": source.framing,
        "count": len(indices),
        "classes": list(source.classes),
        "attribute_names": list(source.attribute_names),
        "shards": [{key: each[key] for key in ("file", "count", "bytes", "sha256")} for each in records],
        "sha256": total,
        "broken": broken,
    }
    chosen = indices[np.linspace(0, len(indices) - 1, SHEET_ROWS * SHEET_COLUMNS).astype(int)]
    save(contact_sheet(fetch(source, plan.px, chosen), plan.source), target / SHEET)
    write(target / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def contact_sheet(images: np.ndarray, title: str) -> Image.Image:
    """(N, px, px, 3) uint8 in rows of eight; what is missing in the last row is white."""
    columns = min(SHEET_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    tiles = np.full((rows * columns, *images.shape[1:]), 255, np.uint8)
    tiles[: len(images)] = images
    return sheet(tiles.reshape(rows, columns, *images.shape[1:]), title=title)


def _save(path: Path, array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array)
    write(path, buffer.getvalue())
