"""The models that are compared: one recipe, one data order, as many steps; only these switches differ."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CHOICES = {"random": "random", "tied": "time_tied", "profile": "profile"}
STRATEGIES = {
    "hier": {"mask": "hierarchical", "detach": "false"},
    "seq": {"mask": "sequential", "detach": "false"},
    "detach": {"mask": "hierarchical", "detach": "true"},
}
UNTRAINED = ("random", "pca")  # a fresh encoder; the d first principal components of the pixels
AS_PRINTED = "hier-random-sum"


def models(simsiam_weight: float) -> Mapping[str, tuple[str, ...] | None]:
    """Overrides of configs/claims.json for each model, in the order in which they are trained.

    "hier-random" is Algorithm 1 as printed but for the weight of its second loss, which is chosen so that
    both losses move the encoder alike; "hier-random-sum" is the unweighted sum of Eq. 3.12.

    Args:
        simsiam_weight: of SimSiam's loss where it stands beside the diffusion loss.

    Returns:
        name -> overrides, None for what is not trained.
    """
    both = f"simsiam.weight={simsiam_weight:g}"
    found: dict[str, tuple[str, ...] | None] = dict.fromkeys(UNTRAINED)
    found["simsiam"] = ("method=simsiam",)
    found["pdae"] = ("method=pdae",)
    for strategy, choice in _order():
        keys = {"choice": CHOICES[choice], **STRATEGIES[strategy]}
        switches = (f"subsets.{key}={value}" for key, value in keys.items())
        found[f"{strategy}-{choice}"] = ("method=literal", both, *switches)
    found["simsiam+pdae"] = ("method=pdae", both)
    found[AS_PRINTED] = ("method=literal", "simsiam.weight=1")
    return MappingProxyType(found)


def _order() -> list[tuple[str, str]]:
    """Strategy and choice, those first that decide most should the experiment be cut short."""
    first = [
        ("hier", "random"),
        ("detach", "tied"),
        ("seq", "random"),
        ("detach", "random"),
        ("hier", "tied"),
    ]
    every = [(strategy, choice) for choice in CHOICES for strategy in STRATEGIES]
    return first + [pair for pair in every if pair not in first]
