"""The compensation loss on images that were not trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from diffsiam.encoder import encode_images
from diffsiam.objective import DiffSiam
from kernels.noise_jump.ref import to_unit_range


@torch.no_grad()
def compensation_loss(
    model: DiffSiam, images: Tensor, seed: int, batch_size: int = 64
) -> tuple[float, float]:
    """Mean loss (Eq. 3.11) with g and of the frozen model alone; t, k and noise drawn as in training.

    Args:
        model: with a decoder, in eval mode.
        images: (N, H, W, 3) uint8.
        seed: names the draws: the same for every model with the same rule of subsets.
    """
    with_g, frozen = [], []
    for positions in torch.arange(len(images), device=images.device).split(batch_size):
        x_0 = images[positions]
        z = encode_images(model.encoder, to_unit_range(x_0))
        loss = model.diffusion_loss(x_0, z, model.subsets.draw(seed, positions), positions, seed)
        with_g.append(loss.loss)
        frozen.append(loss.frozen)
    return torch.cat(with_g).double().mean().item(), torch.cat(frozen).double().mean().item()
