"""``diffsiam measure-edits``: what edits of Rooms change, read by the oracle, for one model or several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.counterfactual import Choice, Inverted, counterfactual_jobs, counterfactuals, interpolate
from diffsiam.evaluation import editing
from diffsiam.evaluation.fidelity import mse
from diffsiam.evaluation.profile import eval_noise
from diffsiam.sampler import Guide, Sampler
from diffsiam.sampling import Recipe, to_uint8
from engine import screen
from engine.data.rooms import FACTORS, LEVELS, Rooms, render
from engine.edit import fidelity, pushes
from engine.edit.choices import default_subsets, read_choices
from engine.edit.opening import Opened, Precision, open_all
from engine.edit.output import Output
from engine.edit.perceptual import WeightFiles
from engine.edit.pictures import pictures
from engine.edit.reading import probabilities
from engine.errors import UsageError
from engine.oracle import Oracle, load_oracle
from kernels.noise_jump.ref import to_unit_range

NAMES = [factor.name for factor in FACTORS]
SCALES = (0.25, 0.5, 0.75, 1.0)
PROBED, PROBE_TRAIN = 4000, 3000


@dataclass(frozen=True)
class Asked:
    """What the command is told.

    Attributes:
        pairs: of held-out rooms, each edited in both directions.
        pushed: rooms whose attributes are pushed.
        data: of models not trained on rooms, a folder of images to reconstruct.
    """

    runs: list[Path]
    subsets: str | None
    pairs: int
    pushed: int
    data: Path | None
    weights: WeightFiles
    recipe: Recipe
    precision: Precision
    batch: int
    seed: int
    out: Path | None


@dataclass(frozen=True)
class Row:
    """One choice of subsets over all pairs, directions and, for monotonicity, scales; the rest at scale 1."""

    name: str
    assigned: list[str]
    selectivity: float
    success: float  # of the assigned factors, of all where none is assigned
    success_any: float  # of all factors
    monotonicity: float
    side_effect: float


def measure_edits(asked: Asked) -> Path:
    """Selectivity, exchange success, monotonicity, side effects, artefacts, pushes, reconstruction.

    Factors can be read of rooms alone: of other images the reconstruction is measured.

    Raises:
        UsageError: no oracle reads rooms of this size, or nothing says what to reconstruct.
        CheckpointError: see :func:`engine.edit.opening.open_model`.
    """
    asked.weights.check()
    models = open_all(asked.runs, asked.precision)
    readable = asked.data is None and all(_of_rooms(model) for model in models)
    settings = {"seed": asked.seed, "pairs": asked.pairs, "pushed": asked.pushed, "factors": NAMES}
    out = Output("measure-edits", asked.out, models, asked.recipe, settings)
    if not readable:
        screen.line("factors are read of models of rooms only: the reconstruction is all that is measured")
    results = [_of_model(model, asked) if readable else _reconstructed(model, asked) for model in models]
    if readable:
        for model, result in zip(models, results, strict=True):
            _show_rows(model.name, result["rows"])
        _show_rest(models, results)
    fidelity.show([model.name for model in models], [result["reconstruction"] for result in results])
    listed = [
        {key: [vars(v) for v in value] if key in ("rows", "pushes") else value for key, value in r.items()}
        for r in results
    ]
    return out.finish(None, results={m.name: r for m, r in zip(models, listed, strict=True)})


def _of_rooms(model: Opened) -> bool:
    return model.config is not None and model.config.data.source == "rooms"


def _reconstructed(model: Opened, asked: Asked) -> dict[str, Any]:
    shown = pictures(model, [], asked.data, 2 * asked.pairs)
    cost = model.sampler(asked.recipe, asked.batch).cost(len(shown), 2 * len(shown))
    with screen.counting(cost, f"{model.name}: image moves") as tell:
        sampler = model.sampler(asked.recipe, asked.batch, tell)
        images = model.invert(shown.images, sampler, asked.seed)
        return {"reconstruction": fidelity.reconstruction(sampler, images, asked.seed, asked.weights)}


def _of_model(model: Opened, asked: Asked) -> dict[str, Any]:
    config = model.config
    assert config is not None, "checked by the caller"
    rooms = Rooms(model.px, config.seed, config.data.count).held_out(PROBED + 2 * asked.pairs)
    oracle = load_oracle(model.px).to(model.device)
    indices = np.arange(len(rooms))
    levels = torch.from_numpy(rooms.factors(indices)).to(model.device)
    known, shown_levels = levels[:PROBED], levels[PROBED:]
    parts = np.split(indices[:PROBED], range(500, PROBED, 500))
    z = torch.cat([model.enter(torch.from_numpy(rooms.images(part)))[1] for part in parts])
    subsets, choices = _choices(model, asked)
    information = editing.subset_information(z, known, _ends(subsets), LEVELS.tolist(), PROBE_TRAIN)
    with screen.counting(_cost(model, asked, choices), f"{model.name}: image moves") as tell:
        sampler = model.sampler(asked.recipe, asked.batch, tell)
        images = model.invert(torch.from_numpy(rooms.images(indices[PROBED:])), sampler, asked.seed)
        some = Inverted(*(part[: asked.pushed] for part in (images.x_0, images.z, images.x_T)))
        return {
            "rows": _rows(sampler, images, shown_levels, oracle, choices, information, len(subsets)),
            "information": {
                c.name: dict(zip(NAMES, i, strict=True)) for c, i in zip(subsets, information, strict=True)
            },
            "retained": _retained(sampler, images, shown_levels, oracle, asked.seed),
            "artefacts": _artefacts(sampler, images, oracle, asked.pairs),
            "pushes": pushes.measure_pushes(sampler, some, shown_levels, z, known, oracle, asked.seed),
            "reconstruction": fidelity.reconstruction(sampler, images, asked.seed, asked.weights),
        }


def _choices(model: Opened, asked: Asked) -> tuple[list[Choice], list[Choice]]:
    """The subsets asked for, and all choices measured: those, and their controls."""
    n = model.model.subsets
    named = asked.subsets or default_subsets(n.n)
    subsets = read_choices(named, n)
    if any(a.dims.logical_and(b.dims).any() for i, a in enumerate(subsets) for b in subsets[:i]):
        raise UsageError(
            f"--subsets {named}: overlap, so a factor belongs to several; give ranges that do not"
        )
    return subsets, [
        *read_choices(named, n, controls=True, seed=asked.seed),
        *(c for c in read_choices("all,none", n, moves_x_T=False)),
    ]


def _ends(subsets: Sequence[Choice]) -> list[int]:
    ends = [int(choice.dims.nonzero().max()) + 1 for choice in subsets]
    if sum(int(choice.dims.sum()) for choice in subsets) != ends[-1] or ends != sorted(ends):
        raise UsageError("--subsets: give ranges in order that leave nothing out before the last of them")
    return ends


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(2 * i, 2 * i + 1) for i in range(count)]


def _cost(model: Opened, asked: Asked, choices: list[Choice]) -> int:
    edits = len(counterfactual_jobs(_pairs(asked.pairs), choices, [0.0, *SCALES]).needed()[0])
    again = 14 * asked.pairs  # reconstructions and interpolations
    pushed = min(asked.pushed, 2 * asked.pairs) * pushes.edits_per_image()
    return model.sampler(asked.recipe, asked.batch).cost(2 * asked.pairs, edits + again + pushed)


def _rows(
    sampler: Sampler,
    images: Inverted,
    levels: Tensor,
    oracle: Oracle,
    choices: list[Choice],
    information: np.ndarray,
    count: int,
) -> list[Row]:
    pairs = _pairs(len(images.z) // 2)
    found = counterfactuals(sampler, images, pairs, choices, [0.0, *SCALES])  # (P, 2, C, 5, 3, px, px)
    read = probabilities(oracle, found.flatten(0, 3)).unflatten(0, found.shape[:4])
    own = read[:, :, 0, 0].flatten(0, 1)  # (2 P, K, L): scale 0 is the reconstruction
    other = own.view(len(pairs), 2, *own.shape[1:]).flip(1).flatten(0, 1)
    mine = levels
    theirs = levels.view(len(pairs), 2, -1).flip(1).flatten(0, 1)
    differ = mine != theirs
    owner = torch.from_numpy(information.argmax(axis=0)).to(levels.device)
    rows = []
    for c, choice in enumerate(choices):
        path = read[:, :, c].flatten(0, 1)  # (2 P, 5, K, L)
        edited = path[:, -1]
        assigned = owner == c if c < count else _assigned_like(choice, choices[:count], owner)
        success = editing.exchange_success(edited, own, other, theirs, differ)
        to_other = path.gather(-1, theirs[:, None, :, None].expand(-1, path.shape[1], -1, 1))[..., 0]
        steady = torch.where(differ, editing.monotonicity(to_other.transpose(0, 1)), torch.nan)
        chosen = assigned if assigned.any() else torch.ones_like(assigned)
        aside = editing.side_effect(edited, own, ~differ & ~assigned)
        rows.append(
            Row(
                choice.name if choice.moves_x_T or "fixed" in choice.name else f"{choice.name}, x_T fixed",
                [name for name, held in zip(NAMES, assigned.tolist(), strict=True) if held],
                editing.selectivity(editing.change(edited, own), assigned)
                if assigned.any()
                else float("nan"),
                float(success[:, chosen].nanmean()),
                float(success.nanmean()),
                float(steady[:, chosen].nanmean()),
                float(aside.nanmean()),
            )
        )
    return rows


def _assigned_like(choice: Choice, subsets: list[Choice], owner: Tensor) -> Tensor:
    """The factors of the subset whose dimensions a control has; none for other controls."""
    for c, subset in enumerate(subsets):
        if torch.equal(choice.dims, subset.dims):
            return owner == c
    return torch.zeros_like(owner, dtype=torch.bool)


def _retained(
    sampler: Sampler, images: Inverted, levels: Tensor, oracle: Oracle, seed: int
) -> dict[str, float]:
    """Share of an image's own factors that are read from its z with fresh x_T, and from another's z with its
    own x_T: what z holds, and what x_T does.
    """
    drawn = eval_noise(seed, torch.arange(len(levels), device=levels.device), *images.x_0.shape[2:])
    swapped = images.z.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    made = {
        "own z, own x_T": (images.x_T, images.z),
        "own z, random x_T": (drawn, images.z),
        "the other's z, own x_T": (images.x_T, swapped),
    }
    return {
        name: float((oracle.read(sampler.sample(x_T, Guide(z))) == levels).double().mean())
        for name, (x_T, z) in made.items()
    }


def _artefacts(sampler: Sampler, images: Inverted, oracle: Oracle, pairs: int) -> dict[str, float]:
    """|x_hat - render(h(x_hat))|^2 per pixel in [0, 1]: what no room looks like. Of the originals it is what
    the oracle misreads.
    """
    both = _pairs(pairs)
    return {
        "originals": _residual(images.x_0, oracle),
        "reconstructions": _residual(sampler.sample(images.x_T, Guide(images.z)), oracle),
        "midpoints": _residual(interpolate(sampler, images, both, [0.5])[:, 0], oracle),
        "midpoints, trajectory": _residual(
            interpolate(sampler, images, both, [0.5], trajectory=True)[:, 0], oracle
        ),
    }


def _residual(x: Tensor, oracle: Oracle) -> float:
    rooms = torch.from_numpy(render(oracle.read(x).cpu().numpy(), x.shape[-1])).to(x.device)
    return float(mse(to_unit_range(to_uint8(x)), to_unit_range(rooms)).mean())


def _show_rows(name: str, rows: list[Row]) -> None:
    columns = ["S", "factors assigned", "selectivity", "success", "of all", "monotonicity", "side effects"]
    screen.table(
        columns,
        [
            [
                row.name,
                ", ".join(row.assigned).replace("_", " ") or "-",
                *(_told(v) for v in (row.selectivity, row.success, row.success_any)),
                _told(row.monotonicity),
                _told(row.side_effect),
            ]
            for row in rows
        ],
        f"{name}: one room with S of another's z at scale 1 (the way there: monotonicity)",
    )


def _show_rest(models: list[Opened], results: list[dict[str, Any]]) -> None:
    heads = [model.name for model in models]
    artefacts = [[key, *(_told(r["artefacts"][key], 5) for r in results)] for key in results[0]["artefacts"]]
    screen.table(["images", *heads], artefacts, "Distance from the nearest room (MSE of pixels in [0, 1])")
    kept = [[key, *(_told(r["retained"][key]) for r in results)] for key in results[0]["retained"]]
    screen.table(["decoded from", *heads], kept, "Share of an image's factors still read from it")
    pushes.show(heads, [result["pushes"] for result in results])


def _told(value: float, digits: int = 2) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
