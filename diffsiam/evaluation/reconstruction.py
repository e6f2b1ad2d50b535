"""How well images come back from z and x_T: mean squared error and structural similarity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from diffsiam.encoder import encode_images
from diffsiam.evaluation.profile import eval_noise
from diffsiam.objective import DiffSiam
from diffsiam.sampler import Guide, Sampler
from diffsiam.sampling import Recipe
from kernels.noise_jump.ref import to_unit_range

WINDOW, SIGMA = 11, 1.5


def mean_squared_error(a: Tensor, b: Tensor) -> Tensor:
    """(N,) of images (N, 3, H, W) in [0, 1]."""
    return (a - b).square().mean(dim=(1, 2, 3))


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM (N,) of images (N, C, H, W) in [0, 1] (Wang et al. 2004): Gaussian window of 11, sigma 1.5.

    Places where the window does not fit are left out, as in the original. Images need 11 pixels a side.
    """
    if min(a.shape[2:]) < WINDOW:
        raise ValueError(f"images of {tuple(a.shape[2:])} pixels are smaller than SSIM's window of {WINDOW}")
    places = torch.arange(WINDOW, dtype=a.dtype, device=a.device) - WINDOW // 2
    line = (-places.square() / (2 * SIGMA**2)).exp()
    line = line / line.sum()
    kernel = (line[:, None] * line).expand(a.shape[1], 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=x.shape[1])

    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean(dim=(1, 2, 3))


def reconstructions(
    model: DiffSiam, images: Tensor, moves: int = 50, batch_size: int = 64
) -> dict[str, Tensor]:
    """Images again in [0, 1], (N, 3, H, W): "inferred" from their own x_T (PDAE), "random" from a random one.

    What stays the same with a random x_T is what z holds.

    Args:
        model: with a decoder, in eval mode.
        images: (N, H, W, 3) uint8.
        moves: of DDIM, each way.
    """
    assert model.decoder is not None, "a model without decoder reconstructs nothing"
    x_0 = to_unit_range(images)
    noise = eval_noise(0, torch.arange(len(images), device=images.device), *x_0.shape[2:])
    z = encode_images(model.encoder, x_0, batch_size)
    sampler = Sampler(
        model.frozen, model.decoder, model.schedule, model.subsets, Recipe(moves, moves), batch_size
    )
    starts = {"inferred": sampler.invert(x_0, z), "random": noise}
    return {name: (sampler.sample(x_T, Guide(z)) + 1) / 2 for name, x_T in starts.items()}
