"""The operation on a CPU, for channels_last: two passes to take the statistics and one to write, all in loops
that Numba compiles (:mod:`kernels.adagn_silu.cpu_kernel`) and that torch's own threads run.

PyTorch's group norm takes a channels_last image of fewer than 1,024 pixels one group at a time, many times
slower than memory allows, and its backward does so at any size; modulations and SiLU each go through memory
again.
"""

from __future__ import annotations

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

NARROWEST = 64  # channels of a block, where they are divided: of fewer, loops are too short
LANES = 64  # numbers in a row, at most, where more than one pixel makes it
STORED = {torch.bfloat16: np.uint16, torch.float32: np.float32, torch.float64: np.float64}


def adagn_silu(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None = None,
    z: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """As :func:`kernels.adagn_silu.ref.adagn_silu`, in the dtype of x (B, C, H, W), which is channels_last.

    Everything between x and y is float32, or float64 where x is.
    """
    return _Norm.apply(x, weight, bias, time, z, groups, eps, True)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """``F.group_norm`` in the dtype of x (B, C, H, W), which is channels_last."""
    return _Norm.apply(x, weight, bias, None, None, groups, eps, False)


class _Norm(torch.autograd.Function):
    """The operation, with or without SiLU, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *arguments: Any) -> Tensor:
        *vectors, groups, eps, silu = arguments
        y, mean, rstd = torch.ops.diffsiam.norm_silu_cpu(x, *vectors, groups, eps, silu)
        ctx.save_for_backward(x, *vectors, mean, rstd)
        ctx.silu = silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad = grad.contiguous(memory_format=torch.channels_last)
        gradients = torch.ops.diffsiam.norm_silu_cpu_backward(grad, *ctx.saved_tensors, ctx.silu)
        present = zip(ctx.saved_tensors[1:5], gradients[1:], strict=True)
        return gradients[0], *(None if of is None else g for of, g in present), None, None, None


# Operations of their own, so that whoever counts operations or runs them without data sees them. Defined in
# torch's older way, which costs microseconds a call where `torch.library.custom_op` costs tens.
_VECTORS = "Tensor weight, Tensor bias, Tensor? time, Tensor? z"
_library = torch.library.Library("diffsiam", "FRAGMENT")
_library.define(
    f"norm_silu_cpu(Tensor x, {_VECTORS}, int groups, float eps, bool silu) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"norm_silu_cpu_backward(Tensor grad, Tensor x, {_VECTORS}, Tensor mean, Tensor rstd, bool silu)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None,
    z: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the groups' mean and 1 / standard deviation (B, G)."""
    y, mean, rstd = _norm_silu_fake(x, weight, bias, time, z, groups, eps, silu)
    vectors = _vectors(mean.dtype, weight, bias, time, z)
    _run(0, x, groups, eps, silu, (x, *vectors, mean, rstd, y))
    return y, mean, rstd


def _norm_silu_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None,
    z: Tensor | None,
    groups: int,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.new_empty((len(x), groups), dtype=_computed(x))
    return torch.empty_like(x, memory_format=torch.channels_last), mean, torch.empty_like(mean)


def _norm_silu_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None,
    z: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, bias, time and z; empty where there is none."""
    given = (weight, bias, time, z)
    vectors = _vectors(mean.dtype, *given)
    d_x = torch.empty_like(x, memory_format=torch.channels_last)
    each = [mean.new_empty(x.shape[:2]) for _ in range(2)]  # of weight and bias, for each sample
    pairs = [mean.new_empty(0 if of is None else of.shape) for of in vectors[2:]]
    _run(1, x, mean.shape[1], 0.0, silu, (x, *vectors, mean, rstd, None, grad, d_x, *each, *pairs))
    sums = (of.sum(0) for of in each)
    dweight, dbias, dtime, dz = (
        g if of is None else g.to(of.dtype) for g, of in zip((*sums, *pairs), given, strict=True)
    )
    return d_x, dweight, dbias, dtime, dz


def _norm_silu_backward_fake(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    time: Tensor | None,
    z: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dtime, dz = (mean.new_empty(0) if of is None else torch.empty_like(of) for of in (time, z))
    d_x = torch.empty_like(x, memory_format=torch.channels_last)
    return d_x, torch.empty_like(weight), torch.empty_like(bias), dtime, dz


_library.impl("norm_silu_cpu", _norm_silu, "CPU")
_library.impl("norm_silu_cpu_backward", _norm_silu_backward, "CPU")
torch.library.register_fake("diffsiam::norm_silu_cpu", _norm_silu_fake, lib=_library)
torch.library.register_fake("diffsiam::norm_silu_cpu_backward", _norm_silu_backward_fake, lib=_library)


def _computed(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _vectors(dtype: torch.dtype, *given: Tensor | None) -> list[Tensor | None]:
    return [None if vector is None else vector.to(dtype).contiguous() for vector in given]


def _run(
    which: int, x: Tensor, groups: int, eps: float, silu: bool, tensors: tuple[Tensor | None, ...]
) -> None:
    """Run the loops forward (``which`` 0) or backward (1); ``tensors`` in the order of their slots."""
    threads = torch.get_num_threads()
    batch, channels, height, width = x.shape
    block = block_width(batch, channels, groups, threads)
    tasks = batch * (channels // block)
    pixels = height * width
    repeats = side_by_side(pixels, channels) if block == channels else 1
    sizes = (0, tasks, batch, pixels, channels, groups, block, repeats, silu, 0)
    addresses = (0 if tensor is None else tensor.data_ptr() for tensor in tensors)
    loops, slots, eps_slot = _compiled(x.dtype)
    parameters = slots(*sizes, *addresses)
    ctypes.c_double.from_buffer(parameters, 8 * eps_slot).value = eps
    _on_threads(max(1, min(threads, tasks)), loops[which], parameters)


def block_width(batch: int, channels: int, groups: int, threads: int) -> int:
    """Channels of a task, whole groups: all, or fewer where samples are too few for the threads."""
    depth, width = channels // groups, channels
    while batch * (channels // width) < threads and width % (2 * depth) == 0 and width // 2 >= NARROWEST:
        width //= 2
    return width


def side_by_side(pixels: int, channels: int) -> int:
    """Pixels that are taken as one, for loops of up to :data:`LANES`: a power of two that divides all."""
    count = 1
    while pixels % (2 * count) == 0 and 2 * count * channels <= LANES:
        count *= 2
    return count


@cache
def _compiled(dtype: torch.dtype) -> tuple[tuple[Any, Any], Any, int]:
    """Loops forward and backward, the type of their parameters, and which of these is eps."""
    from kernels.adagn_silu import cpu_kernel

    stored = STORED[dtype]
    computed = np.float64 if dtype == torch.float64 else np.float32
    try:
        loops = cpu_kernel.entries(stored, computed, cache=True)
    except RuntimeError:  # Numba finds no folder to write to
        loops = cpu_kernel.entries(stored, computed, cache=False)
    return loops, ctypes.c_longlong * cpu_kernel.SLOTS, cpu_kernel.EPS


def _on_threads(threads: int, loops: Any, parameters: Any) -> None:
    """Call the loops on so many threads at once, which share the tasks."""
    if threads == 1:
        loops.ctypes(ctypes.addressof(parameters))
    elif (parallel := _openmp()) is not None:
        parallel(loops.address, parameters, threads, 0)
    else:
        list(_pool(threads).map(loops.ctypes, [ctypes.addressof(parameters)] * threads))


@cache
def _openmp() -> Any:
    """``GOMP_parallel`` of the library that torch itself runs its threads with: others would fight with them.
    None where torch has another, or has it under another name.
    """
    try:  # only one that is loaded: this name could also find a second one
        parallel = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "norm")
