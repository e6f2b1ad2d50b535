"""What pushing an attribute moves, on target and off it: with all of z, with d' dimensions, with any d'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffsiam.counterfactual import Inverted
from diffsiam.evaluation import editing
from diffsiam.manipulation import Classifier, fit_classifier, fit_on, in_thesis_units
from diffsiam.probmask import EXACT
from diffsiam.sampler import Guide, Sampler
from engine import screen
from engine.data.rooms import FACTORS, LEVELS
from engine.edit.reading import probabilities
from engine.oracle import Oracle

SCALES = (0.25, 0.5, 1.0, 2.0)  # in the code's unit
WANTED = 0.5  # mean shift of the target at which drifts are compared
TRAIN = 3000  # labelled rooms of the first part, on which classifiers are fitted
SHARES = (32, 16, 4)  # d / d'
PUSHED_SHARE = 4  # whose edits are made
RECIPE = EXACT


@dataclass(frozen=True)
class Push:
    """One way of choosing dimensions, over all factors (each true in the upper half of its values).

    Attributes:
        kept: d'.
        precision: mean average precision on rooms that it was not fitted on.
        reached: factors whose target can be shifted by a half.
        drift: their mean change of each other factor at that shift; NaN where none is reached.
        selectivity: their mean target / (target + off-target) at that shift.
        shift: mean shift of all targets at each of the scales.
    """

    name: str
    kept: int
    precision: float
    reached: int | None = None
    drift: float | None = None
    selectivity: float | None = None
    shift: list[float] | None = None


def edits_per_image() -> int:
    """Images made of each image."""
    return len(FACTORS) * len(SCALES) * 3 + 1


def measure_pushes(
    sampler: Sampler,
    images: Inverted,
    levels: Tensor,
    z: Tensor,
    known: Tensor,
    oracle: Oracle,
    seed: int,
) -> list[Push]:
    """Average precision for all d', and the edits of all dimensions, of d / 4, and of as many random ones.

    Args:
        images, levels: rooms to push, and the levels (N, K) of these and maybe more.
        z, known: (M, d) and (M, K), rooms to learn from.
    """
    truth = known >= torch.from_numpy(LEVELS / 2).to(known.device)
    dim = z.shape[1]
    wanted = {"all dimensions": dim} | {f"d / {share}": max(1, dim // share) for share in SHARES[::-1]}
    pushes = []
    for name, kept in wanted.items():
        fitted = [fit_classifier(z[:TRAIN], y[:TRAIN], kept, RECIPE, seed) for y in truth.T]
        pushes.append(_push(name, kept, fitted, z, truth))
        if kept in (dim, max(1, dim // PUSHED_SHARE)):
            pushes[-1] = _with_edits(pushes[-1], fitted, sampler, images, levels, oracle)
    kept, rng = max(1, dim // PUSHED_SHARE), np.random.default_rng(seed)
    masks = [torch.zeros(dim, dtype=torch.bool) for _ in FACTORS]
    for mask in masks:
        mask[rng.permutation(dim)[:kept].copy()] = True
    fitted = [fit_on(z[:TRAIN], y[:TRAIN], m.to(z.device)) for y, m in zip(truth.T, masks, strict=True)]
    at_random = _push(f"d / {PUSHED_SHARE} at random", kept, fitted, z, truth)
    return [*pushes, _with_edits(at_random, fitted, sampler, images, levels, oracle)]


def _push(name: str, kept: int, fitted: list[Classifier], z: Tensor, truth: Tensor) -> Push:
    scores = [
        editing.average_precision(c.logits(z[TRAIN:]), y[TRAIN:])
        for c, y in zip(fitted, truth.T, strict=True)
    ]
    return Push(name, kept, float(np.mean(scores)))


def _with_edits(
    push: Push, fitted: list[Classifier], sampler: Sampler, images: Inverted, levels: Tensor, oracle: Oracle
) -> Push:
    """The edits: each room towards what it is not, for every factor and scale in one batch."""
    count, dim = images.z.shape
    upper = torch.from_numpy(LEVELS / 2).to(levels.device)
    sign = torch.where(levels[:count] >= upper, -1.0, 1.0)  # (N, K)
    along = torch.stack([c.direction() for c in fitted]).to(images.z.dtype)  # (K, d)
    steps = torch.tensor([in_thesis_units(s, "code", dim) for s in SCALES], device=images.z.device)
    moved = images.z[:, None, None] + sign[..., None, None] * steps[:, None] * along[:, None]  # (N, K, S, d)
    shape = moved.shape[:3]
    x_T = images.x_T[:, None, None].expand(*shape, *images.x_T.shape[1:]).flatten(0, 2)
    edited = sampler.sample(x_T, Guide(moved.flatten(0, 2)))
    before = probabilities(oracle, sampler.sample(images.x_T, Guide(images.z)))  # (N, K, L)
    after = probabilities(oracle, edited).unflatten(0, shape)  # (N, K, S, K, L)
    return score(push, before, after, sign)


def score(push: Push, before: Tensor, after: Tensor, sign: Tensor) -> Push:
    """Shift of the targets and drift of all else, see :class:`Push`.

    Args:
        before: (N, K, L) probabilities of the reconstructions.
        after: (N, K, S, K, L) of the edits of each target at each scale.
        sign: (N, K) 1 where the target was pushed up.
    """
    count, factors = before.shape[:2]
    upper = (
        torch.arange(before.shape[-1], device=before.device)
        >= torch.from_numpy(LEVELS / 2).to(before.device)[:, None]
    )
    own = torch.arange(factors, device=before.device)
    target = (after[:, own, :, own] * upper[:, None, None]).sum(-1)  # (K, N, S)
    was = (before * upper).sum(-1).T[..., None]
    shift = ((target - was) * sign.T[..., None]).mean(dim=1)  # (K, S)
    changes = editing.change(after, before[:, None, None])  # (N, K, S, K)
    others = ~torch.eye(factors, dtype=torch.bool, device=before.device)
    drift = (changes * others[:, None]).sum(dim=-1).mean(dim=0) / (factors - 1)  # (K, S)
    matched = np.array(
        [editing.at_shift(a, b, WANTED) for a, b in zip(shift.tolist(), drift.tolist(), strict=True)]
    )
    there = ~np.isnan(matched)
    selective = WANTED / (WANTED + (factors - 1) * matched[there])
    return Push(
        push.name,
        push.kept,
        push.precision,
        int(there.sum()),
        float(matched[there].mean()) if there.any() else float("nan"),
        float(selective.mean()) if there.any() else float("nan"),
        shift.mean(dim=0).tolist(),
    )


def show(names: Sequence[str], measured: Sequence[list[Push]]) -> None:
    """A row for every way and model."""
    rows = []
    for i, way in enumerate(measured[0]):
        for name, each in zip(names, measured, strict=True):
            push = each[i]
            drawn = (
                ["-"] * 4
                if push.shift is None
                else [
                    f"{push.reached} of {len(FACTORS)}",
                    f"{push.drift:.3f}",
                    f"{push.selectivity:.3f}",
                    " ".join(f"{s:.2f}" for s in push.shift),
                ]
            )
            ratio = push.precision / each[0].precision
            rows.append([way.name, name, str(push.kept), f"{push.precision:.3f}", f"{ratio:.3f}", *drawn])
    columns = ["dimensions", "model", "d'", "AP", "of all's", "reached", "drift", "selectivity"]
    columns += ["shift at " + ", ".join(f"{s:g}" for s in SCALES)]
    screen.table(columns, rows, f"Attributes pushed to a mean shift of {WANTED} (scales in the code's unit)")
