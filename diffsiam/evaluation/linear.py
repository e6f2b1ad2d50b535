"""Linear evaluation: one linear layer on fixed features, trained by a published recipe or by L-BFGS.

Features are computed once. Where a recipe trains on random crops, several copies of the training features are
given, one a crop of every image, and the epochs take them in turn. The last epoch is what counts; no recipe
may look at test scores on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor, nn

from diffsiam.evaluation.logistic import fit_logistic


@dataclass(frozen=True)
class LinearRecipe:
    """How the layer is trained.

    Attributes:
        optimizer: "sgd", "lars" (SGD with layer-wise rates, trust 0.001) or "adam".
        lr: for a batch of 256 if ``scaled``, else as it is.
        schedule: "step" or "epoch", when the cosine to 0 is stepped, or "constant".
        zero_init: weights N(0, 0.01^2) and bias 0, instead of torch's default.
    """

    optimizer: str
    lr: float
    epochs: int
    batch: int
    schedule: str = "step"
    scaled: bool = True
    weight_decay: float = 0.0
    zero_init: bool = False

    @property
    def rate(self) -> float:
        """The first learning rate."""
        return self.lr * self.batch / 256 if self.scaled else self.lr


RECIPES = {
    "A": LinearRecipe("sgd", 30.0, 100, 256),  # SimSiam on CIFAR-10
    "B": LinearRecipe("lars", 0.1, 90, 4096, "epoch", zero_init=True),  # SimSiam on ImageNet
    "C": LinearRecipe("sgd", 0.1, 90, 256),  # lightly
    "D": LinearRecipe("adam", 1e-3, 100, 512, "constant", scaled=False, weight_decay=1e-6),  # IP-IRM
}
# Rates of A are for averages of ReLU features, which are small; on features of variance 1 they diverge.
NORMALISED_RATE = 0.5


def train_linear(
    copies: Sequence[Tensor], y: Tensor, classes: int, recipe: LinearRecipe, seed: int = 0
) -> nn.Linear:
    """Train on copies of the features, each (N, d), epoch e on copy e modulo their number; labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(copies[0].shape[1], classes)
    if recipe.zero_init:
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.copy_(0.01 * torch.randn(layer.weight.shape, generator=generator))
    optimizer = _optimizer(layer, recipe)
    steps = -(-len(y) // recipe.batch)
    for epoch in range(recipe.epochs):
        x = copies[epoch % len(copies)]
        for step, batch in enumerate(torch.randperm(len(y), generator=generator).split(recipe.batch)):
            done = {"step": epoch * steps + step, "epoch": epoch * steps, "constant": 0}[recipe.schedule]
            rate = recipe.rate * (1 + cos(pi * done / (recipe.epochs * steps))) / 2
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[batch]), y[batch]).backward()
            if recipe.optimizer == "lars":
                _scale_by_layer(layer, recipe)
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    return layer


def _optimizer(layer: nn.Linear, recipe: LinearRecipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "adam":
        return torch.optim.Adam(layer.parameters(), recipe.rate, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(layer.parameters(), recipe.rate, momentum=0.9, weight_decay=recipe.weight_decay)


def _scale_by_layer(layer: nn.Linear, recipe: LinearRecipe) -> None:
    """LARS: the gradient of the weights gets 0.001 times their own norm; the bias is left alone."""
    weight = layer.weight
    assert weight.grad is not None
    norm, size = weight.detach().norm(), weight.grad.norm()
    if norm > 0 and size > 0:
        weight.grad.mul_(0.001 * norm / (size + recipe.weight_decay * norm))


@torch.no_grad()
def linear_accuracy(layer: nn.Linear, x: Tensor, y: Tensor) -> float:
    """Share of samples that are right."""
    return (layer(x).argmax(dim=1) == y).double().mean().item()


def lbfgs_accuracy(
    train: Tensor, train_y: Tensor, test: Tensor, test_y: Tensor, classes: int, c: float = 1.0
) -> float:
    """The deterministic variant: logistic regression with C on un-augmented features, no seed, no rate."""
    fit = fit_logistic(train, train_y, classes, [c])
    return (fit.logits(test)[0].argmax(dim=1) == test_y).double().mean().item()
