"""SimSiam (arXiv 2011.10566): projector, predictor and the stop-gradient cosine loss (thesis Eq. 3.9 and
3.10).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _projector(dim: int, width: int, layers: int) -> nn.Sequential:
    """``layers`` linear layers, each with batch norm, ReLU between them."""
    parts: list[nn.Module] = []
    for i in range(layers):
        parts += [nn.Linear(dim if i == 0 else width, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts[:-1])


class SimSiam(nn.Module):
    """Head and loss on top of an encoder's features.

    Args:
        dim: d, length of the encoder's feature.
        projector: "none" (the thesis' Eq. 3.9, which names no projector), "mlp2" or "mlp3" (as published).
        width: width of the projector.
        hidden: bottleneck of the predictor (a quarter of the width, as published).
    """

    LAYERS = {"none": 0, "mlp2": 2, "mlp3": 3}

    def __init__(self, dim: int = 512, projector: str = "mlp3", width: int = 512, hidden: int = 128):
        super().__init__()
        layers = self.LAYERS[projector]
        self.projector = _projector(dim, width, layers) if layers else nn.Identity()
        width = width if layers else dim
        self.predictor = nn.Sequential(
            nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width)
        )

    def forward(self, z_1: Tensor, z_2: Tensor) -> Tensor:
        """Features (B, d) of two views -> per-sample loss (B,) in [-1, 1], -1 when predictions agree."""
        target_1, target_2 = self.projector(z_1), self.projector(z_2)
        p_1, p_2 = self.predictor(target_1), self.predictor(target_2)
        return 0.5 * (negative_cosine(p_1, target_2) + negative_cosine(p_2, target_1))


def negative_cosine(p: Tensor, target: Tensor) -> Tensor:
    """D(p, stop_gradient(target)) = -cos, per sample (B,) float32 (Eq. 3.10)."""
    return -F.cosine_similarity(p.float(), target.detach().float(), dim=1)


def encode_views(encoder: nn.Module, view_1: Tensor, view_2: Tensor) -> tuple[Tensor, Tensor]:
    """Both views in one pass: half the launches, and batch statistics over 2 B images."""
    z_1, z_2 = encoder(torch.cat((view_1, view_2))).chunk(2)
    return z_1, z_2
