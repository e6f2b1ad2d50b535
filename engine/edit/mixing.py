"""``diffsiam counterfactual`` and ``diffsiam interpolate``: figures of two images mixed (Algorithm 2)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from diffsiam.counterfactual import Choice, counterfactual_jobs, counterfactuals, interpolate
from diffsiam.sampler import Sampler
from diffsiam.sampling import Recipe
from engine import screen
from engine.edit.choices import default_subsets, demand_within, read_choices, read_scales, scale_names, slug
from engine.edit.opening import Opened, Precision, open_all
from engine.edit.output import Output
from engine.edit.pictures import Pictures, pairs_of, pictures, pixels
from engine.sheet import sheet


@dataclass(frozen=True)
class Asked:
    """What both commands are told.

    Attributes:
        runs: one model, or several for a comparison.
        images: paths or numbers; every two make a pair.
        data: folder of images that numbers count; None: what the first model was trained on.
        pairs: how many pairs where no image is named.
        fixed_x_T: x_T stays the image's own.
    """

    runs: list[Path]
    images: list[str]
    data: Path | None
    pairs: int
    scales: str
    fixed_x_T: bool
    recipe: Recipe
    precision: Precision
    batch: int
    seed: int
    out: Path | None


def counterfactual(asked: Asked, subsets: str | None, controls: bool) -> Path:
    """Algorithm 2 for all pairs, subsets and scales, laid out as Fig. 4.1 and 4.2; returns the folder.

    Raises:
        UsageError, DataError, CheckpointError: see :mod:`engine.errors`.
    """
    models = open_all(asked.runs, asked.precision)
    scales = read_scales(asked.scales)
    demand_within(scales, 0, 1)
    named = subsets or default_subsets(models[0].model.subsets.n)
    shown = pictures(models[0], asked.images, asked.data, 2 * asked.pairs)
    pairs = pairs_of(shown)
    choices = [
        read_choices(named, model.model.subsets, controls, asked.seed, not asked.fixed_x_T)
        for model in models
    ]
    out = _output("counterfactual", asked, models, shown, {"subsets": named, "controls": controls})
    _say(models, asked, shown, f"{len(choices[0])} choices of subsets ({named}), scales {asked.scales}")
    edits, passes = [], []
    for model, chosen in zip(models, choices, strict=True):
        jobs = counterfactual_jobs(pairs, chosen, scales).needed()[0]
        made, spent = _run(
            model,
            asked,
            shown,
            len(jobs),
            lambda s, i, chosen=chosen: counterfactuals(s, i, pairs, chosen, scales),
        )
        edits.append(made)
        passes.append(spent)
    for model, made, chosen in zip(models, edits, choices, strict=True):
        for p, direction, c, k in np.ndindex(made.shape[:4]):
            a, b = pairs[p][:: -1 if direction else 1]
            what = {"model": model.name, "subset": chosen[c].name, "scale": scales[k]}
            name = slug(model.name, f"pair{p}", "ba" if direction else "ab", chosen[c].name, f"{scales[k]:g}")
            out.add(name, made[p, direction, c, k], **what, image=shown.names[a], towards=shown.names[b])
    figure = counterfactual_sheet(
        shown.images.numpy(),
        pairs,
        edits,
        [model.name for model in models],
        choices[0],
        scale_names(asked.scales),
    )
    return out.finish(figure, passes=passes)


def counterfactual_sheet(
    images: np.ndarray,
    pairs: list[tuple[int, int]],
    edits: list[np.ndarray],
    names: list[str],
    choices: list[Choice],
    scales: list[str],
) -> Image.Image:
    """Fig. 4.1 and 4.2: for each S and model two rows, x_0 at the upper left, x_0' at the lower right.

    The upper row goes from x_0 towards x_0' from left to right, the lower one from x_0' towards x_0 from
    right to left.

    Args:
        images: (N, px, px, 3) uint8.
        edits: of each model, (pairs, 2, choices, scales, px, px, 3) uint8.
    """
    width = len(scales) + 1
    rows: list[np.ndarray] = []
    titles, framed = [], []
    for c, choice in enumerate(choices):
        for m, name in enumerate(names):
            upper, lower = [], []
            for p, (a, b) in enumerate(pairs):
                upper += [images[a], *edits[m][p, 0, c]]
                lower += [*edits[m][p, 1, c][::-1], images[b]]
                framed += [(len(rows), p * width), (len(rows) + 1, (p + 1) * width - 1)]
            rows += [np.stack(upper), np.stack(lower)]
            label = f"{choice.name}  {name}" if len(names) > 1 else choice.name
            titles += [f"{label}  a", "b"]
    forth, back = ["a", *scales], [*scales[::-1], "b"]
    columns = [f"{upper} | {lower}" for upper, lower in zip(forth, back, strict=True)] * len(pairs)
    return sheet(
        np.stack(rows),
        titles,
        columns,
        "Counterfactuals: a with subsets of b (upper row), b with those of a (lower row, from the right)",
        framed=framed,
        groups=(2 * len(names), width),
    )


def interpolation(asked: Asked, trajectory: bool) -> Path:
    """All of z from one image of a pair to the other, laid out as Fig. 4.3 and 4.4; returns the folder.

    Raises:
        UsageError, DataError, CheckpointError: see :mod:`engine.errors`.
    """
    models = open_all(asked.runs, asked.precision)
    scales = read_scales(asked.scales)
    demand_within(scales, 0, 1)
    shown = pictures(models[0], asked.images, asked.data, 2 * asked.pairs)
    pairs = pairs_of(shown)
    out = _output("interpolate", asked, models, shown, {"trajectory": trajectory})
    kind = "guidance blended at every step (trajectory)" if trajectory else "z interpolated"
    _say(models, asked, shown, f"{kind}, scales {asked.scales}")
    edits, passes = [], []
    for model in models:
        made, spent = _run(
            model,
            asked,
            shown,
            len(pairs) * len(set(scales)),
            lambda s, i: interpolate(s, i, pairs, scales, trajectory, not asked.fixed_x_T),
        )
        edits.append(made)
        passes.append(spent)
        for p, k in np.ndindex(made.shape[:2]):
            a, b = pairs[p]
            what = {"model": model.name, "scale": scales[k], "image": shown.names[a]}
            out.add(
                slug(model.name, f"pair{p}", f"{scales[k]:g}"), made[p, k], **what, towards=shown.names[b]
            )
    return out.finish(
        interpolation_sheet(
            shown.images.numpy(), pairs, edits, models, scale_names(asked.scales), trajectory
        ),
        passes=passes,
    )


def interpolation_sheet(
    images: np.ndarray,
    pairs: list[tuple[int, int]],
    edits: list[np.ndarray],
    models: list[Opened],
    scales: list[str],
    trajectory: bool = False,
) -> Image.Image:
    """Fig. 4.3 and 4.4: one row a model under each other for every pair, between the two originals."""
    rows = [
        np.concatenate((images[[a]], made[p], images[[b]]))
        for p, (a, b) in enumerate(pairs)
        for made in edits
    ]
    last = len(scales) + 1
    return sheet(
        np.stack(rows),
        [model.name for _ in pairs for model in models] if len(models) > 1 else (),
        ["a", *scales, "b"],
        f"Interpolation of all of z from a to b{', guidance blended at every step' if trajectory else ''}",
        framed=[(row, column) for row in range(len(rows)) for column in (0, last)],
        groups=(len(models), 0),
    )


def _run(model: Opened, asked: Asked, shown: Pictures, count: int, make: Any) -> tuple[np.ndarray, Any]:
    """Edits as uint8 (..., px, px, 3), and the passes that they took."""
    total = model.sampler(asked.recipe, asked.batch).cost(len(shown), count)
    with screen.counting(total, f"{model.name}: image moves") as tell:
        sampler: Sampler = model.sampler(asked.recipe, asked.batch, tell)
        found: Tensor = make(sampler, model.invert(shown.images, sampler, asked.seed))
    return pixels(found), asdict(sampler.passes)


def _output(
    command: str, asked: Asked, models: list[Opened], shown: Pictures, more: dict[str, Any]
) -> Output:
    settings = {"seed": asked.seed, "scales": asked.scales, "fixed_x_T": asked.fixed_x_T, **more}
    out = Output(command, asked.out, models, asked.recipe, {**settings, "originals": shown.names})
    for i, image in enumerate(shown.images.numpy()):
        out.add(f"original{i}", image, image=shown.names[i])
    return out


def _say(models: list[Opened], asked: Asked, shown: Pictures, what: str) -> None:
    r = asked.recipe
    rows = [(model.name, f"{model.path}, z in {model.model.subsets.n} subsets") for model in models]
    rows += [
        ("images", ", ".join(shown.names)),
        ("edits", what),
        (
            "moves",
            f"{r.inversion_moves} up, {r.moves} down, {r.spacing}, guidance {r.scale:g} x {r.coefficient}",
        ),
        ("masks, x_T", f"{r.mask}, {r.x_T}{', fixed' if asked.fixed_x_T else ''}"),
        ("device", f"{models[0].model.device}, {models[0].autocast or 'float32'}"),
    ]
    screen.block(rows, "edits")
