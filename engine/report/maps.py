"""Factor maps: which subset holds which attribute, as a table whose cells are shaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.report.reading import Run
from engine.report.told import number, share, words

CONTROLS = 5  # rows of the swap test after those of the subsets


@dataclass(frozen=True)
class Cell:
    """A number as it is written, and its shade from 0 to 1."""

    text: str
    shade: float


@dataclass(frozen=True)
class Map:
    """One table.

    Attributes:
        rows: name, remark, cells.
        split: number of rows that are subsets; the others are what they are compared with.
    """

    title: str
    note: str
    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    split: int


def maps(run: Run) -> list[Map]:
    """All that were measured, what subsets move before what they know."""
    return [*_moved(run), *_known(run), *_labelled(run)]


def _moved(run: Run) -> Iterator[Map]:
    causal = (run.evaluation or {}).get("causal")
    if not causal:
        return
    n = len(causal["rows"]) - CONTROLS
    alive = {live["subset"]: words(live["factor"]) for live in causal["live"]}
    rows = []
    for i, (name, success) in enumerate(zip(causal["rows"], causal["success"], strict=True)):
        remark = (f"moves {alive[i + 1]}" if i + 1 in alive else "dead") if i < n else ""
        rows.append((name, remark, [Cell(share(v), v or 0.0) for v in success]))
    yield Map(
        "What each subset moves",
        "Chance that a factor becomes the other room's when this part of z is swapped, fine factors left, "
        f"coarse ones right ({causal['pairs']} pairs of held-out rooms, guidance scale "
        f"{causal['guidance_scale']:g}). The row none swaps nothing: it shows what decoding alone does.",
        [words(name) for name in run.evaluation["factors"]] if run.evaluation else [],
        rows,
        n,
    )


def _known(run: Run) -> Iterator[Map]:
    suite = ((run.results or {}).get("results") or {}).get("disentanglement")
    if not suite or not suite.get("subset_information"):
        return
    table, names = suite["subset_information"], list(suite["probe"])
    largest = max((v for row in table for v in row if v is not None), default=1.0) or 1.0
    yield Map(
        "What each subset knows",
        "Information that a linear reader takes from this subset alone, in nats (diffsiam evaluate). A "
        "subset may know what the decoder never takes from it: the map above says what it does.",
        [words(name) for name in names],
        [
            (f"subset {i}", "", [Cell(number(v, "", 2), (v or 0.0) / largest) for v in row])
            for i, row in enumerate(table, start=1)
        ],
        len(table),
    )


def _labelled(run: Run) -> Iterator[Map]:
    found = run.label_map
    if not found:
        return
    chance = found["chance"]
    rows = [
        (name, "", [Cell(share(v), _above(v, c)) for v, c in zip(values, chance, strict=True)])
        for name, values in zip(found["rows"], found["accuracy"], strict=True)
    ]
    rows.append(("chance", "", [Cell(share(v), 0.0) for v in chance]))
    yield Map(
        "What each subset knows of the labels",
        f"Balanced accuracy of a linear reader of this subset alone ({found['train']:,} images to learn "
        f"from, {found['test']:,} to test): what a subset knows, not what the decoder takes from it.",
        [words(name) for name in found["labels"]],
        rows,
        len(rows) - 2,
    )


def _above(value: float | None, chance: float) -> float:
    return max(0.0, ((value or 0.0) - chance) / (1 - chance))
