"""Multinomial logistic regression with many penalties at once: what a sweep of them costs is one solve.

    J(W, b) = 1/2 |W|^2 + C sum_n CE(softmax(W x_n + b), y_n),  b unpenalised

is scikit-learn's LogisticRegression(C), minimised here for every C of a sweep together: all of them share
the features, so the products with them are wide, two an iteration; everything else passes over logits
(P, K, N), whose samples lie side by side. Features are rotated to their principal axes, where the curvature
at W = 0 is diagonal and makes a good first guess of the inverse Hessian for L-BFGS; neither changes J.
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
    weight = v[:, :, :-1] @ axes.to(x.dtype).T
    bias = v[:, :, -1] - weight @ mean
    return Logistic(weight, bias, objective, max(part[2] for part in parts))


def _principal_axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (d,) along the principal axes, and the axes as columns (d, d), float64."""
    values, axes = torch.linalg.eigh(x.T @ x / len(x))
    return values.clamp_min(0), axes


class _Search:
    """L-BFGS for P penalties side by side; a search that has ended drops out of the products."""

    def __init__(self, x: Tensor, y: Tensor, classes: int, curvature: Tensor, penalty: Tensor):
        self.x, self.y, self.classes = x, y, classes
        labels = torch.nn.functional.one_hot(y, classes).to(x.dtype)
        self.labels = labels.T @ x / len(x)  # (K, d + 1): mean of e(y_n) x_n^T
        self.penalty = torch.cat((penalty.expand(x.shape[1] - 1, -1), torch.zeros_like(penalty)[None])).T
        one = torch.ones_like(curvature[:1])  # the bias sees a feature that is 1
        near = torch.cat((curvature, one)) / 4 + self.penalty.clamp_min(1e-12)
        self.first = near.reciprocal().to(x.dtype)[:, None]  # (P, 1, d + 1) inverse curvature at W = 0

    def run(self, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, int]:
        """Solutions (P, K, d + 1) in the rotated features, their objectives (P,), and the iterations."""
        x, count = self.x, len(self.penalty)
        v = x.new_zeros(count, self.classes, x.shape[1])
        live, logits = torch.arange(count, device=x.device), x.new_zeros(count, self.classes, len(x))
        objective, chances = self._value(logits, v, live)
        gradient = self._gradient(chances, v, live)
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
            moved, logits, chances, found = self._line_search(
                v[live], step, logits, objective, gradient, live
            )
            v[live] += moved
            before, gradient = gradient, self._gradient(chances, v[live], live)
            pairs = [*pairs[-MEMORY + 1 :], (moved, gradient - before)]
            # As scikit-learn: no more progress than rounding allows ends a search.
            stuck = objective - found <= 64 * torch.finfo(x.dtype).eps * found.abs().clamp_min(1e-3)
            gradient = torch.where(stuck[:, None, None], 0, gradient)
            objective = final[live] = found
        return v, final, taken

    def _value(self, logits: Tensor, v: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
        """J / (C N) (P,) float64, and the chances of the classes (P, K, N)."""
        highest = logits.amax(dim=1, keepdim=True)
        # Sample by sample, not by the labels' mean: rounding of large logits cancels.
        lost = highest - logits.gather(1, self.y.expand(len(logits), 1, -1))
        chances = (logits - highest).exp_()
        total = chances.sum(dim=1, keepdim=True)
        chances /= total
        cross_entropy = (lost + total.log_()).double().mean(dim=(1, 2))
        return cross_entropy + (self.penalty[live, None] * v.double().square()).sum(dim=(1, 2)) / 2, chances

    def _gradient(self, chances: Tensor, v: Tensor, live: Tensor) -> Tensor:
        slope = (chances.flatten(0, 1) @ self.x).view_as(v) / len(self.x)
        return slope - self.labels + self.penalty[live, None].to(v.dtype) * v

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
        self, v: Tensor, step: Tensor, logits: Tensor, value: Tensor, gradient: Tensor, live: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The part of each step, halved from all of it, that lowers the objective enough; logits, chances
        and objectives there.

        Logits are linear in the length: trying one costs no product with the features.
        """
        slope = _dot(gradient, step)[:, 0, 0].double()

        def falls_short(which: Tensor, length: float) -> Tensor:
            return ~(found[which] <= value[which] + ARMIJO * length * slope[which])  # also where it is NaN

        there = torch.addmm(logits.flatten(0, 1), step.flatten(0, 1), self.x.T).view_as(logits)
        found, chances = self._value(there, v + step, live)
        length, open_ = 1.0, torch.arange(len(v), device=v.device)
        open_ = open_[falls_short(open_, length)]
        if not len(open_):
            return step, there, chances, found
        step, whole, along = step.clone(), step[open_], there[open_] - logits[open_]
        for _ in range(HALVINGS):
            length /= 2
            step[open_], there[open_] = length * whole, logits[open_] + length * along
            found[open_], chances[open_] = self._value(there[open_], v[open_] + step[open_], live[open_])
            short = falls_short(open_, length)
            open_, whole, along = open_[short], whole[short], along[short]
            if not len(open_):
                return step, there, chances, found
        # Rounding hides what is left to gain. Chances need not follow: a search that stands still has ended.
        step[open_], there[open_], found[open_] = 0, logits[open_], value[open_]
        return step, there, chances, found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=(1, 2), keepdim=True)
