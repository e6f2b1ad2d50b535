"""Adam for weights that lie channels_last."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, whose fused kernel for a CPU copies every tensor that is not contiguous, to and
    fro: twice the time of the update. Here it gets channels_last tensors as the contiguous ones that they are
    in memory; values and state are the same.
    """

    def _init_group(self, group: dict[str, Any], *lists: list[Any]) -> Any:
        told = super()._init_group(group, *lists)
        for tensors in lists:
            tensors[:] = map(_in_memory_order, tensors)
        return told


def _in_memory_order(tensor: Any) -> Any:
    """(O, I, H, W) in channels_last -> its view (O, H, W, I); anything else as it is."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 4 or tensor.is_contiguous():
        return tensor
    return tensor.permute(0, 2, 3, 1)
