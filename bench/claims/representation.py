"""Claims C and D on the encoder's side: what each subset knows, alone and after those before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from bench.claims.transfer import Encode
from diffsiam.evaluation.groups import (
    Coded,
    centres,
    cumulative_information,
    group_dims,
    group_information,
    group_scores,
    known,
    random_partition,
    random_rotation,
)
from diffsiam.evaluation.information import (
    discretise,
    entropy,
    mig,
    modularity_of_active,
    mutual_information,
)
from diffsiam.evaluation.rank import permutation_p, spearman
from diffsiam.evaluation.separability import separability
from engine.data.rooms import LEVELS, Rooms, granularity

SEED = (1 << 40) + 100
TRAIN, TEST, BASELINES = 3000, 1500, 3


def coded(encode: Encode, px: int) -> Coded:
    """Features and factors of rooms that no model was trained on."""
    rooms, indices = Rooms(px, SEED, TRAIN + TEST), np.arange(TRAIN + TEST)
    z, y = encode(torch.from_numpy(rooms.images(indices))), torch.from_numpy(rooms.factors(indices))
    return Coded(z[:TRAIN], y[:TRAIN], z[TRAIN:], y[TRAIN:], tuple(LEVELS.tolist()))


def representation(encode: Encode, px: int, ends: Sequence[int]) -> dict[str, Any]:
    """Group scores with their baselines, separability, probes of the whole z, order of the factors."""
    codes, groups = coded(encode, px), group_dims(ends)
    dim, entropies = codes.train.shape[1], entropy(codes.test_y.numpy())
    information = group_information(codes, groups, permutations=1)
    partitions = [random_partition(dim, ends, seed) for seed in range(BASELINES)]
    turned = [codes.turned(random_rotation(dim, seed).float()) for seed in range(BASELINES)]
    baselines = {
        "random partition": [group_information(codes, part, permutations=0) for part in partitions],
        "random rotation": [group_information(code, groups, permutations=0) for code in turned],
    }
    scalar = mutual_information(discretise(codes.train.numpy()), codes.train_y.numpy())
    shared = separability(torch.cat((codes.train, codes.test)), groups)
    whole = known(codes)
    return {
        "probe": whole.accuracy,
        "explicitness": whole.explicitness,
        "group_information": information,
        "groups": asdict(group_scores(information, entropies)),
        "baselines": {
            name: _mean([asdict(group_scores(part, entropies)) for part in parts])
            for name, parts in baselines.items()
        },
        "scalar": {"mig": mig(scalar, entropies), "modularity_of_active": modularity_of_active(scalar)},
        "separability": {
            "mean_pair": shared.mean_pair,
            "total_correlation": shared.total_correlation,
            "wsepin": shared.wsepin,
            "informativeness": shared.informativeness,
        },
        "order": order(cumulative_information(codes, groups), px),
    }


def order(cumulative: np.ndarray, px: int) -> dict[str, Any]:
    """rho of log granularity and the place at which a factor comes in; the claim says it is positive."""
    place, size = centres(cumulative), np.log(list(granularity(px).values()))
    known_ = np.isfinite(place)
    return {
        "cumulative_information": cumulative,
        "centres": place,
        "rho": spearman(size[known_], place[known_]),
        "p": permutation_p(size[known_], place[known_]),
    }


def _mean(records: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([record[key] for record in records])) for key in records[0]}
