"""What all operations share on the host: checks of their arguments, allocation, the device of a launch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

IMAGE_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
INDEX_LIMIT = (
    2**31
)  # elements of one sample, whose offsets are 32-bit inside a kernel; offsets of samples are 64-bit


def require(condition: bool, operation: str, message: str) -> None:
    """Raise ValueError("operation: message") unless the condition holds."""
    if not condition:
        raise ValueError(f"{operation}: {message}")


def require_together(operation: str, device: torch.device, **tensors: Tensor | None) -> None:
    """Raise ValueError unless all tensors live on ``device``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{operation}: {name} is on {tensor.device}, the others are on {device}")


def require_batch(operation: str, batch: int, **indices: Tensor) -> None:
    """Raise ValueError unless every tensor is (batch,) int64, contiguous."""
    for name, index in indices.items():
        if index.dtype != torch.int64 or index.shape != (batch,) or not index.is_contiguous():
            raise ValueError(
                f"{operation}: {name} must be ({batch},) int64 and contiguous, "
                f"got {tuple(index.shape)} {index.dtype} with strides {index.stride()}"
            )


def is_channels_last(x: Tensor) -> bool:
    """Whether (B, C, H, W) lies as (B, H, W, C) without gaps."""
    return x.is_contiguous(memory_format=torch.channels_last)


def is_dense(x: Tensor) -> bool:
    """Whether (B, C, H, W) is contiguous or channels_last."""
    return x.is_contiguous() or is_channels_last(x)


def require_dense(operation: str, name: str, x: Tensor) -> None:
    """Raise ValueError unless (B, C, H, W) is contiguous or channels_last."""
    message = (
        f"{name} must be contiguous or channels_last, got shape {tuple(x.shape)} with strides {x.stride()}"
    )
    require(is_dense(x), operation, message)
    require(x[:1].numel() < INDEX_LIMIT, operation, f"{name} has 2^31 elements or more a sample")


def new(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, channels_last: bool = False
) -> Tensor:
    """Uninitialised memory for a kernel to fill: every output and partial sum comes from here."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)


def launching_on(x: Tensor) -> AbstractContextManager:
    """Triton launches on the current device: make it that of ``x``."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()
