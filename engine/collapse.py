"""When features have collapsed: the limit, for the loop's warning and for the report's alarm."""

from __future__ import annotations

import math

COLLAPSE = 0.1


def spread(std: float, d: int) -> float:
    """:func:`engine.metrics.feature_std` as a share of what uniform directions in d dimensions have."""
    return std * math.sqrt(d)


def collapse_warning(std: float, d: int) -> str | None:
    """What to tell the user when :func:`engine.metrics.feature_std` says that features of width ``d``
    collapse, else None.

    The limit is a tenth of 1/sqrt(d). Features behind a ReLU have a common mean and lie near 0.6/sqrt(d)
    without being collapsed; SimSiam's collapse falls to 0 within the first epoch. A tenth is far from both.
    """
    if spread(std, d) >= COLLAPSE:
        return None
    return (
        f"the features are collapsing: their spread is {spread(std, d):.3f} of that of uniform directions;"
        f" below {COLLAPSE} all images look alike; check the stop-gradient, the predictor, the learning rate"
    )
