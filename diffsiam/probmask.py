"""ProbMask: a linear classifier with d' non-zero weights (Zhou et al., CVPR 2021; thesis section 4.2.2).

    minimise over w and s in [0, 1]^d   E_{m_j ~ Bernoulli(s_j)} loss(w . (m z))   with   sum_j s_j <= d'

The expectation is taken over relaxed masks (Gumbel), the budget d' is reached gradually, and s is projected
onto it after every step. Two recipes: ``PUBLISHED`` is the one of the published sibling, whose scores are not
binary at its end, so that its mask has d' entries only on average; ``EXACT``, our default, trains the scores
faster, takes the d' largest, and refits w on them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-20
HOTTEST, COLDEST = 1.0, 0.03  # temperature at the first and at the last iteration
DRAWS = 10  # of hard masks at the end of the published recipe, of which the best is kept


@dataclass(frozen=True)
class ProbMask:
    """How scores are trained.

    Attributes:
        iterations: I; None: ten epochs.
        batch: samples of each iteration.
        weight_rate, score_rate: Adam's learning rates.
        begin, end: shares of I between which the budget falls from d to d'.
        clip: largest norm of the scores' gradient.
        exact: end with the d' largest scores, else with a mask drawn from them.
    """

    iterations: int | None = 2000
    batch: int = 128
    weight_rate: float = 1e-2
    score_rate: float = 6e-3
    begin: float = 0.1
    end: float = 0.4
    clip: float = 3.0
    exact: bool = True


EXACT = ProbMask()
PUBLISHED = ProbMask(iterations=None, weight_rate=1e-4, score_rate=1e-4, exact=False)


def temperature(i: int, iterations: int) -> float:
    """0.97 (1 - i / I) + 0.03."""
    return (HOTTEST - COLDEST) * (1 - i / iterations) + COLDEST


def kept_share(i: int, iterations: int, final: float, begin: float, end: float) -> float:
    """Share of the dimensions that the budget allows at iteration i.

    1 up to begin I, ``final`` from end I on, and between them
    final + (1 - final) (1 - (i - begin I) / (end I - begin I))^3.
    """
    progress = (i / iterations - begin) / (end - begin)
    return final + (1 - final) * (1 - min(max(progress, 0.0), 1.0)) ** 3


def relaxed_mask(scores: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    """sigmoid((log s - log(1 - s) + noise) / temperature), noise = -log(log u_0 / log u_1), u ~ U(0, 1): a
    differentiable draw from Bernoulli(s), and the closer to one the colder it is.
    """
    u = torch.rand(2, *scores.shape, generator=generator, dtype=scores.dtype)
    u = u.to(scores.device).clamp(TINY, 1 - 1e-7)
    noise = -(u[0].log() / u[1].log() + TINY).log()
    logit = (scores + TINY).log() - (1 - scores + TINY).log()
    return torch.sigmoid((logit + noise) / temperature)


def project(scores: Tensor, budget: float) -> Tensor:
    """The nearest point (Euclidean) of {0 <= s <= 1, sum s <= budget}: clip(s - v, 0, 1) with the smallest
    v >= 0 that holds the budget. The sum is linear in v between the s_j and s_j - 1, so v is found exactly.
    """
    clipped = scores.clamp(0, 1)
    if clipped.sum() <= budget:
        return clipped
    corners = torch.cat((torch.zeros_like(scores[:1]), scores, scores - 1)).clamp_min(0).sort().values
    sums = (scores - corners[:, None]).clamp(0, 1).sum(dim=1)
    after = int((sums > budget).sum())
    (low, high), (above, below) = corners[after - 1 : after + 1], sums[after - 1 : after + 1]
    v = low + (above - budget) * (high - low) / (above - below)
    return (scores - v).clamp(0, 1)


def train_scores(x: Tensor, y: Tensor, kept: int, recipe: ProbMask = EXACT, seed: int = 0) -> Scores:
    """Scores, weights and bias that the relaxed problem ends with.

    Args:
        x: (N, d) standardised features.
        y: (N,) 0 or 1.
        kept: d'.

    Raises:
        ValueError: ``kept`` is not in 1..d.
    """
    count, dim = x.shape
    if not 1 <= kept <= dim:
        raise ValueError(f"d' = {kept} of d = {dim} dimensions: choose 1 to {dim}")
    iterations = recipe.iterations or 10 * -(-count // recipe.batch) + 1
    generator = torch.Generator().manual_seed(seed)
    scores = torch.ones(dim, device=x.device, requires_grad=True)
    layer = torch.nn.Linear(dim, 1, device=x.device)
    with torch.no_grad():  # as torch initialises it, but from the seed
        for parameter in layer.parameters():
            parameter.copy_((2 * torch.rand(parameter.shape, generator=generator) - 1) / dim**0.5)
    optimizer = torch.optim.Adam(
        [
            {"params": layer.parameters(), "lr": recipe.weight_rate},
            {"params": [scores], "lr": recipe.score_rate},
        ]
    )
    x, y, order = x.float(), y.float(), torch.empty(0, dtype=torch.int64)
    for i in range(iterations):
        if len(order) < min(recipe.batch, count):
            order = torch.randperm(count, generator=generator)
        chosen, order = order[: recipe.batch].to(x.device), order[recipe.batch :]
        mask = relaxed_mask(scores, temperature(i, iterations), generator)
        loss = F.binary_cross_entropy_with_logits(layer(x[chosen] * mask)[:, 0], y[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([scores], recipe.clip)
        optimizer.step()
        share = kept_share(i + 1, iterations, kept / dim, recipe.begin, recipe.end)
        with torch.no_grad():
            scores.copy_(project(scores, share * dim))
    return Scores(scores.detach(), layer.weight.detach()[0], layer.bias.detach()[0], generator)


@dataclass(frozen=True)
class Scores:
    """Where training ended: keep-probabilities and weights (d,), the bias, the source of further draws."""

    scores: Tensor
    weight: Tensor
    bias: Tensor
    generator: torch.Generator

    def largest(self, kept: int) -> Tensor:
        """(d,) bool with exactly ``kept`` true."""
        mask = torch.zeros_like(self.scores, dtype=torch.bool)
        # Ties, as of scores at 1, are broken by what the weight does.
        rank = self.scores.double() + 1e-9 * self.weight.abs().double() / self.weight.abs().max()
        mask[rank.topk(kept).indices] = True
        return mask

    def drawn(self, x: Tensor, y: Tensor) -> Tensor:
        """(d,) bool, of ``DRAWS`` masks drawn from the scores the one that fits the training data best."""
        shape = (DRAWS, *self.scores.shape)
        masks = torch.rand(shape, generator=self.generator).to(x.device) < self.scores
        logits = x.float() @ (masks * self.weight).T + self.bias
        target = y.float()[:, None].expand_as(logits)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=0)
        return masks[losses.argmin()]
