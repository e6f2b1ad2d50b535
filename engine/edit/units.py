"""The rows of a map that can be clicked: subsets, or ranges of them where there are many."""

from __future__ import annotations

from collections.abc import Sequence

UNITS = 8


def units_of(n: int, most: int = UNITS) -> list[str]:
    """Ranges "a-b" (half-open, from 0) of n subsets, of about equal length, none left out."""
    count = min(n, most)
    ends = [n * i // count for i in range(count + 1)]
    return [f"{a}-{b}" for a, b in zip(ends[:-1], ends[1:], strict=True)]


def unit_name(unit: str) -> str:
    """A range as people count subsets."""
    first, end = ends_of(unit)
    return f"subset {end}" if end == first + 1 else f"subsets {first + 1} to {end}"


def union_of(units: Sequence[str], chosen: Sequence[int]) -> str:
    """Some of the ranges as one S, as ``--subsets`` has it."""
    if not chosen:
        return "none"
    return "all" if len(chosen) == len(units) else "+".join(units[i] for i in chosen)


def ends_of(unit: str) -> tuple[int, int]:
    """The two numbers of a range."""
    first, end = unit.split("-")
    return int(first), int(end)
