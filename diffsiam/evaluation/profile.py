"""What the frozen model loses with the noise: the error of its x_0_hat, and which factors it still shows.

The method rests on it: a subset can only learn what is lost within its own times (thesis Fig. 1.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from diffsiam.schedule import Schedule
from diffsiam.unet import UNet
from kernels.philox import STREAM_EVAL, normal

Read = Callable[[Tensor], Tensor]  # images (B, 3, H, W) in [-1, 1] -> levels (B, K) int64


def eval_noise(seed: int, positions: Tensor, height: int, width: int) -> Tensor:
    """Standard normal (B, 3, H, W) of the samples at ``positions`` (B,) int64; not the noise of training."""
    flat = normal(seed, positions, 3 * height * width, STREAM_EVAL)
    return flat.view(len(positions), height, width, 3).permute(0, 3, 1, 2)


def error_profile(
    frozen: UNet, schedule: Schedule, images: Tensor, seed: int, times: Sequence[int], batch_size: int = 128
) -> np.ndarray:
    """Relative error of the frozen model's x_0_hat at each time: 0 nothing lost, about 1 everything lost.

    error(t) = mean |x_0 - x_0_hat(x_t)|^2 / mean |x_0 - mean image|^2, with means over images, channels and
    pixels. The mean image is that of this set, so 1 is what the best guess without x_t reaches. x_0_hat is
    clipped to [-1, 1], as samplers do.

    Args:
        images: (N, 3, H, W) float in [-1, 1], N >= 2.
        seed: names the noise, which is the same for an image at all times.
        times: M times in 0..T-1.

    Returns:
        (M,) float64.

    Raises:
        ValueError: all images are equal.
    """
    predictions = x_0_predictions(frozen, schedule, images, seed, times, batch_size)
    return np.array([relative_error(x_0_hat, images) for x_0_hat in predictions])


def attribute_profile(
    frozen: UNet,
    schedule: Schedule,
    images: Tensor,
    levels: Tensor,
    read: Read,
    times: Sequence[int],
    seed: int,
    batch_size: int = 128,
) -> np.ndarray:
    """Share of images whose ``levels`` (N, K) int64 are still read from x_0_hat, (M, K) float64."""
    predictions = x_0_predictions(frozen, schedule, images, seed, times, batch_size)
    return np.stack([accuracy(x_0_hat, levels, read, batch_size) for x_0_hat in predictions])


def x_0_predictions(
    frozen: UNet, schedule: Schedule, images: Tensor, seed: int, times: Sequence[int], batch_size: int = 128
) -> Iterator[Tensor]:
    """x_0_hat (N, 3, H, W) float32 in [-1, 1] at each time in turn, with one noise an image for all times."""
    for _, x_0_hat in noised_and_predicted(frozen, schedule, images, seed, times, batch_size):
        yield x_0_hat


def noised_and_predicted(
    frozen: UNet, schedule: Schedule, images: Tensor, seed: int, times: Sequence[int], batch_size: int = 128
) -> Iterator[tuple[Tensor, Tensor]]:
    """x_t as it is and x_0_hat, see :func:`x_0_predictions` (thesis Fig. 1.1)."""
    eps = eval_noise(seed, torch.arange(len(images), device=images.device), *images.shape[2:])
    for time in times:
        batches = zip(images.split(batch_size), eps.split(batch_size), strict=True)
        parts = [_noised_and_predicted(frozen, schedule, x_0, noise, time) for x_0, noise in batches]
        x_t, x_0_hat = (torch.cat(part) for part in zip(*parts, strict=True))
        yield x_t, x_0_hat


@torch.no_grad()
def _noised_and_predicted(
    frozen: UNet, schedule: Schedule, x_0: Tensor, eps: Tensor, time: int
) -> tuple[Tensor, Tensor]:
    t = torch.full((len(x_0),), time, dtype=torch.int64, device=x_0.device)
    alpha_bar = schedule.at("alpha_bar", t)
    x_t = alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * eps
    return x_t, schedule.x_0_from_eps(x_t, frozen(x_t, t).float(), t).clamp(-1, 1)


def relative_error(x_0_hat: Tensor, images: Tensor) -> float:
    """One point of :func:`error_profile`."""
    x_0 = images.double()
    variance = (x_0 - x_0.mean(dim=0)).square().mean().item()
    if variance == 0:
        raise ValueError("all images are equal: there is nothing that noise could take from them")
    return (x_0 - x_0_hat.double()).square().mean().item() / variance


def accuracy(images: Tensor, levels: Tensor, read: Read, batch_size: int = 128) -> np.ndarray:
    """Share of images in which ``read`` finds the factor's level, (K,) float64."""
    found = torch.cat([read(part) for part in images.split(batch_size)])
    return (found == levels).double().mean(dim=0).cpu().numpy()


def lost_at(times: Sequence[int], profile: np.ndarray, clean: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The time at which each factor is half lost: read halfway between as well as on clean images and chance.

    Accuracy is taken as the least up to each time (it can only be lost), and interpolated linearly.

    Args:
        times: (M,) ascending.
        profile: (M, K) accuracy on x_0_hat.
        clean, chance: (K,) accuracy on the images themselves, and by guessing.

    Returns:
        (K,) float64; the first time if it is lost there already, infinity if it never is.
    """
    least = np.minimum.accumulate(profile, axis=0)
    halfway = (clean + chance) / 2
    return np.array(
        [_crossing(np.asarray(times), column, half) for column, half in zip(least.T, halfway, strict=True)]
    )


def _crossing(times: np.ndarray, falling: np.ndarray, level: float) -> float:
    after = int(np.argmax(falling < level))
    if falling[after] >= level:
        return float("inf")
    if after == 0:
        return float(times[0])
    high, low = falling[after - 1], falling[after]
    return float(times[after - 1] + (times[after] - times[after - 1]) * (high - level) / (high - low))
