"""What the oracle sees, as probabilities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.data.rooms import LEVELS
from engine.oracle import Oracle

BATCH = 256


@torch.no_grad()
def probabilities(oracle: Oracle, images: Tensor) -> Tensor:
    """(N, K, L) of images (N, 3, px, px) in [-1, 1]; 0 for the levels that a factor does not have."""
    widest = int(LEVELS.max())
    found = [[logits.softmax(dim=1) for logits in oracle(part)] for part in images.split(BATCH)]
    padded = [[F.pad(p, (0, widest - p.shape[1])) for p in part] for part in found]
    return torch.cat([torch.stack(part, dim=1) for part in padded])
