"""The disentanglement suite: what entries and subsets of z know of the factors of Rooms, beside baselines."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.encoder import encode_images
from diffsiam.evaluation.groups import (
    Coded,
    GroupScores,
    cumulative_information,
    group_dims,
    group_information,
    group_scores,
    known,
    random_partition,
    random_rotation,
)
from diffsiam.evaluation.information import (
    completeness,
    discretise,
    disentanglement,
    entropy,
    gap,
    interpretability,
    mig,
    modularity,
    modularity_of_active,
    mutual_information,
)
from diffsiam.evaluation.predictors import importances, sap_matrix
from diffsiam.evaluation.separability import separability
from engine.build import untrained_encoder
from engine.data.rooms import FACTORS, LEVELS, Rooms
from engine.errors import UsageError
from engine.suites.features import Features
from engine.suites.labelled import ROOMS_SEED, Part
from engine.trained import Trained
from kernels.noise_jump.ref import to_unit_range

TRAIN, TEST = 10_000, 5_000
DRAWS = 10  # partitions and rotations at random
Row = dict[str, Any]


def factor_codes(features: Features, limit: int | None = None) -> Coded:
    """Features and factors of rooms that no run was trained on.

    Raises:
        UsageError: the run is not one on Rooms.
    """
    if features.trained.config.data.source != "rooms":
        raise UsageError(
            f"{features.trained.run_dir}: the disentanglement suite needs known factors, which only Rooms "
            "has; leave it out with --suite"
        )
    train, test = (min(count, limit or count) for count in (TRAIN, TEST))
    rooms, indices = _rooms(features.trained, train + test), np.arange(train + test)
    y = rooms.factors(indices)
    z = features(Part(lambda: rooms.images(indices), y[:, 0], f"{rooms}"))
    levels, y_ = tuple(LEVELS.tolist()), torch.from_numpy(y)
    return Coded(z[:train], y_[:train], z[train:], y_[train:], levels)


def untrained_codes(trained: Trained, codes: Coded) -> Coded:
    """The same rooms seen by the encoder that the run began with."""
    with torch.random.fork_rng(devices=[]):
        fresh = untrained_encoder(trained.config)
    train, count = len(codes.train), len(codes.train) + len(codes.test)
    images = torch.from_numpy(_rooms(trained, count).images(np.arange(count)))
    z = torch.cat([encode_images(fresh, to_unit_range(part)) for part in images.split(2048)])
    return Coded(z[:train], codes.train_y, z[train:], codes.test_y, codes.levels)


def _rooms(trained: Trained, count: int) -> Rooms:
    return Rooms(trained.config.data.px, ROOMS_SEED + 3, count)


def scalar_scores(codes: Coded, estimator: str, slow: bool = True) -> Row:
    """Scores whose unit is the entry of z. ``slow``: also those that fit models (DCI, SAP)."""
    train, test, y, test_y = (part.numpy() for part in (codes.train, codes.test, codes.train_y, codes.test_y))
    binned = discretise(train)
    matrix = mutual_information(binned, y)
    rmig, jemmig = interpretability(train, y)
    row: Row = {
        "mig": mig(matrix, entropy(y)),
        "modularity": float(modularity(matrix).mean()),
        "modularity of active": modularity_of_active(matrix),
        "RMIG": rmig,
        "1 - JEMMIG": jemmig,
        "informativeness": float(entropy(binned).mean()),
    }
    if not slow:
        return row
    importance, accuracy = importances(train, y, test, test_y, estimator)
    return row | {
        f"DCI-D ({estimator})": disentanglement(importance),
        f"DCI-C ({estimator})": float(completeness(importance).mean()),
        f"DCI-I ({estimator})": float(accuracy.mean()),
        "SAP": float(gap(sap_matrix(train, y, test, test_y)).mean()),
    }


def subset_scores(
    codes: Coded, groups: list[Tensor], permutations: int = 5
) -> tuple[GroupScores, np.ndarray]:
    """Scores whose unit is the subset, and I(z_g; y_k) they come from."""
    information = group_information(codes, groups, permutations)
    return group_scores(information, entropy(codes.test_y.numpy())), information


def disentanglement_suite(
    features: Features, estimator: str, limit: int | None = None, draws: int = DRAWS
) -> Row:
    """Everything, with the same scores of a fresh encoder, of random partitions and of random rotations."""
    codes, ends = factor_codes(features, limit), features.trained.model.subsets.ends
    groups, dim = group_dims(ends), codes.train.shape[1]
    fresh = untrained_codes(features.trained, codes)
    found, information = subset_scores(codes, groups)
    partitions = [subset_scores(codes, random_partition(dim, ends, s), 0)[0] for s in range(draws)]
    rotations = [
        subset_scores(codes.turned(random_rotation(dim, s).float()), groups, 0)[0] for s in range(draws)
    ]
    shared = separability(torch.cat((codes.train, codes.test)), groups)
    whole, cumulative = known(codes), cumulative_information(codes, groups)
    first = known(codes.take(groups[int(information.sum(axis=1).argmax())]))
    return {
        "samples": [len(codes.train), len(codes.test)],
        "scalar": {
            "this run": scalar_scores(codes, estimator),
            "random encoder": scalar_scores(fresh, estimator),
            "random rotation": scalar_scores(
                codes.turned(random_rotation(dim, 0).float()), estimator, slow=False
            ),
        },
        "subsets": {
            "this run": asdict(found),
            "random encoder": asdict(subset_scores(fresh, groups)[0]),
            "random partition": _mean(partitions),
            "random rotation": _mean(rotations),
        },
        "explicitness": {
            "this run": float(whole.explicitness.mean()),
            "random encoder": float(known(fresh).explicitness.mean()),
            "best subset": float(first.explicitness.mean()),
        },
        "probe": dict(zip([f.name for f in FACTORS], whole.accuracy, strict=True)),
        "separability": {
            "mean I(z_g; z_h)": shared.mean_pair,
            "total correlation": shared.total_correlation,
            "WSEPIN": shared.wsepin,
            "informativeness": shared.informativeness,
        },
        "subset_information": information,
        "cumulative_information": cumulative,
    }


def _mean(scores: list[GroupScores]) -> dict[str, float]:
    rows = [asdict(score) for score in scores]
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
