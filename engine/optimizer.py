"""Weights that lie channels_last, and Adam for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def lay_out(module: nn.Module) -> None:
    """Store the weights of convolutions as channels_last, values and names unchanged.

    That is how a convolution of channels_last images reads them and writes their gradient. In another layout
    every step turns each weight and, when it is accumulated, its gradient, one element at a time. Only after
    DeepSpeed's start and without ZeRO: its broadcast and its flattening take contiguous tensors alone. And
    only for an optimizer that does not mind the layout (:class:`Adam`).
    """
    for parameter in module.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, whose fused kernel for a CPU copies every tensor that is not contiguous, to and
    fro: twice the time of the update. Here it gets channels_last tensors as the contiguous ones that they are
    in memory; values and state are the same.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Tensor]) -> Any:
        told = super()._init_group(group, *lists)
        turned = [i for i, p in enumerate(lists[0]) if p.dim() == 4 and not p.is_contiguous()]
        for tensors in filter(None, lists):  # parameters, gradients, both averages, steps
            for i in turned:
                if tensors[i].dim() == 4:
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)  # (O, I, H, W) as (O, H, W, I)
        for i in turned:  # in another layout than its parameter the kernel would read a gradient wrongly
            lists[1][i] = lists[1][i].contiguous()
        return told
