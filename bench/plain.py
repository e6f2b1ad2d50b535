"""The training step as a good engineer writes it with PyTorch alone, to be timed beside ours.

Channels_last, bfloat16 autocast, torch.compile, DistributedDataParallel, a fused optimizer, one foreach
operation for the average, SDPA; nothing is read by the host. The mathematics is that of :mod:`bench.rivals`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from bench.rivals import Draws, Rival
from diffsiam.attention import set_attention
from diffsiam.attention_routines import attend_sdpa


class Plain(Rival):
    """See the module; arguments as :class:`bench.rivals.Rival`.

    Args:
        compiled: whether the networks are compiled, each for itself, the frozen one's halves apart.
    """

    def __init__(self, *arguments: Any, compiled: bool = False):
        super().__init__(*arguments)
        self.compiled = compiled
        for network in self.networks():
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            set_attention(network, attend_sdpa)
        if compiled:
            self._compile()
        self.optimizer = self.make_optimizer(fused=True)
        self.average = [p.detach().clone() for p in self.module.parameters()]
        self.statistics = [b.clone() for b in self.module.buffers()]
        self.parallel: nn.Module = _Loss(self)
        if dist.is_initialized():
            device_ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.parallel, device_ids, gradient_as_bucket_view=True)

    def _compile(self) -> None:
        for name in ("encoder", "decoder"):
            if (network := getattr(self, name)) is not None:
                network.compile(dynamic=False)
        if self.frozen is not None:
            for half in ("encode", "decode"):
                setattr(self.frozen, half, torch.compile(getattr(self.frozen, half), dynamic=False))

    def images(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, H, W, 3) is channels_last already

    def noise(self, batch: int) -> Tensor:
        return super().noise(batch).contiguous(memory_format=torch.channels_last)

    def step(self, x_0: Tensor, views: list[Tensor]) -> Tensor:
        """Draw, forward, backward, update, average; returns the loss, for which nobody has waited."""
        self.optimizer.zero_grad()
        loss = self.parallel(x_0, views, self.draw(len(x_0)))
        self.backward(loss)
        self.update()
        self.follow()
        return loss.detach()

    def follow(self) -> None:
        with torch.no_grad():
            weight = 1 - self.config.train.ema_decay
            torch._foreach_lerp_(self.average, list(self.module.parameters()), weight)
            if self.statistics:
                torch._foreach_copy_(self.statistics, list(self.module.buffers()))

    def state(self) -> list[Tensor]:
        buckets = [p.grad for p in self.module.parameters() if p.grad is not None]  # which stay, with DDP
        return [*super().state(), *self.average, *self.statistics, *buckets]


class _Loss(nn.Module):
    """The loss as the forward pass of the trained networks, which is what DistributedDataParallel wraps."""

    def __init__(self, rival: Plain):
        super().__init__()
        self.networks = rival.module
        self._rival = (rival,)  # a tuple keeps the frozen network out

    def forward(self, x_0: Tensor, views: list[Tensor], draws: Draws) -> Tensor:
        return self._rival[0].loss(x_0, views, draws)
