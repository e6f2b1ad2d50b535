"""What this machine reaches: arithmetic of one convolution, bandwidth of one copy, memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from engine.scaling import Device
from engine.step import Policy

SHORTEST = 0.2  # seconds that are timed
CHANNELS, IMAGES, PX = 128, 8, 32  # of the convolution, 3x3: a typical one of the networks
COPIED = 1 << 26  # bytes: more than caches hold


def measure_rates(policy: Policy) -> Device:
    """FLOP/s of a convolution in the policy's precision, forward, and bytes read and written by a copy in a
    second.
    """
    dtype, device = policy.autocast or torch.float32, policy.device
    x = torch.randn(IMAGES, CHANNELS, PX, PX, device=device, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(CHANNELS, CHANNELS, 3, 3, device=device, dtype=dtype)
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        each = _seconds(lambda: F.conv2d(x, weight, padding=1), device)
        copy = _seconds(lambda: target.copy_(source), device)
    return Device(2 * 9 * CHANNELS * x.numel() / each, 2 * COPIED / copy)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call: the mean over a fifth of a second, after one to warm up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    call()
    wait()
    began, calls = time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - began < SHORTEST:
        call()
        wait()
        calls += 1
    return (time.perf_counter() - began) / calls


def device_memory(device: torch.device, sharers: int = 1) -> int:
    """Bytes of a rank's device: of its GPU, or its share of the computer's where it has none.

    Args:
        sharers: ranks on this computer.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // sharers
