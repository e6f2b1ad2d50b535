"""Ten seconds of measuring: is each chosen path at least as fast as what it replaces, on this machine?

Both sides run in turns and the best time of each counts, so that a machine with other work to do misleads
less. Absolute numbers of other machines are in BENCHMARKS.md; here a path is held against the plain one.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffsiam.attention_routines import choose_attention
from kernels.adagn_silu import ref
from kernels.adagn_silu.op import adagn_silu

SECONDS = 1.2  # for a check
DISK_BYTES, DISK_LEAST = 32 << 20, 20e6  # written; bytes a second: a 400 MB checkpoint in 20 s
RANKS_BYTES, RANKS_LEAST = 4 << 20, 100e6  # reduced; bytes a second, a slow network's
DECODED, SIDE = 16, 256  # JPEG files of a batch, and their side in pixels
AHEAD = 8  # batches that may be ready before they are asked for, which tell nothing
WEIGHTS = 40, 100_000  # tensors that the optimizer updates, and the elements of each
TOLERANCE = 0.9  # of the expectation: clocks drift


@dataclass(frozen=True)
class Check:
    """One measurement.

    Attributes:
        measured, expected: in ``unit``; more is better.
        against: what the expectation is.
    """

    name: str
    measured: float
    expected: float
    unit: str
    against: str

    @property
    def ok(self) -> bool:
        return self.measured >= TOLERANCE * self.expected


Measure = Callable[[torch.device, Path], Check]


def best(contenders: list[Callable[[], Any]], device: torch.device) -> list[float]:
    """Least seconds of each, measured in turns for about a second in all, at least twice."""
    for call in contenders:
        call()
    least = [float("inf")] * len(contenders)
    end, rounds = time.monotonic() + SECONDS, 0
    while rounds < 2 or time.monotonic() < end:
        for i, call in enumerate(contenders):
            _wait(device)
            begun = time.perf_counter()
            call()
            _wait(device)
            least[i] = min(least[i], time.perf_counter() - begun)
        rounds += 1
    return least


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def attention(device: torch.device, folder: Path) -> Check:
    """The chosen routine beside softmax(q k^T) v, on 16 x 16 pixels of 128 channels."""
    q, k, v = torch.randn(3, 4, 1, 256, 128, device=device, dtype=_dtype(device))
    attend, _ = choose_attention(device, _dtype(device), [(1, 256, 128)])

    def plain() -> Tensor:
        return F.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1) @ v

    ours, theirs = best([lambda: attend(q, k, v), plain], device)
    return Check("attention", 1 / ours, 1 / theirs, "calls/s", "softmax(q k) v in separate steps")


def kernels(device: torch.device, folder: Path) -> Check:
    """Group norm, modulation and SiLU, forward and backward, beside PyTorch's operations."""
    count, side = (32, 64) if device.type == "cuda" else (16, 16)
    x = torch.randn(count, 128, side, side, device=device, dtype=_dtype(device))
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.ones(2, 128, device=device)
    time_shift = torch.randn(count, 256, device=device)

    def run(operation: Callable[..., Tensor]) -> Callable[[], None]:
        def call() -> None:
            x.grad = None
            operation(x, 32, weight, bias, time_shift).sum().backward()

        return call

    ours, theirs = best([run(adagn_silu), run(ref.adagn_silu)], device)
    return Check("kernels", 1 / ours, 1 / theirs, "norms/s", "the reference in PyTorch's operations")


def optimizer(device: torch.device, folder: Path) -> Check:
    """Fused Adam beside Adam tensor by tensor."""
    count, size = WEIGHTS

    def adam(fused: bool) -> Callable[[], object]:
        weights = [torch.zeros(size, device=device, requires_grad=True) for _ in range(count)]
        for weight in weights:
            weight.grad = torch.full_like(weight, 1e-3)
        return torch.optim.Adam(weights, foreach=False, fused=fused).step

    ours, theirs = best([adam(fused=True), adam(fused=False)], device)
    millions = count * size / 1e6
    return Check("optimizer", millions / ours, millions / theirs, "M weights/s", "Adam tensor by tensor")


def decoder(device: torch.device, folder: Path) -> Check:
    """Our loader, which reads ahead on one thread, on JPEG files beside Pillow."""
    from engine.data.pipeline import Loader
    from engine.data.sources import open_source

    px = SIDE // 2
    with tempfile.TemporaryDirectory(dir=folder) as place:
        files = _pictures(Path(place))
        source = open_source("folder", place, px, 0, 1, "all")
        on = (device.index or 0) if device.type == "cuda" else None
        loader = Loader(source, px, 0, DECODED, views=False, threads=1, device_id=on)

        def pillow() -> None:
            for file in files:
                np.asarray(Image.open(file).convert("RGB").resize((px, px), Image.Resampling.BICUBIC))

        try:
            for _ in range(AHEAD):
                next(loader)
            (ours,) = best([lambda: [next(loader) for _ in range(AHEAD)]], device)
        finally:
            loader.close()
        (theirs,) = best([pillow], device)
    return Check("decoder", AHEAD * DECODED / ours, DECODED / theirs, "images/s", "Pillow on one thread")


def _pictures(folder: Path) -> list[Path]:
    """JPEG files of smooth noise, which decode like photographs."""
    draw = np.random.default_rng(0)
    files = []
    for index in range(DECODED):
        small = Image.fromarray(draw.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
        stream = io.BytesIO()
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(folder / f"{index:03d}.jpg")
        files[-1].write_bytes(stream.getvalue())
    return files


def disk(device: torch.device, folder: Path) -> Check:
    """Write and sync, where runs go."""
    content = os.urandom(DISK_BYTES)

    def write() -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    (seconds,) = best([write], torch.device("cpu"))
    return Check("disk", DISK_BYTES / seconds / 1e6, DISK_LEAST / 1e6, "MB/s", "a checkpoint within seconds")


def ranks(device: torch.device, folder: Path) -> Check:
    """A sum over two ranks by gloo, inside this process: does it work, and how fast at best?"""
    store = dist.HashStore()
    groups: list[Any] = [None, None]
    tensors = [torch.ones(RANKS_BYTES // 4) for _ in groups]

    def join(rank: int) -> None:
        groups[rank] = dist.ProcessGroupGloo(store, rank, 2)

    def reduce(rank: int) -> None:
        groups[rank].allreduce([tensors[rank]]).wait()

    def both(act: Callable[[int], None]) -> None:
        threads = [threading.Thread(target=act, args=(rank,), daemon=True) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=30)

    both(join)
    if None in groups:
        raise RuntimeError("two ranks of gloo do not find each other: check the host's name and firewall")
    (seconds,) = best([lambda: both(reduce)], torch.device("cpu"))
    return Check("ranks", RANKS_BYTES / seconds / 1e6, RANKS_LEAST / 1e6, "MB/s", "a network of 1 Gbit/s")


CHECKS: tuple[Measure, ...] = (attention, kernels, optimizer, decoder, disk, ranks)
