"""The machine: devices, memory, disk, shared memory, communication."""

from __future__ import annotations

import os
import platform
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from engine.plan import size_of

SHARED = Path("/dev/shm")
ENOUGH_SHARED = 1 << 30  # bytes: reading processes hand over batches through it; containers get 64 MiB
ENOUGH_DISK = 20 << 30  # bytes: two checkpoints of a 128-px model and a prepared set
ENOUGH_FILES = 1024
UNLIMITED = 1 << 60  # bytes; what control groups call no limit is larger


@dataclass(frozen=True)
class Fact:
    """What is there, and what to do about it; no advice where all is well."""

    name: str
    value: str
    advice: str = ""


def facts(folder: Path) -> list[Fact]:
    """All of them; ``folder`` is where runs go."""
    return [_system(), _processors(), *_gpus(), _memory(), _disk(folder), _shared(), _files(), *_ranks()]


def busy() -> float:
    """Processes that want to run, for each processor, as a mean of the last minute; above 1 others wait."""
    return os.getloadavg()[0] / len(os.sched_getaffinity(0))


def _system() -> Fact:
    python = f"Python {platform.python_version()}"
    return Fact("system", f"{platform.system()} {platform.release()}, {platform.machine()}, {python}")


def _processors() -> Fact:
    cores, threads = len(os.sched_getaffinity(0)), torch.get_num_threads()
    level = torch.backends.cpu.get_cpu_capability()
    advice = ""
    if threads > cores:
        advice = f"torch uses {threads} threads on {cores} cores; export OMP_NUM_THREADS={cores}"
    return Fact("processors", f"{cores} cores, {threads} threads of torch, {level}", advice)


def _gpus() -> list[Fact]:
    if not torch.cuda.is_available():
        build = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch has no CUDA"
        seen = shutil.which("nvidia-smi") is not None
        advice = (
            "the driver is there and torch does not see a GPU: see `nvidia-smi`"
            if seen
            else "with a CUDA GPU the fastest attention is taken, kernels run in Triton, networks compiled"
        )
        return [Fact("GPU", f"none ({build})", advice)]
    found = []
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{p.name}, compute {p.major}.{p.minor}, {size_of(free)} free of {size_of(total)}"
        advice = "too old for Triton: compute 7.0 at least" if p.major < 7 else ""
        found.append(Fact(f"GPU {index}", text, advice))
    return found


def _memory() -> Fact:
    page = os.sysconf("SC_PAGE_SIZE")
    total, free = (os.sysconf(name) * page for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    limit = _group_limit()
    bounded = f", this container may use {size_of(limit)}" if limit and limit < total else ""
    return Fact("memory", f"{size_of(free)} free of {size_of(total)}{bounded}")


def _group_limit() -> int | None:
    """Of the control group, in bytes."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (Path("/sys/fs/cgroup") / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < UNLIMITED:
            return int(text)
    return None


def _disk(folder: Path) -> Fact:
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    usage = shutil.disk_usage(place)
    advice = ""
    if not os.access(place, os.W_OK):
        advice = f"{place} cannot be written; choose another run.dir"
    elif usage.free < ENOUGH_DISK:
        advice = f"less than {size_of(ENOUGH_DISK)}: enough for the quickstart, not for a 128-px run"
    return Fact("disk", f"{size_of(usage.free)} free of {size_of(usage.total)} at {place}", advice)


def _shared() -> Fact:
    if not SHARED.is_dir():
        return Fact("shared memory", "none", "data.workers needs /dev/shm; leave it at 0")
    usage = shutil.disk_usage(SHARED)
    small = "data.workers and NCCL need more: docker run --shm-size=8g, or --ipc=host"
    advice = small if usage.total < ENOUGH_SHARED else ""
    return Fact("shared memory", f"{size_of(usage.free)} free of {size_of(usage.total)}", advice)


def _files() -> Fact:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    advice = f"`ulimit -n {min(hard, 65536)}` before a run with data.workers" if soft < ENOUGH_FILES else ""
    return Fact("open files", f"{soft} at once", advice)


def _ranks() -> list[Fact]:
    if not dist.is_available():
        return [Fact("ranks", "this torch has no torch.distributed", "one rank only; install another torch")]
    have = {
        "gloo": dist.is_gloo_available(),
        "NCCL": dist.is_nccl_available(),
        "MPI": dist.is_mpi_available(),
    }
    built = ", ".join(name for name, there in have.items() if there)
    if not torch.cuda.is_available():
        return [Fact("ranks", f"gloo, as there is no GPU (torch has {built})")]
    version = ".".join(map(str, torch.cuda.nccl.version()))
    count = torch.cuda.device_count()
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    direct = sum(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)
    text = f"NCCL {version}, {count} GPUs" + (f", {direct} of {len(pairs)} pairs direct" if pairs else "")
    advice = (
        "GPUs talk through the host: slower; check NVLink and virtualisation" if direct < len(pairs) else ""
    )
    return [Fact("ranks", text, advice)]
