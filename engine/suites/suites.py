"""The suites of ``diffsiam evaluate``: each takes features and gives rows of numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.attributes import Fold, binary_attributes, real_attributes
from diffsiam.evaluation.compensation import compensation_loss
from diffsiam.evaluation.few_shot_run import few_shot
from diffsiam.evaluation.knn import knn_predict
from diffsiam.evaluation.linear import (
    NORMALISED_RATE,
    RECIPES,
    LinearRecipe,
    lbfgs_accuracy,
    linear_accuracy,
    train_linear,
)
from diffsiam.evaluation.many_shot import many_shot, top_1
from diffsiam.evaluation.reconstruction import (
    mean_squared_error,
    reconstructions,
    structural_similarity,
)
from engine.suites.crops import crops, zoomed
from engine.suites.described import Described
from engine.suites.features import Features
from engine.suites.labelled import Labelled
from engine.trained import Trained

SHOTS = (1, 5, 10)
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        recipe: of the linear suite, "A" to "D" or "lbfgs".
        views: crops of every training image that the linear recipes train on; 0: the images themselves.
        episodes: of the few-shot suite, at each number of shots.
        estimator: whose importances DCI takes.
    """

    recipe: str = "A"
    views: int = 0
    episodes: int = 2000
    estimator: str = "extra_trees"
    images: int = 64
    moves: int = 50


def linear(features: Features, data: Labelled, options: Options) -> Row:
    """Test accuracy of a linear layer, after the last epoch."""
    y, test_y = torch.from_numpy(data.train.labels), torch.from_numpy(data.test.labels)
    plain, test = features(data.train), features(data.test)
    if options.recipe == "lbfgs":
        return {"accuracy": lbfgs_accuracy(plain, y, test, test_y, data.classes), "recipe": "L-BFGS, C = 1"}
    recipe, copies = _recipe(features.trained, options.recipe), [plain]
    if options.views:
        px = features.trained.config.data.px
        pixels = torch.from_numpy(data.train.pixels())
        copies = [features(data.train, f"crop {i}", crops(pixels, px, seed=i)) for i in range(options.views)]
        test = features(data.test, "zoomed", zoomed(torch.from_numpy(data.test.pixels()), px))
    layer = train_linear(copies, y, data.classes, recipe)
    seen = f"{options.views} crops an image" if options.views else "images as they are"
    return {
        "accuracy": linear_accuracy(layer, test, test_y),
        "recipe": f"{options.recipe}, lr {recipe.lr:g}, {seen}",
    }


def _recipe(trained: Trained, name: str) -> LinearRecipe:
    """A recipe, with a smaller rate for A where the features have variance 1."""
    if name == "A" and trained.config.encoder.norm == "batch":
        return replace(RECIPES[name], lr=NORMALISED_RATE)
    return RECIPES[name]


def knn(features: Features, data: Labelled, options: Options) -> Row:
    """Accuracy of 200 weighted neighbours."""
    y, test_y = torch.from_numpy(data.train.labels), torch.from_numpy(data.test.labels)
    return {
        "accuracy": top_1(knn_predict(features(data.train), y, features(data.test), data.classes), test_y)
    }


def many(features: Features, data: Labelled, options: Options) -> Row:
    """Test score of logistic regression, its penalty chosen on validation."""
    y, test_y = torch.from_numpy(data.train.labels), torch.from_numpy(data.test.labels)
    parts = None if data.parts is None else (torch.from_numpy(data.parts[0]), torch.from_numpy(data.parts[1]))
    found = many_shot(features(data.train), y, features(data.test), test_y, data.classes, data.metric, parts)
    return {"score": found.test, "penalty": found.penalty, "metric": data.metric.__name__}


def few(features: Features, data: Labelled, options: Options) -> Row:
    """5-way accuracy on the test part at 1, 5 and 10 shots; None where too few classes have the images."""
    z, y, row = features(data.test), torch.from_numpy(data.test.labels), Row()
    for shots in SHOTS:
        try:
            row[str(shots)] = few_shot(z, y, shots, options.episodes).summary()
        except ValueError as error:
            row[str(shots)] = {"skipped": str(error)}
    return row


def attributes(features: Features, data: Described, options: Options) -> Row:
    """Mean average precision, or mean r and mean squared error, with those of every attribute."""
    train, validation, test = (Fold(features(part), torch.from_numpy(y)) for part, y in data.parts)
    if data.binary:
        precision = binary_attributes(train, validation, test)
        return {
            "ap": float(np.nanmean(precision)),
            "by_attribute": dict(zip(data.names, precision, strict=True)),
        }
    r, error = real_attributes(train, validation, test)
    by = {name: {"r": a, "mse": b} for name, a, b in zip(data.names, r, error, strict=True)}
    return {"r": float(r.mean()), "mse": float(error.mean()), "by_attribute": by}


def reconstruction(trained: Trained, images: Tensor, options: Options) -> Row:
    """MSE and SSIM with inferred and with random x_T, and the loss below the frozen model's own."""
    device = next(trained.model.encoder.parameters()).device
    images = images[: options.images].to(device)
    row: Row = {"images": len(images), "moves": options.moves}
    original = images.permute(0, 3, 1, 2).float() / 255
    for name, again in reconstructions(trained.model, images, options.moves).items():
        row[name] = {
            "mse": mean_squared_error(again, original).mean().item(),
            "ssim": structural_similarity(again, original).mean().item(),
        }
    with_g, frozen = compensation_loss(trained.model, images, seed=0)
    return row | {"loss_with_g": with_g, "loss_frozen": frozen, "reduction": 1 - with_g / frozen}


def describe(options: Options) -> Row:
    """The options as they are recorded."""
    return asdict(options)
