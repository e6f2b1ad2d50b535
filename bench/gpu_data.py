"""The phase that loads images: our loader, decoding on the GPU, beside the usual one."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.gpu_steps import lacking
from bench.parts import Clock, run

NEEDS = ("lmdb", "torchvision", "pydantic", "rich")
THREADS = 8  # of ours, and processes of the DataLoader: what a GPU of a shared host gets

Report = dict[str, Any]


def data(out: Path, clock: Clock) -> Report:
    """bench.data on images that it makes; on a CPU one small row."""
    missing = lacking("nvidia.dali" if find_spec("nvidia") else "nvidia", *NEEDS)
    if missing:
        return {"ok": True, "absent": [f"every row: needs {', '.join(missing)}"], "bench": None, "parts": []}
    small = ["--only", "32 px", "--batches", "2", "--rounds", "1", "--batch", "8"]
    sizes = ["--threads", str(THREADS), "--batch", "64"] if torch.cuda.is_available() else small
    part = run("bench.data", ["-m", "bench.data", "--json", *sizes], clock.left)
    lines = part.output.strip().splitlines()
    bench = json.loads(lines[-1]) if part.ok else None
    return {"ok": part.ok, "absent": [], "bench": bench, "parts": [part.summary()]}


def show_data(report: Report, brief: bool) -> str:
    """In Markdown."""
    text = "".join(f"- absent: {line}\n" for line in report["absent"])
    if report["bench"]:
        from bench.data import show

        text += f"{report['bench']['route']}\n\n{show(report['bench']['rows'])}"
    return text + "".join(f"- {part['name']}: {part['seconds']} s\n" for part in report["parts"])
