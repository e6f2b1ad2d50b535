"""The kernels themselves: on the GPU where there is one, otherwise in Triton's interpreter on the CPU.

The interpreter must be asked for before Triton is imported, so there these files run in a process of their
own (``tests/test_kernels_interpreted.py`` starts it, with TRITON_INTERPRET=1).
"""

import math

import pytest
import torch

from kernels import backend, tensors
from kernels.adagn_silu import op as adagn_silu

BAND = 256  # elements on either side of everything that a kernel writes
SENTINEL = 1234.5


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cpu" if backend.INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def triton_or_an_error(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # ten bits of mantissa hide everything
    backend.set_backend("triton")
    yield
    backend.set_backend("auto")


@pytest.fixture(autouse=True)
def guarded_memory(monkeypatch):
    """Whatever a kernel gets to fill starts as NaN and lies between sentinels, which nobody may touch.

    Neither the interpreter nor a GPU checks bounds, and fresh memory often holds the right answer of the run
    before.
    """
    buffers = []

    def new(shape, dtype, device, channels_last=False):
        count = math.prod(shape)
        buffer = torch.full((count + 2 * BAND,), SENTINEL, dtype=dtype, device=device)
        buffer[BAND : BAND + count] = math.nan
        layout = torch.channels_last if channels_last else torch.contiguous_format
        strides = torch.empty(shape, device="meta", memory_format=layout).stride()
        buffers.append(buffer)
        return buffer.as_strided(shape, strides, BAND)

    monkeypatch.setattr(tensors, "new", new)
    yield
    for buffer in buffers:
        sentinels = torch.cat((buffer[:BAND], buffer[-BAND:]))
        assert torch.equal(sentinels, torch.full_like(sentinels, SENTINEL)), "written outside of its memory"


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of adagn_silu that small images fill, several of them to a program."""
    monkeypatch.setattr(adagn_silu, "TILE", 64)
    monkeypatch.setattr(adagn_silu, "MOST_TILES", 2)
    monkeypatch.setattr(adagn_silu, "MERGE_BLOCK", 2)


@pytest.fixture
def fenced():
    """A copy with the same strides in a buffer whose other elements are NaN (255 for bytes): reading them
    shows."""

    def fenced(x: torch.Tensor) -> torch.Tensor:
        bad = 255 if x.dtype == torch.uint8 else math.nan
        buffer = torch.full((x.numel() + 2 * BAND,), bad, dtype=x.dtype, device=x.device)
        copy = buffer.as_strided(x.shape, x.stride(), BAND)
        copy.copy_(x)
        return copy

    return fenced
