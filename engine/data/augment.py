"""Mirroring, colour and blur of whole batches in torch: the same on every device, for any split of a batch.

Colour follows torchvision's ``functional.adjust_*`` on float images in the fixed order brightness, contrast,
saturation, hue, then grey and blur; a view is rounded to uint8 once, at the end. Every operation treats a
pixel by itself or adds up whole numbers, so which images share a batch changes no bit. Steps that no image of
a batch takes are left out, which changes none either: their neutral parameters are exact.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.data.draws import Augmentation, ViewDraws, blur_window

LUMA = (0.299, 0.587, 0.114)
WHITE = 255.0
SMALLEST_TAP = 1e-3  # beside a middle of 1: the weights left out add up to less than 4e-4


def mirrored(images: Tensor, flags: np.ndarray) -> Tensor:
    """The uint8 images (B, H, W, 3) with those of ``flags`` (B,) bool mirrored left-right; a new tensor."""
    return _chosen(flags, images.flip(2), images) if flags.any() else images.clone()


def view(images: Tensor, drawn: ViewDraws, steps: Augmentation) -> Tensor:
    """One view of every image, before the cut ones were resized: mirrored, coloured, blurred.

    Args:
        images: (B, px, px, 3) uint8.
        drawn: parameters of the B images.
        steps: of the recipe; cropping is the image graph's.

    Returns:
        (B, px, px, 3) uint8 on the device of ``images``; a new tensor.
    """
    if not (steps.colour or steps.blur):
        return mirrored(images, drawn.flip) if steps.flip else images.clone()
    # First the type changes, then the layout: both at once takes a CPU several times as long.
    x = images.to(torch.float32).permute(0, 3, 1, 2).contiguous()
    if steps.flip and drawn.flip.any():
        x = _chosen(drawn.flip, x.flip(3), x)
    if steps.colour:
        x = _coloured(x, drawn)
    if steps.blur and drawn.blur.any():
        taps = gaussian_taps(drawn.sigma, blur_window(x.shape[-1]))
        x = _chosen(drawn.blur, blurred(x, taps), x)
    # From int32 a CPU converts in vectors, from float32 one by one.
    return x.round().permute(0, 2, 3, 1).contiguous().to(torch.int32).to(torch.uint8)


def _coloured(x: Tensor, drawn: ViewDraws) -> Tensor:
    if (drawn.brightness != 1).any():
        x = x.mul_(_each(drawn.brightness, x)).clamp_(max=WHITE)
    if (drawn.contrast != 1).any():
        x = _mixed(x, _mean_luma(x), _each(drawn.contrast, x))
    if (drawn.saturation != 1).any():
        x = _mixed(x, _luma(x), _each(drawn.saturation, x))
    if drawn.hue.any():
        x = hue_turned(x, _each(drawn.hue, x))
    if drawn.grey.any():
        x = _chosen(drawn.grey, _luma(x).expand_as(x), x)
    return x


def hue_turned(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of HSV by ``turn`` (B, 1, 1, 1), at most a sixth of the full circle either way.

    The largest channel M and the smallest m of a pixel stay, and each channel as a function of hue is a
    trapezoid between them. For a turn of at most a sixth that is, without division or branch,

        R' = clip(R + shrink(sign * (B - G), hold * (M - m)), m, M)        shrink(u, w) = u - clip(u, -w, w)

    and cyclically for G and B, with hold = 1 - 6 |turn|.
    """
    red, green, blue = x.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)[:, None]
    smallest = torch.minimum(torch.minimum(red, green), blue)[:, None]
    width = (largest - smallest).mul_(1 - 6 * turn.abs())
    pull = torch.stack((blue - green, red - blue, green - red), dim=1).mul_(turn.sign())
    pull -= pull.clamp(-width, width)
    return pull.add_(x).clamp_(smallest, largest)


def gaussian_taps(sigma: np.ndarray, window: int) -> np.ndarray:
    """Weights of the middle pixel and of its neighbours to one side, (B, window // 2 + 1) float32.

    What would move no pixel by a tenth of a level is 0, and costs nothing.
    """
    distance = np.arange(window // 2 + 1, dtype=np.float64)
    taps = np.exp(-0.5 * (distance / sigma[:, None].astype(np.float64)) ** 2)
    taps[taps < SMALLEST_TAP] = 0
    return (taps / (2 * taps.sum(axis=1, keepdims=True) - taps[:, :1])).astype(np.float32)


def blurred(x: Tensor, taps: np.ndarray) -> Tensor:
    """Gaussian blur of (B, 3, H, W) with reflected edges, one axis after the other."""
    taps = taps[:, : int(np.flatnonzero(taps.any(axis=0))[-1]) + 1]
    reach = taps.shape[1] - 1
    weights = [_each(taps[:, i], x) for i in range(reach + 1)]
    for axis, edges in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
        length, wide = x.shape[axis], functional.pad(x, edges, mode="reflect")
        x = x * weights[0]
        for i in range(1, reach + 1):
            pair = wide.narrow(axis, reach - i, length) + wide.narrow(axis, reach + i, length)
            x += pair.mul_(weights[i])
    return x


def _mixed(x: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Into ``x``: what a thread touches less often stays in its cache."""
    return x.mul_(share).add_(other.mul_(1 - share)).clamp_(0, WHITE)


def _chosen(flags: np.ndarray, there: Tensor, elsewhere: Tensor) -> Tensor:
    """Of each sample ``there`` if its flag is set."""
    return there if flags.all() else torch.where(_each(flags, there).bool(), there, elsewhere)


def _luma(x: Tensor) -> Tensor:
    red, green, blue = LUMA
    return (x[:, 0:1] * red).add_(x[:, 1:2] * green).add_(x[:, 2:3] * blue)


def _mean_luma(x: Tensor) -> Tensor:
    """(B, 1, 1, 1), from whole numbers, whose sum does not depend on the order of adding."""
    total = _luma(x).round_().to(torch.int32).sum(dim=(1, 2, 3), keepdim=True, dtype=torch.int64)
    return total.to(torch.float64).div_(x.shape[2] * x.shape[3]).to(torch.float32)


def _each(values: np.ndarray, like: Tensor) -> Tensor:
    """One float a sample, (B, 1, 1, 1), on the device of ``like``."""
    tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    return tensor.to(like.device, non_blocking=True).view(-1, 1, 1, 1)
