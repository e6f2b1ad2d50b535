"""Attribute manipulation (thesis Algorithm 3): z is pushed along the normal of a linear boundary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diffsiam.counterfactual import Inverted
from diffsiam.evaluation.probe import fit_probe
from diffsiam.probmask import EXACT, ProbMask, train_scores
from diffsiam.sampler import Guide, Sampler

Unit = Literal["thesis", "code"]


@dataclass(frozen=True)
class Classifier:
    """logit = w . (z - mean) / sigma + bias of one attribute; w is 0 outside the d' dimensions that it keeps.

    Attributes:
        weight, mean, sigma: (d,) float64; mean and standard deviation over the training set.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    sigma: Tensor

    @property
    def kept(self) -> int:
        """d', the number of non-zero weights."""
        return int((self.weight != 0).sum())

    def logits(self, z: Tensor) -> Tensor:
        """Features (N, d) -> (N,)."""
        return (z.double() - self.mean) / self.sigma @ self.weight + self.bias

    def direction(self) -> Tensor:
        """sigma w / |w|, (d,)."""
        return self.sigma * self.weight / self.weight.norm()


def in_thesis_units(scale: float, unit: Unit, dim: int) -> float:
    """lambda of Algorithm 3; published code has another factor: lambda_thesis = sqrt(d) lambda_code."""
    return scale * math.sqrt(dim) if unit == "code" else scale


def fit_classifier(
    z: Tensor,
    y: Tensor,
    kept: int | None = None,
    recipe: ProbMask = EXACT,
    seed: int = 0,
) -> Classifier:
    """A classifier of one attribute, with all dimensions or with ``kept`` of them chosen by ProbMask.

    Args:
        z: (N, d) features of the training set, from which mean and sigma are taken.
        y: (N,) bool.
        kept: d', None for all.
        recipe: of :mod:`diffsiam.probmask`. With ``exact`` the weights are those of logistic regression on
            the chosen dimensions; else those that the masked training ended with.

    Raises:
        ValueError: all samples have the same label, or ``kept`` is not in 1..d.
    """
    if y.all() or not y.any():
        raise ValueError(f"all {len(y)} samples are {'positive' if y.all() else 'negative'}")
    x, mean, sigma = _standardised(z)
    if kept is None or (kept == z.shape[1] and recipe.exact):
        return _refitted(x, y, torch.ones(x.shape[1], dtype=torch.bool, device=x.device), mean, sigma)
    found = train_scores(x, y, kept, recipe, seed)
    if recipe.exact:
        return _refitted(x, y, found.largest(kept), mean, sigma)
    mask = found.drawn(x, y)
    return Classifier((found.weight * mask).double(), found.bias.double(), mean, sigma)


def fit_on(z: Tensor, y: Tensor, mask: Tensor) -> Classifier:
    """Logistic regression on the dimensions ``mask`` (d,) bool alone."""
    x, mean, sigma = _standardised(z)
    return _refitted(x, y, mask, mean, sigma)


def _standardised(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(z - mean) / sigma, mean and sigma; a dimension that hardly varies is not blown up."""
    z = z.double()
    mean, sigma = z.mean(dim=0), z.std(dim=0, correction=0)
    sigma = sigma.clamp_min(1e-5 * float(sigma.max()))
    return (z - mean) / sigma, mean, sigma


def _refitted(x: Tensor, y: Tensor, mask: Tensor, mean: Tensor, sigma: Tensor) -> Classifier:
    probe = fit_probe(x[:, mask], y.long()[:, None], [2])
    on = (probe.weight[:, 0, 1] - probe.weight[:, 0, 0]) / probe.scale
    weight = torch.zeros_like(mean)
    weight[mask] = on
    bias = probe.bias[0, 1] - probe.bias[0, 0] - on @ probe.mean
    return Classifier(weight, bias, mean, sigma)


def manipulate(
    sampler: Sampler,
    images: Inverted,
    classifiers: Sequence[Classifier],
    scales: Sequence[float],
    unit: Unit = "thesis",
) -> Tensor:
    """Algorithm 3, z' = z + lambda sigma w / |w|, for every image, attribute and scale in one batch.

    x_T stays the image's own. Scale 0 is the image's reconstruction, made once for all attributes.

    Returns:
        (N, attributes, scales, 3, H, W) in [-1, 1].
    """
    count, dim = images.z.shape
    device = images.z.device
    moved = [in_thesis_units(scale, unit, dim) for scale in scales]
    jobs = [
        (i, c if moved[k] else 0, moved[k])
        for i in range(count)
        for c in range(len(classifiers))
        for k in range(len(scales))
    ]
    needed = list(dict.fromkeys(jobs))
    image, attribute, step = (list(column) for column in zip(*needed, strict=True))
    along = torch.stack([classifier.direction() for classifier in classifiers])[attribute].to(device)
    z = images.z[image] + (torch.tensor(step, device=device)[:, None] * along).to(images.z.dtype)
    found = sampler.sample(images.x_T[image], Guide(z))
    place = {job: number for number, job in enumerate(needed)}
    return found[[place[job] for job in jobs]].unflatten(0, (count, len(classifiers), len(scales)))
