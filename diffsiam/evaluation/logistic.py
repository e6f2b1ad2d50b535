"""Multinomial logistic regression with many penalties at once: what a sweep of them costs is one solve.

    J(W, b) = 1/2 |W|^2 + C sum_n CE(softmax(W x_n + b), y_n),  b unpenalised

is scikit-learn's LogisticRegression(C), minimised here for every C of a sweep together: all of them share
the features, so the products with them are wide. Features are rotated to their principal axes, where the
curvature at W = 0 is diagonal and makes a good first guess of the inverse Hessian for L-BFGS; neither changes
J.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEMORY, LARGEST_LOGITS = 10, 1 << 26  # pairs of L-BFGS; logits held at once (n x K x penalties)
ARMIJO, HALVINGS = 1e-4, 20
TOLERANCE, ITERATIONS = 1e-4, 1000  # of the mean loss' gradient, as scikit-learn counts it


@dataclass(frozen=True)
class Logistic:
    """Solutions for P values of C.

    Attributes:
        weight: (P, K, d).
        bias: (P, K).
        objective: (P,) float64, J / (C n): the mean loss and its penalty.
        iterations: taken by the slowest.
    """

    weight: Tensor
    bias: Tensor
    objective: Tensor
    iterations: int

    def logits(self, x: Tensor) -> Tensor:
        """Features (N, d) -> (P, N, K)."""
        return torch.einsum("nd,pkd->pnk", x.to(self.weight.dtype), self.weight) + self.bias[:, None]


def fit_logistic(
    x: Tensor,
    y: Tensor,
    classes: int,
    c: Sequence[float],
    tolerance: float = TOLERANCE,
    iterations: int = ITERATIONS,
) -> Logistic:
    """Minimise J for every C.

    Args:
        x: (N, d) features, float32 or float64, which is what is computed in.
        y: (N,) int64 in 0..classes-1.
        c: the P values of C.
        tolerance: largest entry of the gradient of J / (C N) at which a search ends.

    Raises:
        ValueError: a label is out of range, or there are no samples.
    """
    if not len(x) or len(x) != len(y):
        raise ValueError(f"{len(x)} features and {len(y)} labels: give as many of each, and at least one")
    if y.min() < 0 or y.max() >= classes:
        raise ValueError(f"labels from {int(y.min())} to {int(y.max())}, but there are {classes} classes")
    mean = x.mean(dim=0)
    curvature, axes = _principal_axes((x - mean).double())
    rotated = (x - mean) @ axes.to(x.dtype)
    rotated = torch.cat((rotated, torch.ones_like(rotated[:, :1])), dim=1)
    width = max(1, LARGEST_LOGITS // (len(x) * classes))
    penalties = 1 / (torch.tensor(c, dtype=torch.float64) * len(x))
    parts = [
        _Search(rotated, y, classes, curvature, part.to(x.device)).run(tolerance, iterations)
        for part in penalties.split(width)
    ]
    v, objective = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    weight = torch.einsum("de,pek->pkd", axes.to(x.dtype), v[:, :-1])
    bias = v[:, -1] - torch.einsum("pkd,d->pk", weight, mean)
    return Logistic(weight, bias, objective, max(part[2] for part in parts))


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) along the principal axes, and the axes as columns (d, d), float64."""
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    return values.clamp_min(0), axes


class _Search:
    """L-BFGS for P penalties side by side; a search that has ended drops out of the products."""

    def __init__(self, x: Tensor, y: Tensor, classes: int, curvature: Tensor, penalty: Tensor):
        self.x, self.y, self.classes = x, y, classes
        self.penalty = torch.cat((penalty.expand(x.shape[1] - 1, -1), torch.zeros_like(penalty)[None])).T
        one = torch.ones_like(curvature[:1])  # the bias sees a feature that is 1
        near = torch.cat((curvature, one)) / 4 + self.penalty.clamp_min(1e-12)
        self.first = near.reciprocal().to(x.dtype)[:, :, None]  # (P, d + 1, 1) inverse curvature at W = 0

    def run(self, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, int]:
        """Solutions (P, d + 1, K) in the rotated features, their objectives (P,), and the iterations."""
        x, count = self.x, len(self.penalty)
        v = x.new_zeros(count, x.shape[1], self.classes)
        live, logits = torch.arange(count, device=x.device), self._product(v)
        objective, gradient = self._value(logits, v, live), self._gradient(logits, v, live)
        final, taken = objective.clone(), 0
        pairs: list[tuple[Tensor, Tensor]] = []
        while taken < iterations:
            taken += 1
            going = gradient.abs().amax(dim=(1, 2)) > tolerance
            if not going.all():
                live, logits, gradient, objective = (
                    part[going] for part in (live, logits, gradient, objective)
                )
                pairs = [(s[going], y[going]) for s, y in pairs]
            if not len(live):
                break
            step = self._direction(gradient, pairs, live)
            along = self._product(step)
            length, found = self._line_search(v[live], step, logits, along, objective, gradient, live)
            moved = length[:, None, None] * step
            v[live] += moved
            logits = logits + length[:, None, None] * along
            before, gradient = gradient, self._gradient(logits, v[live], live)
            pairs = [*pairs[-MEMORY + 1 :], (moved, gradient - before)]
            # As scikit-learn: no more progress than rounding allows ends a search.
            stuck = objective - found <= 64 * torch.finfo(x.dtype).eps * found.abs().clamp_min(1e-3)
            gradient = torch.where(stuck[:, None, None], 0, gradient)
            objective = final[live] = found
        return v, final, taken

    def _product(self, v: Tensor) -> Tensor:
        """x v for every penalty, (P, N, K), by one matrix product."""
        wide = self.x @ v.permute(1, 0, 2).flatten(1)
        return wide.view(len(self.x), len(v), self.classes).permute(1, 0, 2)

    def _value(self, logits: Tensor, v: Tensor, live: Tensor) -> Tensor:
        chosen = logits.gather(2, self.y.expand(len(logits), -1)[:, :, None])[:, :, 0]
        cross_entropy = (logits.logsumexp(dim=2) - chosen).double().mean(dim=1)
        return cross_entropy + (self.penalty[live, :, None] * v.double().square()).sum(dim=(1, 2)) / 2

    def _gradient(self, logits: Tensor, v: Tensor, live: Tensor) -> Tensor:
        residual = logits.softmax(dim=2)
        residual.scatter_add_(
            2,
            self.y.expand(len(logits), -1)[:, :, None],
            residual.new_full((1, 1, 1), -1.0).expand(len(logits), len(self.y), 1),
        )
        wide = self.x.T @ residual.permute(1, 0, 2).flatten(1) / len(self.x)
        slope = wide.view(-1, len(logits), self.classes).permute(1, 0, 2)
        return slope + self.penalty[live, :, None].to(v.dtype) * v

    def _direction(self, gradient: Tensor, pairs: list[tuple[Tensor, Tensor]], live: Tensor) -> Tensor:
        """-H gradient by the two-loop recursion, from the inverse curvature at W = 0."""
        q, kept = -gradient, []
        for s, y in reversed(pairs):
            rho = 1 / _dot(s, y).clamp_min(torch.finfo(s.dtype).tiny)
            alpha = rho * _dot(s, q)
            q = q - alpha * y
            kept.append((s, y, rho, alpha))
        first = self.first[live]
        if pairs:
            s, y = pairs[-1]
            first = first * (_dot(s, y) / _dot(y, first * y).clamp_min(torch.finfo(s.dtype).tiny))
        q = first * q
        for s, y, rho, alpha in reversed(kept):
            q = q + s * (alpha - rho * _dot(y, q))
        return q

    def _line_search(
        self,
        v: Tensor,
        step: Tensor,
        logits: Tensor,
        along: Tensor,
        value: Tensor,
        gradient: Tensor,
        live: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Lengths (P,) that lower the objective enough, halved from 1, and the objectives there.

        Logits are linear in the length: trying one costs no product with the features.
        """
        slope = _dot(gradient, step)[:, 0, 0].double()
        length, found = v.new_ones(len(v)), value.clone()
        open_ = torch.arange(len(v), device=v.device)
        for _ in range(HALVINGS):
            at = length[open_, None, None]
            tried = self._value(logits[open_] + at * along[open_], v[open_] + at * step[open_], live[open_])
            enough = tried <= value[open_] + ARMIJO * length[open_] * slope[open_]
            found[open_[enough]] = tried[enough]
            open_ = open_[~enough]
            if not len(open_):
                return length, found
            length[open_] /= 2
        length[open_] = 0  # rounding hides what little is left to gain
        return length, found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2), keepdim=True)
