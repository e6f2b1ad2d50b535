"""The latent explorer's pictures, made before anybody asks: pairs x subsets x scales, and attribute sliders.

``RUN/report/explorer.json`` says what each tile of ``explorer.png`` is; the page of the report shows them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.counterfactual import Choice, Inverted, counterfactual_jobs, counterfactuals
from diffsiam.manipulation import fit_classifier, manipulate
from diffsiam.sampler import Sampler
from diffsiam.sampling import Recipe
from diffsiam.subsets import Subsets
from engine import screen
from engine.data.rooms import FACTORS
from engine.data.rooms_source import RoomsSource
from engine.data.source import Source
from engine.edit.attributes import Labels, read_labels
from engine.edit.choices import read_choices, read_scales, scale_names
from engine.edit.manipulation import features
from engine.edit.opening import Opened, open_model, training_images
from engine.edit.pictures import labelled_images, pictures, pixels, unseen
from engine.edit.units import union_of, units_of
from engine.plain_json import write_json
from engine.report.explorer import INDEX, TILES
from engine.report.tiles import Tiles
from engine.sheet import save

PAIRS = 3
SCALES = "0,1/4,1/2,3/4,1"
PUSHES = "-1,-1/2,0,1/2,1"  # in published code's unit
COMBINED = 4  # units up to which every combination is made, beyond each by itself
ATTRIBUTES = 12
LEARNT_FROM = 3000
UP, DOWN = 50, 25
BATCH = 64
CPU_LARGEST_PX = 32  # above it a CPU would take hours


@dataclass(frozen=True)
class Lattice:
    """Which edits are made.

    Attributes:
        units: ranges of subsets "a-b" as the command line has them, in order, none left out.
        choices: which units are taken together, as numbers of them.
    """

    units: list[str]
    choices: list[tuple[int, ...]]

    @classmethod
    def of(cls, n: int) -> Lattice:
        """For n subsets."""
        units = units_of(n)
        count = len(units)
        sizes = range(count + 1) if count <= COMBINED else (0, 1, count)
        return cls(units, [chosen for size in sizes for chosen in combinations(range(count), size)])

    def named(self, chosen: tuple[int, ...]) -> str:
        """As ``--subsets`` has it."""
        return union_of(self.units, chosen)

    def read(self, subsets: Subsets, moves_x_T: bool) -> list[Choice]:
        """S of every choice."""
        names = ",".join(self.named(chosen) for chosen in self.choices)
        return read_choices(names, subsets, moves_x_T=moves_x_T)


def is_affordable(px: int, device: torch.device) -> bool:
    """Whether a run makes it unasked."""
    return device.type == "cuda" or px <= CPU_LARGEST_PX


def render(run_dir: Path, guidance_scale: float) -> Path:
    """Make the tiles of a run; returns the index.

    Raises:
        UsageError, CheckpointError, DataError: see :func:`engine.edit.opening.open_model`.
    """
    opened = open_model(run_dir)
    lattice, recipe = Lattice.of(opened.model.subsets.n), Recipe(UP, DOWN, scale=guidance_scale)
    numbers = unseen(opened, None, 2 * PAIRS)
    shown = pictures(opened, [str(number) for number in numbers], None, 0)
    source = training_images(opened, None)
    labels = _labels(source)
    ends = [(2 * i, 2 * i + 1) for i in range(PAIRS)]
    with screen.counting(_cost(opened, recipe, lattice, ends, labels), "explorer: image moves") as tell:
        sampler = opened.sampler(recipe, BATCH, tell)
        images = opened.invert(shown.images, sampler, seed=0)
        exchanged = _exchanged(sampler, images, ends, lattice, opened.model.subsets)
        pushed = None if labels is None else _pushed(sampler, images, opened, source, labels)

    tiles = Tiles(opened.px)
    index: dict[str, Any] = {
        "px": opened.px,
        "originals": tiles.add_all(shown.images.numpy()),
        "names": shown.names,
        "numbers": numbers,
        "pairs": ends,
        "units": lattice.units,
        "choices": lattice.choices,
        "named": [lattice.named(chosen) for chosen in lattice.choices],
        "scales": scale_names(SCALES),
        "exchanged": tiles.add_all(pixels(exchanged)),
        "attributes": labels.names if labels else [],
        "pushes": scale_names(PUSHES),
        "pushed": [] if pushed is None else tiles.add_all(pixels(pushed)),
        "moves": [UP, DOWN],
        "guidance_scale": guidance_scale,
        "learnt_from": LEARNT_FROM,
        **opened.origin,
    }
    index["columns"] = tiles.columns
    report = run_dir / "report"
    save(tiles.picture(), report / TILES)
    write_json(report / INDEX, index)
    screen.line(f"written: {report / INDEX}, {len(tiles)} different images")
    return report / INDEX


def _cost(
    opened: Opened, recipe: Recipe, lattice: Lattice, ends: Sequence[tuple[int, int]], labels: Labels | None
) -> int:
    scales, subsets = read_scales(SCALES), opened.model.subsets
    edits = sum(
        len(counterfactual_jobs(ends, lattice.read(subsets, moves), scales).needed()[0])
        for moves in (False, True)
    )
    pushes = 0 if labels is None else len(ends) * (1 + len(labels.names) * (len(read_scales(PUSHES)) - 1))
    return opened.sampler(recipe, BATCH).cost(2 * len(ends), edits + pushes)


def _labels(source: Source) -> Labels | None:
    """Those that come with the images; of many, those that halve them best."""
    indices = labelled_images(source, LEARNT_FROM)
    if isinstance(source, RoomsSource):
        labels = read_labels(source, indices, [factor.name for factor in FACTORS], None)
    elif source.attributes is not None:
        labels = Labels(list(source.attribute_names), indices, source.attributes[indices].astype(bool))
    else:
        return None
    means = labels.values.mean(axis=0)
    halved = np.argsort(np.abs(means - 0.5), kind="stable")[:ATTRIBUTES]
    kept = [i for i in sorted(halved.tolist()) if 0 < means[i] < 1]
    return Labels([labels.names[i] for i in kept], indices, labels.values[:, kept]) if kept else None


def _exchanged(
    sampler: Sampler, images: Inverted, ends: Sequence[tuple[int, int]], lattice: Lattice, subsets: Subsets
) -> Tensor:
    """(pairs, 2 directions, choices, 2: x_T fixed and moved, scales, 3, px, px)."""
    scales = read_scales(SCALES)
    found = [
        counterfactuals(sampler, images, ends, lattice.read(subsets, moves), scales)
        for moves in (False, True)
    ]
    return torch.stack(found, dim=3)


def _pushed(sampler: Sampler, images: Inverted, opened: Opened, source: Source, labels: Labels) -> Tensor:
    """(images, attributes, pushes, 3, px, px) of the first image of every pair."""
    z = features(opened, source, labels.indices)
    y = torch.from_numpy(labels.values.T.copy()).to(z.device)
    classifiers = [fit_classifier(z, one) for one in y]
    first = Inverted(images.x_0[::2], images.z[::2], images.x_T[::2])
    return manipulate(sampler, first, classifiers, read_scales(PUSHES), "code")
