"""What a step cannot be faster than: its convolutions and matrix products alone, each from warm memory.

A dispatch mode notes every such call of one real step, forward and backward, with shapes, strides and dtypes;
then each is repeated on its own. Nothing else of the step is in that time: no norm, no sum, no cast, no
optimizer, and no image that comes from further away than the cache.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from bench.timing import timed

aten = torch.ops.aten
PRODUCTS = (
    *(aten.convolution, aten.convolution_backward, aten.mm, aten.addmm, aten.bmm, aten.baddbmm),
    torch.ops.mkldnn._convolution_pointwise,  # of packed weights
)
ROUNDS = 5

Call = tuple[Any, tuple[Any, ...]]  # an operation and its arguments, tensors as their descriptions


class _Described(tuple):
    """(shape, strides, dtype) of a tensor."""


class Products(TorchDispatchMode):
    """Counts the convolutions and matrix products that run under it.

    Attributes:
        seen: how often each call came.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Call] = Counter()

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.overloadpacket in PRODUCTS:
            assert not kwargs, f"{function} has none"
            self.seen[function, _hashable(tree_map_only(Tensor, _describe, args))] += 1
        return function(*args, **(kwargs or {}))


def floor(step: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Milliseconds and number of the convolutions and products of ``step``."""
    with Products() as products:
        step()
    total = 0.0
    with torch.no_grad():
        for (function, args), count in products.seen.items():
            call = partial(function, *tree_map_only(_Described, partial(_make, device=device), args))
            timed(call, 2, device)
            total += count * statistics.median(timed(call, ROUNDS, device))
    return {"ms": total, "calls": products.seen.total()}


def _describe(tensor: Tensor) -> _Described | Tensor:
    if tensor.is_mkldnn:  # packed weights, whose order nothing describes
        return tensor
    return _Described((tuple(tensor.shape), tensor.stride(), tensor.dtype))


def _make(description: _Described, device: torch.device) -> Tensor:
    shape, strides, dtype = description
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    return torch.randn(extent, device=device).to(dtype).as_strided(shape, strides)  # may repeat an element


def _hashable(value: Any) -> Any:
    if isinstance(value, _Described):
        return value
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value
