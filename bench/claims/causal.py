"""Claims C and D on the decoder's side: swap a subset between rooms, decode, let the oracle read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffsiam.evaluation.compensation import compensation_loss
from diffsiam.evaluation.rank import permutation_p, spearman
from diffsiam.evaluation.swap import NONE, live_subsets, swap_test
from diffsiam.objective import DiffSiam
from engine.data.rooms import Rooms, granularity
from engine.oracle import load_oracle
from kernels.noise_jump.ref import to_unit_range

SEED = (1 << 40) + 200
PAIRS, LOSS_ROOMS = 96, 1024


def causal(model: DiffSiam, px: int, information: np.ndarray, pairs: int = PAIRS) -> dict[str, Any]:
    """Held-out loss, exchange success of every subset, selectivity, and granularity by subset.

    Args:
        information: (n, K) what each subset knows, which assigns factors to subsets.
    """
    rooms, indices = Rooms(px, SEED, LOSS_ROOMS), np.arange(LOSS_ROOMS)
    images = torch.from_numpy(rooms.images(indices))
    with_g, frozen = compensation_loss(model, images, SEED)
    oracle, levels = load_oracle(px), torch.from_numpy(rooms.factors(indices[:pairs]))
    swaps = swap_test(model, images[:pairs], levels, oracle.read, seed=SEED)
    decoded = torch.from_numpy(swaps.images)
    read = torch.stack([oracle.read(to_unit_range(row)) for row in decoded]).numpy()
    own = swaps.rows.index(NONE)
    changed = (read[: swaps.n] != read[own]).mean(axis=1)  # (n, K)
    moved = (
        (decoded[: swaps.n].float() - decoded[own].float()).div(255).square().mean(dim=(1, 2, 3, 4)).numpy()
    )
    return {
        "loss_with_g": with_g,
        "loss_frozen": frozen,
        "reduction": 1 - with_g / frozen,
        "rows": swaps.rows,
        "success": swaps.success,
        "side_effect": swaps.side_effect,
        "live": [live._asdict() for live in live_subsets(swaps)],
        "changed": changed,
        "pixels_moved": moved,
        "selectivity": selectivity(changed, information),
        "order": order(swaps.effect, px),
    }


def selectivity(changed: np.ndarray, information: np.ndarray) -> float | None:
    """Share of what a subset changes that falls on the factors it knows most of, weighted by what it changes.

    A factor belongs to the subset with the largest I(z_g; y_k). Chance is about 1 / n.

    Args:
        changed: (n, K) share of pairs whose reading of a factor changes when a subset is swapped.
        information: (n, K).
    """
    assigned = information.argmax(axis=0) == np.arange(len(information))[:, None]
    total = changed.sum()
    return float((changed * assigned).sum() / total) if total > 0 else None


def order(effect: np.ndarray, px: int) -> dict[str, Any]:
    """rho of a subset's place and the log granularity of what it moves; the claim says it is positive.

    E_i is the mean of log granularity over factors, weighted by the subset's effect on each.
    """
    weight = np.maximum(np.nan_to_num(effect), 0)
    size = np.log(list(granularity(px).values()))
    moves = weight.sum(axis=1) > 0
    coarse = np.where(moves, (weight @ size) / np.where(moves, weight.sum(axis=1), 1), np.nan)
    place = np.arange(1, len(effect) + 1)
    return {
        "granularity_moved": coarse,
        "strength": weight.sum(axis=1),
        "rho": spearman(place[moves], coarse[moves]) if moves.sum() > 2 else None,
        "p": permutation_p(place[moves], coarse[moves]) if moves.sum() > 2 else None,
    }
