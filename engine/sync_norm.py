"""Batch norm over the global batch on any device.

torch.nn.SyncBatchNorm needs a GPU. This one is three differentiable all-reduces of per-channel sums, so CPU
ranks train the same function, and any number of ranks gives what one rank with the whole batch gives (up to
the order of summation).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverRanks(torch.autograd.Function):
    """Sum over ranks, whose gradient is the sum over ranks: every rank's loss depends on every rank's
    summand.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose training statistics are those of all ranks' batches together; ranks hold batches of
    equal size.

    The variance is that of the global batch around its global mean (two passes: no cancellation of large
    means).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        world = dist.get_world_size()
        count = x.numel() // x.shape[1] * world
        mean = _SumOverRanks.apply(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = _SumOverRanks.apply(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach(), count)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics, where there are any, as torch's batch norm does."""
        if self.num_batches_tracked is None or self.running_mean is None or self.running_var is None:
            return
        self.num_batches_tracked.add_(1)
        # Without a momentum they are plain averages over all batches; the share stays on the device.
        momentum = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / (count - 1), momentum)


def synchronise_batch_norm(module: nn.Module) -> nn.Module:
    """``module`` with every batch norm synchronised: same parameters, buffers and names."""
    if isinstance(module, _BatchNorm):
        synced = SyncBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        synced.weight, synced.bias = module.weight, module.bias  # None where it is not affine
        for name, buffer in module.named_buffers():
            synced.register_buffer(name, buffer)
        return synced.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise_batch_norm(child))
    return module
