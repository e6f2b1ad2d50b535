"""What a benchmark ran on: device, clocks, driver, versions, revision."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
REVISION = "DIFFSIAM_REVISION"  # names the revision where there is no repository
PACKAGES = ("torch", "triton", "numpy", "pydantic", "deepspeed", "xformers", "nvidia-dali-cuda130", "lmdb")
CLOCKS = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
BUSY = 10  # percent of utilisation from which on others are at work


def describe() -> dict[str, Any]:
    """Everything that a number depends on besides the code, and the revision of the code."""
    cuda = torch.cuda.is_available()
    told: dict[str, Any] = {
        "device": device_name(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "revision": revision(),
        "packages": {name: installed(name) for name in PACKAGES},
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        told |= {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nvidia_smi": clocks(),
        }
    return told


def device_name() -> str:
    """Of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return platform.processor() or platform.machine()


def slug(name: str) -> str:
    """A device's name as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def installed(package: str) -> str | None:
    """Version, or None where the package is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def revision() -> str:
    """Of the code: git's, or the one that the environment names."""
    if named := os.environ.get(REVISION):
        return named
    return (
        _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"]) or "unknown"
    )


def clocks() -> dict[str, str]:
    """Driver, clocks, power limit and temperature as nvidia-smi tells them now; nothing is changed."""
    query = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    values = _first_line(query)
    return dict(zip(CLOCKS, values.split(", "), strict=False)) if values else {}


def busy() -> int:
    """Percent of time that the GPU is at work while this process waits; 0 where nobody can tell."""
    time.sleep(1.0)  # the driver looks back for up to a second
    told = _first_line(["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"])
    return int(told) if told.isdigit() else 0


def _first_line(command: list[str]) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return run.stdout.strip().splitlines()[0] if run.returncode == 0 and run.stdout.strip() else ""
