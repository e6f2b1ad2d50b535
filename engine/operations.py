"""What operations cost, seen as they run: floating-point operations, bytes moved, memory alive.

A dispatch mode sees every operation below autograd, forward and backward, of real tensors as of those without
data. It knows neither models nor configs.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Passes over memory of operations that read their inputs more than once, for every pass that arguments and
# results would need: the group norm takes its image twice forward, image and gradient twice backward. On a
# CPU what it takes again is in the cache.
PASSES = {"diffsiam::adagn_silu": 3 / 2, "diffsiam::adagn_silu_backward": 5 / 3}


@dataclass(frozen=True)
class Operation:
    """One call.

    Attributes:
        flops: of products (convolution, matrix product, attention), a multiply-add is two; 0 of all others.
        bytes: of tensors read and written, each once or as :data:`PASSES` says.
        custom: an operation with a kernel of its own, which no compiler fuses with others.
    """

    flops: int
    bytes: int
    custom: bool = False


class Operations(TorchDispatchMode):
    """Counts what runs under it.

    Attributes:
        seen: every operation that moves memory, in order; views and fresh memory are none.
        peak: largest number of bytes that were alive at once of what was made under it, gradients included.
        peak_beside_gradients: the same without gradients of the parameters of ``module``.
    """

    def __init__(self, module: nn.Module | None = None):
        super().__init__()
        self.seen: list[Operation] = []
        self.peak = self.peak_beside_gradients = 0
        self._alive = self._gradients = 0
        self._storages: dict[int, weakref.ref] = {}
        self._hooks = [
            p.register_post_accumulate_grad_hook(self._is_gradient)
            for p in (module.parameters() if module is not None else ())
            if p.requires_grad
        ]

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*exception)

    def __torch_dispatch__(
        self, function: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = function(*args, **kwargs)
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self._keep(results)
        if results and moves(function):
            inputs = (t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor))
            self.seen.append(_operation(function, args, kwargs, out, (*inputs, *results)))
        return out

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.seen)

    def _keep(self, tensors: Iterable[Tensor]) -> None:
        """Follow the memory of new tensors until nothing holds it any more."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key in self._storages:
                continue

            def gone(_: weakref.ref, key: int = key, size: int = size) -> None:
                self._alive -= size
                del self._storages[key]

            self._storages[key] = weakref.ref(storage, gone)
            self._alive += size
        self.peak = max(self.peak, self._alive)
        self.peak_beside_gradients = max(self.peak_beside_gradients, self._alive - self._gradients)

    def _is_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._gradients += parameter.grad.untyped_storage().nbytes()


def moves(function: Any) -> bool:
    """Whether an operation reads or writes memory: no view, and more than an allocation."""
    returns = function._schema.returns
    aliases = any(r.alias_info is not None for r in returns)
    written = any(r.alias_info is not None and r.alias_info.is_write for r in returns)
    return (written or not aliases) and "empty" not in str(function)


def _operation(function: Any, args: Any, kwargs: Any, out: Any, tensors: Iterable[Tensor]) -> Operation:
    count = flop_registry.get(function.overloadpacket)
    name = function.name()
    size = sum(t.numel() * t.element_size() for t in tensors)
    flops = int(count(*args, **kwargs, out_val=out)) if count else 0
    return Operation(flops, int(size * PASSES.get(name, 1)), name.startswith("diffsiam::"))
