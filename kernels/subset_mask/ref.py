"""Subset mask: z_bar_k = [z_1 .. z_k, 0 .. 0] (thesis section 3.2), its sequential form, and the detached
form of section 4.3.2."""

from __future__ import annotations

import torch
from torch import Tensor


def subset_mask(
    z: Tensor, k: Tensor, subset_of: Tensor, mode: str = "hierarchical", detach: bool = False
) -> Tensor:
    """Keep the subsets of z that step k may see; masked entries are exactly 0, whatever z holds there (NaN
    included).

    Args:
        z: (B, d) feature.
        k: (B,) int64 in 1..n, subset in training.
        subset_of: (d,) int64 in 1..n, the subset of every dimension, ascending.
        mode: "hierarchical" keeps subsets 1..k; "sequential" keeps subset k alone.
        detach: gradient flows into subset k only (no difference in the forward pass, none at all for
            "sequential").

    Returns:
        z_bar (B, d), dtype of z.
    """
    own = subset_of == k[:, None]
    if mode == "sequential":
        return torch.where(own, z, 0)
    if mode != "hierarchical":
        raise ValueError(f"subset_mask: mode must be 'hierarchical' or 'sequential', got {mode!r}")
    source = torch.where(own, z, z.detach()) if detach else z
    return torch.where(subset_of <= k[:, None], source, 0)
