"""The one switch between the Triton kernels and their PyTorch references.

auto        Triton on CUDA where the kernel takes the layout, the reference elsewhere; on a CPU, where an
            operation has loops of its own for it, those
triton      Triton or an error; on the CPU in its interpreter (TRITON_INTERPRET=1 when Python starts)
reference   plain PyTorch everywhere
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "triton", "reference")

# Triton makes up its mind when a kernel is decorated: a later change of the environment does not count.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_INSTALLED = find_spec("triton") is not None
_asked = "auto"
_planned: str | None = None


@contextmanager
def as_on(kind: str | None) -> Iterator[None]:
    """Choose as on a device of type ``kind`` ("cuda"), whether it is here or not; None: as on the tensors'.

    For tensors without data: operations then have the shapes and keep the memory that they would have there.
    """
    global _planned
    before, _planned = _planned, kind
    try:
        yield
    finally:
        _planned = before


def set_backend(name: str) -> None:
    """Choose for all operations of this process.

    Args:
        name: "auto", "triton" or "reference".

    Raises:
        ValueError: unknown name.
    """
    global _asked
    if name not in BACKENDS:
        raise ValueError(f"kernels.backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    _asked = name


def chosen(device: torch.device) -> tuple[str, str]:
    """What runs on ``device``: ("triton" or "reference", why).

    Raises:
        ValueError: "triton" was asked for and cannot run there.
    """
    if _asked == "reference":
        return "reference", "kernels.backend=reference"
    if device.type == "meta":
        return "reference", "shapes without data"
    if _planned == "cuda":
        return "triton", "Triton kernels, as on CUDA"
    if not _INSTALLED:
        obstacle = "triton is not installed"
    elif device.type == "cuda":
        return "triton", "Triton kernels, compiled at first use"
    elif _asked == "triton" and INTERPRETED:
        return "triton", f"Triton's interpreter on {device.type}: exact and slow, for tests"
    else:
        obstacle = f"no Triton on {device.type} outside its interpreter"
        if _asked == "auto" and device.type == "cpu":
            obstacle += "; group norms and draws in compiled loops"
    if _asked == "triton":
        raise ValueError(
            f"kernels.backend=triton: {obstacle}; use auto, or set TRITON_INTERPRET=1 for the interpreter"
        )
    return "reference", obstacle


def use_cpu_path(x: Tensor, suits: bool = True) -> bool:
    """Whether an operation on ``x`` runs its own code for the CPU: eagerly, under "auto" alone.

    Args:
        suits: whether they take the layout of x.
    """
    on_cpu = (_planned or x.device.type) == "cpu"
    return suits and _asked == "auto" and on_cpu and not torch.compiler.is_compiling()


def use_triton(x: Tensor, suits: bool = True) -> bool:
    """Whether an operation on ``x`` runs its kernel.

    Args:
        suits: whether the kernel takes the layout of x. Under "auto" the reference takes what it does not;
            under "triton" the operation goes on to its kernel, which refuses.
    """
    return chosen(x.device)[0] == "triton" and (suits or _asked == "triton")
