"""The subsets and scales of a figure, as a command line names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from diffsiam.counterfactual import Choice, of_subsets, random_dims
from diffsiam.subsets import Subsets
from engine.edit.units import units_of
from engine.errors import UsageError

FFHQ = "0-2,0-4,0-6,6-10,16-24,24-32,32-64"  # thesis Fig. 4.1
MOST_ROWS = 8
THESIS_SCALES = "1/4,2/4,3/4,1"
ALL, NONE = "all", "none"


def default_subsets(n: int) -> str:
    """The thesis' ranges for its 64 subsets; else each by itself, or eight ranges of equal length."""
    if n == 64:
        return FFHQ
    return ",".join(units_of(n, MOST_ROWS))


def read_choices(
    asked: str, subsets: Subsets, controls: bool = False, seed: int = 0, moves_x_T: bool = True
) -> list[Choice]:
    """S for every range "a-b", half-open and counted from 0 as in the thesis' figures; "all", "none".

    Args:
        asked: ranges separated by commas; "0-2+5-6" is one S, of both.
        controls: add none, all, and to each range as many random dimensions, and the range with x_T fixed.

    Raises:
        UsageError: a range that is none.
    """
    ranges = [_union(part.strip(), subsets.n) for part in asked.split(",")]
    chosen = [of_subsets(name, subsets, inside, moves_x_T) for name, inside in ranges]
    if not controls:
        return chosen
    everything = list(range(1, subsets.n + 1))
    plain = [choice for choice in chosen if choice.name not in (ALL, NONE)]
    dim = subsets.ends[-1]
    return [
        *plain,
        of_subsets(NONE, subsets, [], moves_x_T),
        of_subsets(ALL, subsets, everything, moves_x_T),
        *(
            random_dims(
                f"random {int(c.dims.sum())} of {dim} (as {c.name})",
                dim,
                int(c.dims.sum()),
                seed + i,
                moves_x_T,
            )
            for i, c in enumerate(plain)
        ),
        *(Choice(f"{c.name}, x_T fixed", c.dims, False) for c in plain if moves_x_T),
    ]


def _union(text: str, n: int) -> tuple[str, list[int]]:
    found = [_range(part.strip(), n) for part in text.split("+")]
    return "+".join(name for name, _ in found), sorted({i for _, inside in found for i in inside})


def _range(text: str, n: int) -> tuple[str, list[int]]:
    if text in (ALL, NONE):
        return text, list(range(1, n + 1)) if text == ALL else []
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    first = int(match[1]) if match else 0
    end = int(match[2]) if match and match[2] else first + 1
    if not match or not first < end <= n:
        raise UsageError(
            f'--subsets {text}: expected ranges like 0-2 within 0-{n}, half-open, or "all" or "none"'
        )
    return f"{first}-{end}", list(range(first + 1, end + 1))


def read_scales(text: str, option: str = "--scales") -> list[float]:
    """Numbers or fractions, separated by commas.

    Raises:
        UsageError: one that is none.
    """
    try:
        scales = [float(Fraction(part.strip())) for part in text.split(",")]
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"{option} {text}: expected numbers like 0.5 or 1/4, separated by commas") from None
    return scales


def scale_names(text: str) -> list[str]:
    """The scales as they were written."""
    return [part.strip() for part in text.split(",")]


def slug(*parts: object) -> str:
    """A file name of letters, digits, dots, pluses and dashes."""
    return "_".join(re.sub(r"[^\w.+-]+", "-", str(part)).strip("-") for part in parts)


def demand_within(scales: Sequence[float], low: float, high: float, option: str = "--scales") -> None:
    """Raises UsageError for a scale outside [low, high]."""
    for scale in scales:
        if not low <= scale <= high:
            raise UsageError(f"{option}: {scale:g} is not between {low:g} and {high:g}")
