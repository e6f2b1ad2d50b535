"""Bytes and floating-point operations of the operations: what the formula needs, what the kernels move, what
eager PyTorch moves.

The first two are counted from the formulas, the last by running the reference on tensors without data and
adding up what every operation reads and writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PHILOX_OPERATIONS = 10 * 8 / 4 + 12  # ten rounds of eight integer operations for four words; one normal each
# Floating-point operations of an element: statistics 4, apply 9; their backward: two sums 13, dx 16.
ADAGN_FORWARD, ADAGN_BACKWARD = 13, 29


@dataclass(frozen=True)
class Traffic:
    """Of one call.

    Attributes:
        least: bytes that any implementation must move: each input read once, each output written once.
        kernel_bytes: bytes that ours asks for, all passes counted.
        eager_bytes: bytes that the operations of the eager reference read and write.
        flops: floating-point operations of the formula.
        launches: operations of the eager reference, views left out.
    """

    least: int
    kernel_bytes: int
    eager_bytes: int
    flops: int
    launches: int


class Counter(TorchDispatchMode):
    """Adds up bytes in and out of every operation that runs under it, views and fresh memory left out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.launches = 0

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        aliases = any(r.alias_info is not None for r in function._schema.returns)
        written = any(r.alias_info is not None and r.alias_info.is_write for r in function._schema.returns)
        if results and (written or not aliases) and "empty" not in str(function):
            inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in (*inputs, *results))
            self.launches += 1
        return out


def eager_traffic(function: Callable[[], Any]) -> tuple[int, int]:
    """Bytes and launches of ``function``, which works on tensors of the meta device."""
    with Counter() as counter:
        function()
    return counter.bytes, counter.launches


def size(*tensors: Tensor | None) -> int:
    """Bytes of tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)
