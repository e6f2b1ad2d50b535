"""``diffsiam manipulate``: attributes of images, more and less (Algorithm 3; Fig. 4.5, 4.6 and 4.7)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffsiam.manipulation import Classifier, Unit, fit_classifier, in_thesis_units, manipulate
from diffsiam.probmask import EXACT, PUBLISHED
from diffsiam.sampling import Recipe
from engine import screen
from engine.data.fetching import fetch
from engine.data.sources import Source
from engine.edit.attributes import Labels, read_labels
from engine.edit.choices import read_scales, scale_names, slug
from engine.edit.opening import Opened, Precision, open_all, training_images
from engine.edit.output import Output
from engine.edit.pictures import Pictures, labelled_images, pictures, pixels
from engine.errors import UsageError
from engine.sheet import sheet

CHUNK = 1024  # images encoded at once


@dataclass(frozen=True)
class Asked:
    """What the command is told; see :class:`engine.edit.mixing.Asked` for what both have.

    Attributes:
        attributes: see :func:`engine.edit.attributes.read_labels`.
        dims: d', "all", or a number.
        published: ProbMask as published, with a drawn mask, in place of exact top-d' and a refit.
        unit: of the scales: "thesis" (lambda sigma w / |w|) or "code" (times sqrt(d)).
        samples: labelled images to learn from, 0: all.
    """

    runs: list[Path]
    images: list[str]
    data: Path | None
    labels: Path | None
    attributes: list[str]
    dims: str
    published: bool
    scales: str
    unit: Unit
    samples: int
    count: int
    recipe: Recipe
    precision: Precision
    batch: int
    seed: int
    out: Path | None


def manipulation(asked: Asked) -> Path:
    """Learn a classifier of each attribute and push images along it; returns the folder.

    Raises:
        UsageError, DataError, CheckpointError: see :mod:`engine.errors`.
    """
    models = open_all(asked.runs, asked.precision)
    scales = read_scales(asked.scales)
    shown = pictures(models[0], asked.images, asked.data, asked.count)
    source = training_images(models[0], asked.data)
    labels = read_labels(source, labelled_images(source, asked.samples), asked.attributes, asked.labels)
    settings: dict[str, Any] = {
        "seed": asked.seed,
        "scales": asked.scales,
        "unit": asked.unit,
        "dims": asked.dims,
        "probmask": "published" if asked.published else "exact",
        "learned_from": len(labels.indices),
        "originals": shown.names,
    }
    out = Output("manipulate", asked.out, models, asked.recipe, settings)
    for i, image in enumerate(shown.images.numpy()):
        out.add(f"original{i}", image, image=shown.names[i])
    _say(models, asked, shown, labels)
    edits, learned = [], []
    for model in models:
        z = features(model, source, labels.indices)
        classifiers = learn(model, z, labels, asked.dims, asked.published, asked.seed)
        learned.append(_record(model, classifiers, labels.names, scales, asked))
        total = len(shown) * (len(labels.names) * sum(s != 0 for s in scales) + (0 in scales))
        cost = model.sampler(asked.recipe, asked.batch).cost(len(shown), total)
        with screen.counting(cost, f"{model.name}: image moves") as tell:
            sampler = model.sampler(asked.recipe, asked.batch, tell)
            images = model.invert(shown.images, sampler, asked.seed)
            found = manipulate(sampler, images, classifiers, scales, asked.unit)
        edits.append(pixels(found))
        for i, c, k in np.ndindex(edits[-1].shape[:3]):
            what = {"model": model.name, "attribute": labels.names[c], "scale": scales[k]}
            name = slug(model.name, f"image{i}", labels.names[c], f"{scales[k]:+g}")
            out.add(name, edits[-1][i, c, k], **what, image=shown.names[i])
    figure = manipulation_sheet(
        shown.images.numpy(),
        edits,
        [title(model, asked.dims) for model in models],
        labels.names,
        scales,
        scale_names(asked.scales),
        asked.unit,
    )
    return out.finish(figure, classifiers=learned)


def manipulation_sheet(
    images: np.ndarray,
    edits: list[np.ndarray],
    names: list[str],
    attributes: list[str],
    scales: list[float],
    scale_titles: list[str],
    unit: str,
) -> Image.Image:
    """Fig. 4.5 and 4.6: a group of columns for each model with the original in its centre, a row an image.

    Scale 0 is where the original stands; without one it is put between the negative and the positive scales.

    Args:
        images: (N, px, px, 3) uint8.
        edits: of each model, (N, attributes, scales, px, px, 3) uint8.
    """
    order = np.argsort(scales, kind="stable")
    shown = [int(k) for k in order if scales[k] != 0]
    centre = sum(scales[k] < 0 for k in shown)
    rows: list[np.ndarray] = []
    framed, titles = [], []
    for c, attribute in enumerate(attributes):
        for i, image in enumerate(images):
            groups = [
                np.concatenate((made[i, c, shown[:centre]], image[None], made[i, c, shown[centre:]]))
                for made in edits
            ]
            framed += [(len(rows), m * (len(shown) + 1) + centre) for m in range(len(edits))]
            rows.append(np.concatenate(groups))
            titles.append(attribute.replace("_", " ") if i == 0 else "")
    columns = [scale_titles[k] for k in shown]
    columns.insert(centre, "original")
    return sheet(
        np.stack(rows),
        titles,
        columns * len(edits),
        f"Attributes, less and more (scales in the {unit}'s unit)",
        framed=framed,
        groups=(len(images), len(columns)),
        group_titles=names,
    )


def features(model: Opened, source: Source, indices: np.ndarray) -> Tensor:
    """z (N, d) of images of a source."""
    parts = np.split(indices, range(CHUNK, len(indices), CHUNK))
    with screen.counting(len(indices), f"{model.name}: encoding images") as tell:
        found = []
        for part in parts:
            found.append(model.enter(torch.from_numpy(fetch(source, model.px, part)))[1])
            tell(len(part))
    return torch.cat(found)


def learn(
    model: Opened, z: Tensor, labels: Labels, dims: str, published: bool = False, seed: int = 0
) -> list[Classifier]:
    """A classifier of every attribute from the features z (N, d) of the labelled images.

    Raises:
        UsageError: an attribute is true of all or none of them, or ``dims`` cannot be.
    """
    kept, recipe = _kept(dims, model), PUBLISHED if published else EXACT
    found = []
    for name, y in zip(labels.names, torch.from_numpy(labels.values.T.copy()), strict=True):
        try:
            found.append(fit_classifier(z, y.to(z.device), kept, recipe, seed))
        except ValueError as error:
            raise UsageError(f"--attribute {name}: {error}") from error
        if found[-1].kept == 0:
            raise UsageError(f"--attribute {name}: the mask drawn keeps no dimension; use another --seed")
    return found


def _kept(dims: str, model: Opened) -> int | None:
    d = model.model.subsets.ends[-1]
    if dims == "all":
        return None
    if not dims.isdecimal() or not 1 <= int(dims) <= d:
        raise UsageError(f'--dims {dims}: expected "all" or a number from 1 to {d}, the size of z')
    return int(dims)


def title(model: Opened, dims: str) -> str:
    """What stands above a model's columns of the sheet."""
    d = model.model.subsets.ends[-1]
    return f"{model.name}, d' = {f'{d} (all)' if dims == 'all' else f'{dims} of {d}'}"


def _record(
    model: Opened, classifiers: list[Classifier], names: list[str], scales: list[float], asked: Asked
) -> dict[str, Any]:
    d = model.model.subsets.ends[-1]
    return {
        "model": model.name,
        "thesis_scales": [in_thesis_units(scale, asked.unit, d) for scale in scales],
        "attributes": {
            name: {
                "dims": c.weight.nonzero()[:, 0],
                "weights": c.weight[c.weight != 0],
                "bias": float(c.bias),
            }
            for name, c in zip(names, classifiers, strict=True)
        },
    }


def _say(models: list[Opened], asked: Asked, shown: Pictures, labels: Labels) -> None:
    kind = "drawn mask, as published" if asked.published else "largest, refitted"
    screen.block(
        [
            *((model.name, str(model.path)) for model in models),
            ("images", ", ".join(shown.names)),
            ("attributes", ", ".join(labels.names)),
            ("classifier", f"{len(labels.indices):,} labelled images, d' = {asked.dims} ({kind})"),
            ("scales", f"{asked.scales} in the {asked.unit}'s unit"),
            ("device", f"{models[0].model.device}, {models[0].autocast or 'float32'}"),
        ],
        "edits",
    )
