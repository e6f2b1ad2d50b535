"""The loss of a diffusion model on images it was not trained on, by noise level."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.profile import eval_noise
from diffsiam.schedule import Schedule
from diffsiam.unet import UNet


@torch.no_grad()
def held_out_loss(
    unet: UNet, schedule: Schedule, images: Tensor, seed: int, bands: int, batch_size: int = 128
) -> np.ndarray:
    """mean |eps - eps_theta(x_t, t)|^2 in each of ``bands`` equal bands of the time axis (DDPM, Eq. 14).

    Every image is noised once a band, at times spread evenly over it, with a noise of its own: the same times
    and noise whenever it is called, so that two values differ by the model alone.

    Args:
        images: (N, 3, H, W) float in [-1, 1].
        seed: names the noise.

    Returns:
        (bands,) float64; their mean is the loss over all times.
    """
    eps = eval_noise(seed, torch.arange(len(images), device=images.device), *images.shape[2:])
    place = torch.arange(len(images), device=images.device)
    losses = []
    for band in range(bands):
        first, end = schedule.steps * band // bands, schedule.steps * (band + 1) // bands
        t = first + place * (end - first) // len(images)
        parts = zip(images.split(batch_size), eps.split(batch_size), t.split(batch_size), strict=True)
        losses.append(np.mean(np.concatenate([_losses(unet, schedule, *part) for part in parts])))
    return np.array(losses)


def _losses(unet: UNet, schedule: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> np.ndarray:
    alpha_bar = schedule.at("alpha_bar", t)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    return (unet(x_t, t).float() - eps).square().mean(dim=(1, 2, 3)).double().cpu().numpy()
