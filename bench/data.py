"""Images a second of our loader and of the usual one: ``python -m bench.data [PATH] [--json]``.

The same images from a folder, an LMDB, a tar and memory, three outputs an image (x_0 and two views), the same
order and draws, as many threads as the DataLoader has processes. Outputs are compared first: a difference of
more than 2 / 255 on average ends it. Both are timed in turn, each alone; the median of the rounds counts.
Beside the rates stands the CPU time an image, both on one thread, which other work on the machine changes
less. PATH is anything that ``diffsiam inspect`` knows; without it photograph-like JPEGs are made.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import lmdb
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import machine
from bench.report import markdown
from bench.usual_loader import UsualDataset, UsualLoader, differences
from engine.data.pipeline import Loader
from engine.data.resident import load
from engine.data.rooms import Rooms
from engine.data.rooms_source import RoomsSource
from engine.data.source import Source
from engine.data.sources import open_source

SEED = 0
CLOSE = 2.0  # of 255
MADE, MADE_PX, MADE_SIZE = 256, 128, (340, 256)  # images without PATH: width and height as LSUN has them
COPIED = 4096  # images of PATH that go into the LMDB and the tar
CPU_BATCHES = 8
WARM_UP = 3  # batches, at least as many as are made ahead
SLACK = 1.2  # a step takes so much longer than our batch, where waiting is measured


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        name: such as "LMDB, blur".
        recipe: of the views.
    """

    name: str
    source: Source
    px: int
    recipe: str


@dataclass(frozen=True)
class Settings:
    """How it is measured: batch, threads, timed batches of a round, rounds, GPU or None."""

    batch: int
    threads: int
    batches: int
    rounds: int
    device_id: int | None


def make_images(folder: Path, count: int = MADE) -> Path:
    """JPEGs of procedural rooms with grain, of LSUN's size."""
    folder.mkdir(parents=True)
    drawn = Rooms(MADE_PX, SEED, count).images(np.arange(count))
    rng = np.random.default_rng(SEED)
    for i, room in enumerate(drawn):
        large = Image.fromarray(room).resize(MADE_SIZE, Image.Resampling.BICUBIC)
        grainy = np.asarray(large) + rng.normal(0, 4, (*MADE_SIZE[::-1], 3))
        photograph = Image.fromarray(grainy.clip(0, 255).astype(np.uint8))
        photograph.save(folder / f"{i:05d}.jpg", quality=90)
    return folder


def copies(source: Source, folder: Path) -> list[Path]:
    """The first images of an encoded source in an LMDB (as DiffAE's) and in a tar."""
    database, archive = folder / "images.lmdb", folder / "images.tar"
    count = min(len(source), COPIED)
    contents = [image.tobytes() for image in source.read(np.arange(count))]
    with lmdb.open(str(database), map_size=2 * sum(map(len, contents)) + (1 << 24)) as environment:
        with environment.begin(write=True) as transaction:
            for i, content in enumerate(contents):
                transaction.put(b"256-%07d" % i, content)
            transaction.put(b"length", str(count).encode())
    with tarfile.open(archive, "w") as tar:
        for i in range(count):
            file = folder / "member"
            file.write_bytes(contents[i])
            tar.add(file, arcname=f"{i:07d}.jpg")
    return [database, archive]


def cases(path: Path | None, px: int, folder: Path, threads: int) -> list[Case]:
    """The rows for a set of images, or for the images that are made."""
    source = open_source("auto", path or make_images(folder / "images"), px, SEED, 0)
    own = "folder" if source.name == "folder" else source.name
    rows = [Case(f"{own}, blur", source, px, "blur"), Case(f"{own}, crop", source, px, "crop")]
    if source.encoded:
        for name, copy in zip(("LMDB", "tar"), copies(source, folder), strict=True):
            rows.append(Case(f"{name}, blur", open_source("auto", copy, px, SEED, 0), px, "blur"))
    held = load(source, px, torch.device("cpu"), threads)
    rows.append(Case("resident, blur", held, px, "blur"))
    pictures = RoomsSource(Rooms(32, SEED, 2048))
    pictures.read(np.arange(len(pictures)))  # drawn once, outside of what is timed
    return [*rows, Case("pictures of 32 px, crop", pictures, 32, "crop")]


def ours(case: Case, settings: Settings) -> Loader:
    """Our loader for a row."""
    return Loader(
        case.source,
        case.px,
        SEED,
        settings.batch,
        augment=case.recipe,
        threads=settings.threads,
        device_id=settings.device_id,
    )


def usual(case: Case, settings: Settings) -> UsualLoader:
    """The DataLoader for a row."""
    batches = settings.batches + WARM_UP + 1
    return UsualLoader(case.source, case.px, SEED, case.recipe, settings.batch, batches, settings.threads)


def compare(case: Case, settings: Settings) -> dict[str, float]:
    """Differences of the first batch, in levels of 255."""
    batches: list[dict[str, Tensor]] = []
    for start in (ours, usual):
        loader: Any = start(case, settings)
        batches.append(next(loader))
        loader.close()
    return differences(*batches)


def timed(
    start: Callable[[Case, Settings], Any], case: Case, settings: Settings, step: float = 0.0
) -> tuple[float, float]:
    """(images a second, share of time spent waiting) of a loader; ``step`` seconds pass between batches."""
    loader = start(case, settings)
    for _ in range(WARM_UP):
        next(loader)
    waited, began = 0.0, time.perf_counter()
    for _ in range(settings.batches):
        asked = time.perf_counter()
        batch = next(loader)
        waited += time.perf_counter() - asked
        if step:
            time.sleep(step)
    if batch["x_0"].is_cuda:
        torch.cuda.synchronize()
    took = time.perf_counter() - began
    loader.close()
    return settings.batch * settings.batches / took, waited / took


def cpu_times(case: Case, settings: Settings) -> dict[str, float]:
    """Milliseconds of CPU an image, all threads together, without what starting costs."""
    loader, count = ours(case, replace(settings, threads=1)), CPU_BATCHES * settings.batch
    for _ in range(WARM_UP):
        next(loader)
    began = time.process_time()
    for _ in range(CPU_BATCHES):
        next(loader)
    spent = time.process_time() - began
    loader.close()
    dataset = UsualDataset(case.source, case.px, SEED, case.recipe, settings.batch + count)
    for position in range(settings.batch):
        dataset[position]
    began = time.process_time()
    for position in range(settings.batch, settings.batch + count):
        dataset[position]
    usually = time.process_time() - began
    return {name: round(1000 * took / count, 3) for name, took in (("ours", spent), ("DataLoader", usually))}


def measure(case: Case, settings: Settings) -> dict[str, Any]:
    """One row: outputs compared, then both timed in turn.

    Raises:
        SystemExit: the outputs differ.
    """
    apart = compare(case, settings)
    if max(apart.values()) > CLOSE:
        raise SystemExit(f"bench.data: {case.name}: the outputs differ by {apart} of 255; nothing was timed")
    rates: dict[str, list[float]] = {"ours": [], "DataLoader": []}
    for _ in range(settings.rounds):
        rates["ours"].append(timed(ours, case, settings)[0])
        rates["DataLoader"].append(timed(usual, case, settings)[0])
    medians = {name: median(values) for name, values in rates.items()}
    step = SLACK * settings.batch / medians["ours"]
    waits = {
        name: timed(start, case, settings, step)[1] for name, start in (("ours", ours), ("DataLoader", usual))
    }
    return {
        "difference": {name: round(value, 3) for name, value in apart.items()},
        "images_per_second": {name: round(value, 1) for name, value in medians.items()},
        "rounds": {name: [round(value, 1) for value in values] for name, values in rates.items()},
        "ratio": round(medians["ours"] / medians["DataLoader"], 2),
        "cpu_ms": cpu_times(case, settings),
        "data_wait": {name: round(value, 3) for name, value in waits.items()},
    }


def show(rows: dict[str, dict[str, Any]]) -> str:
    """The rows in Markdown."""
    head = ["source, views", "ours, images/s", "DataLoader, images/s", "ratio"]
    head += ["CPU ms an image, ours", "DataLoader", "waiting, ours", "DataLoader"]
    body = [
        [
            name,
            *(f"{row['images_per_second'][who]:,.0f}" for who in ("ours", "DataLoader")),
            f"{row['ratio']:.2f}",
            *(f"{row['cpu_ms'][who]:.2f}" for who in ("ours", "DataLoader")),
            *(f"{row['data_wait'][who]:.0%}" for who in ("ours", "DataLoader")),
        ]
        for name, row in rows.items()
    ]
    return markdown(head, body)


def main(arguments: list[str]) -> int:
    """Measure and print; exit code 1 if outputs differ."""
    parser = argparse.ArgumentParser(prog="bench.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", nargs="?", type=Path, help="images (default: made for the purpose)")
    parser.add_argument("--px", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="and processes of the DataLoader")
    parser.add_argument("--batches", type=int, default=24, help="timed in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="rows whose names contain this")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device_id = 0 if torch.cuda.is_available() else None
    settings = Settings(options.batch, options.threads, options.batches, options.rounds, device_id)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(options.path, options.px, Path(folder), options.threads):
            if not options.only or options.only in case.name:
                rows[case.name] = measure(case, settings)
                print(f"bench.data: {case.name}: {json.dumps(rows[case.name])}", flush=True)
    route = "DALI on GPU (mixed decode)" if device_id is not None else "DALI on CPU"
    print(f"\n{route}, {options.px} px, batch {options.batch}, {options.threads} threads\n\n{show(rows)}")
    if options.json:
        ratios = {name: row["ratio"] for name, row in rows.items()}
        print(json.dumps({"machine": machine.describe(), "route": route, "ratio": ratios, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
