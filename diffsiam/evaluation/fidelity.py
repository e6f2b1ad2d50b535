"""How close images are to others: pixels (MSE, SSIM), deep features (LPIPS), and their distribution (FID)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WINDOW, SIGMA = 11, 1.5  # of SSIM, as published (Wang et al., 2004)
K_1, K_2 = 0.01, 0.03
SMALLEST_LPIPS = 32  # below it AlexNet's pooling has nothing left


def mse(images: Tensor, others: Tensor) -> Tensor:
    """(N,) mean squared error of images (N, 3, H, W) in [-1, 1], pixels counted in [0, 1]."""
    return (images - others).double().square().mean(dim=(1, 2, 3)) / 4


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """(N,) structural similarity of images (N, 3, H, W) in [-1, 1]: 1 for equal ones (Wang et al., 2004).

    Gaussian window of 11 pixels, sigma 1.5, inside the image only; the mean over window places and channels.

    Raises:
        ValueError: images are smaller than the window.
    """
    if min(images.shape[2:]) < WINDOW:
        raise ValueError(f"SSIM needs images of {WINDOW} px or more, got {tuple(images.shape[2:])}")
    x, y = ((part.double() + 1) / 2 for part in (images, others))
    place = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    line = torch.exp(-(place**2) / (2 * SIGMA**2))
    line = line / line.sum()

    def blurred(a: Tensor) -> Tensor:
        flat = a.flatten(0, 1)[:, None]
        return F.conv2d(F.conv2d(flat, line[None, None, :, None]), line[None, None, None]).view(
            *a.shape[:2], a.shape[2] - WINDOW + 1, -1
        )

    mean_x, mean_y = blurred(x), blurred(y)
    var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
    covariance = blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + K_1**2) / (mean_x**2 + mean_y**2 + K_1**2)
    structure = (2 * covariance + K_2**2) / (var_x + var_y + K_2**2)
    return (luminance * structure).mean(dim=(1, 2, 3))


class Lpips(nn.Module):
    """LPIPS v0.1 on AlexNet (Zhang et al., 2018): weighted distances of unit-length features of five layers.

    Args:
        trunk: state dict of torchvision's AlexNet (``features.N.weight`` / ``.bias``).
        heads: state dict of the linear layers (``linN.model.1.weight``), N = 0..4.

    Raises:
        KeyError: a tensor is missing.
    """

    shift: Tensor
    scale: Tensor
    CONVS = (0, 3, 6, 8, 10)  # places of the convolutions in AlexNet's ``features``

    def __init__(self, trunk: Mapping[str, Tensor], heads: Mapping[str, Tensor]):
        super().__init__()
        for n, place in enumerate(self.CONVS):
            self.register_buffer(f"weight_{n}", trunk[f"features.{place}.weight"].float())
            self.register_buffer(f"bias_{n}", trunk[f"features.{place}.bias"].float())
            self.register_buffer(f"head_{n}", heads[f"lin{n}.model.1.weight"].float())
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    def features(self, images: Tensor) -> list[Tensor]:
        """Five feature maps of images (N, 3, H, W) in [-1, 1], each pixel's vector of unit length."""
        h, found = (images.float() - self.shift) / self.scale, []
        for n in range(len(self.CONVS)):
            stride, padding = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))[n]
            if n in (1, 2):
                h = F.max_pool2d(h, 3, 2)
            h = F.relu(F.conv2d(h, getattr(self, f"weight_{n}"), getattr(self, f"bias_{n}"), stride, padding))
            found.append(h / (h.square().sum(dim=1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def forward(self, images: Tensor, others: Tensor) -> Tensor:
        """(N,) distances of images (N, 3, H, W) in [-1, 1], 32 px or larger."""
        if min(images.shape[2:]) < SMALLEST_LPIPS:
            raise ValueError(f"LPIPS needs images of {SMALLEST_LPIPS} px or more")
        distance = images.new_zeros(len(images), dtype=torch.float32)
        for n, (a, b) in enumerate(zip(self.features(images), self.features(others), strict=True)):
            distance = distance + F.conv2d((a - b).square(), getattr(self, f"head_{n}")).mean(dim=(1, 2, 3))
        return distance


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two sets of features (N, F): FID on Inception's.

    Raises:
        ValueError: a set has fewer than two members.
    """
    if min(len(features), len(others)) < 2:
        raise ValueError("a covariance needs two images or more")
    means, roots = [], []
    for part in (features.double(), others.double()):
        means.append(part.mean(dim=0))
        roots.append((part - means[-1]) / (len(part) - 1) ** 0.5)  # C = R^T R
    # The eigenvalues of C C' are the squared singular values of R R'^T.
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = roots[0].square().sum() + roots[1].square().sum()
    return float((means[0] - means[1]).square().sum() + spread - 2 * cross)
