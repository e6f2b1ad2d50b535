"""How well images come back from their own and from random x_T."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffsiam.counterfactual import Inverted
from diffsiam.evaluation.fidelity import SMALLEST_LPIPS, WINDOW, frechet_distance, mse, ssim
from diffsiam.evaluation.profile import eval_noise
from diffsiam.sampler import Guide, Sampler
from engine import screen
from engine.edit.perceptual import (
    HEADS,
    INCEPTION,
    NONE_GIVEN,
    TRUNK,
    WeightFiles,
    load_inception,
    load_lpips,
    missing,
)

Measures = dict[str, dict[str, float | str]]  # of inferred and of random x_T: measure -> value, or why none


def reconstruction(
    sampler: Sampler, images: Inverted, seed: int, weights: WeightFiles = NONE_GIVEN
) -> Measures:
    """MSE, SSIM, LPIPS and FID of images sampled from their z, with their inverted x_T and with a random one.

    A measure without its weights is a sentence that says so.
    """
    drawn = eval_noise(seed, torch.arange(len(images.z), device=images.z.device), *images.x_0.shape[2:])
    starts = {"inferred x_T": images.x_T, "random x_T": drawn}
    return {
        name: fidelity(sampler.sample(x_T, Guide(images.z)), images.x_0, weights)
        for name, x_T in starts.items()
    }


def fidelity(x: Tensor, originals: Tensor, weights: WeightFiles = NONE_GIVEN) -> dict[str, float | str]:
    """All measures of images (N, 3, H, W) in [-1, 1] beside their originals."""
    found: dict[str, float | str] = {"MSE": float(mse(x, originals).mean())}
    px = min(x.shape[2:])
    too_small = f"not measured: images of {px} px are smaller than its"
    found["SSIM"] = float(ssim(x, originals).mean()) if px >= WINDOW else f"{too_small} window of {WINDOW}"
    lpips = load_lpips(weights)
    if lpips is None:
        found["LPIPS"] = missing(TRUNK, HEADS)
    elif px < SMALLEST_LPIPS:
        found["LPIPS"] = f"{too_small} {SMALLEST_LPIPS}"
    else:
        found["LPIPS"] = float(lpips(x.cpu(), originals.cpu()).mean())
    inception = load_inception(weights)
    if inception is None:
        found["FID"] = missing(INCEPTION)
    else:
        found["FID"] = frechet_distance(inception(x), inception(originals))
        found["FID's images"] = len(x)
    return found


def show(names: Sequence[str], measured: Sequence[Measures]) -> None:
    """A table of all numbers, and one line for each measure that is absent."""
    rows, absent = [], {}
    for start in measured[0]:
        for measure, value in measured[0][start].items():
            if isinstance(value, str):
                absent[measure] = value
            else:
                cells = [each[start][measure] for each in measured]
                rows.append([start, measure, *(f"{cell:.5g}" for cell in cells)])
    screen.table(["", "measure", *names], rows, "Images from their own z, beside the originals")
    for measure, reason in absent.items():
        screen.line(f"{measure}: {reason}")
