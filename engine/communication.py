"""What ranks send each other in one optimizer step: counted as it happens, and known beforehand.

Bytes are those of the whole tensor that a collective works on. What a rank sends of it on a ring is
(world - 1) / world for an all-gather or a reduce-scatter, and twice that for an all-reduce.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FLOAT = 4  # bytes: gradients and parameters travel in float32 under every policy
NORM_SUMS = 4  # all-reduces of a synchronised batch norm: mean and variance, forward and backward
TIMES_AROUND = {"all-reduce": 2, "all-gather": 1, "reduce-scatter": 1, "broadcast": 1}
KINDS = {
    "allreduce_": "all-reduce",
    "allgather_": "all-gather",
    "_allgather_base_": "all-gather",
    "reduce_scatter_": "reduce-scatter",
    "_reduce_scatter_base_": "reduce-scatter",
    "broadcast_": "broadcast",
}
# By ZeRO stage, as DeepSpeed goes about it: how gradients travel, whether with every micro-batch, and whether
# parameters are gathered afterwards. (arXiv 1910.02054 would scatter at stages 1 and 2; DeepSpeed all-reduces
# buckets that belong to several ranks.)
GRADIENTS = {0: "all-reduce", 1: "all-reduce", 2: "all-reduce", 3: "reduce-scatter"}
EVERY_MICRO_BATCH = (2, 3)
GATHERS = (1, 2, 3)


@dataclass(frozen=True)
class Collective:
    """Calls of one kind for one purpose.

    Attributes:
        what: what is sent.
        kind: a key of :data:`TIMES_AROUND`.
        calls: in one step; of gradients and parameters at least so many (they go in buckets).
        bytes: of all calls together.
        hidden: whether it may go on while the backward pass computes.
    """

    what: str
    kind: str
    calls: int
    bytes: int
    hidden: bool = False

    def sent(self, world: int) -> float:
        """Bytes that each rank sends on a ring."""
        return TIMES_AROUND[self.kind] * (world - 1) / world * self.bytes


class Collectives(TorchDispatchMode):
    """Counts the collectives that run under it, by kind.

    Attributes:
        calls, bytes: kind -> number and bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function.namespace == "c10d":
            name = function.overloadpacket.__name__
            kind = KINDS.get(name, name)
            sizes = [t.nbytes for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            # Part and whole are both arguments of a gather or a scatter.
            size = sum(sizes) if kind in ("all-reduce", "broadcast") else max(sizes, default=0)
            self.calls[kind] = self.calls.get(kind, 0) + 1
            self.bytes[kind] = self.bytes.get(kind, 0) + size
        return function(*args, **(kwargs or {}))

    def sent(self, world: int) -> float:
        """Bytes that each rank sent on a ring."""
        return sum(
            Collective("", kind, 1, size).sent(world)
            for kind, size in self.bytes.items()
            if kind in TIMES_AROUND
        )


def collectives(
    parameters: int, norms: Iterable[int], zero: int, accumulation: int, world: int
) -> list[Collective]:
    """What one optimizer step sends, nothing on a single rank.

    Args:
        parameters: number of trained parameters.
        norms: channels of every call of a batch norm in one micro-batch, see :func:`norm_calls`.
        zero: ZeRO stage 0..3.
        accumulation: micro-batches of a step.
    """
    if world == 1:
        return []
    whole = FLOAT * parameters
    times = accumulation if zero in EVERY_MICRO_BATCH else 1
    found = [Collective("gradients", GRADIENTS[zero], times, times * whole, hidden=zero > 0)]
    if zero in GATHERS:
        found.append(Collective("parameters", "all-gather", 1, whole))
    channels = list(norms)
    if channels:
        calls, size = NORM_SUMS * len(channels), NORM_SUMS * FLOAT * sum(channels)
        found.append(Collective("batch statistics", "all-reduce", accumulation * calls, accumulation * size))
    return found


class norm_calls:
    """Channels of every batch norm that computes statistics while it is entered, in ``channels``."""

    def __init__(self, module: nn.Module):
        self.channels: list[int] = []
        self._norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def __enter__(self) -> list[int]:
        self._hooks = [norm.register_forward_hook(self._called) for norm in self._norms]
        return self.channels

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _called(self, norm: nn.Module, inputs: Any, output: Any) -> None:
        if norm.training and isinstance(norm, _BatchNorm):
            self.channels.append(norm.num_features)
