"""Which subset knows which label: a linear reader of each subset alone, for any two-valued labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsiam.evaluation.probe import fit_probe
from engine import screen
from engine.data.source import Source
from engine.edit.attributes import Labels, read_labels, read_table
from engine.edit.choices import read_choices
from engine.edit.manipulation import features
from engine.edit.opening import Opened, open_model, training_images
from engine.edit.pictures import labelled_images
from engine.edit.units import unit_name, units_of
from engine.errors import UsageError
from engine.plain_json import write_json

FILE = "label_map.json"
SAMPLES = 4000
TRAIN = 0.75


def measure_labels(run_dir: Path, file: Path | None, data: Path | None = None) -> Path:
    """Read every label from every subset (or range of them) of a run, and write ``report/label_map.json``.

    Args:
        file: CSV or CelebA's list, see :func:`engine.edit.attributes.read_labels`; None: the labels that
            come with the images.
        data: folder of the labelled images; None: what the run was trained on.

    Raises:
        UsageError: there are no labels, or too few images have them.
    """
    opened = open_model(run_dir)
    source = training_images(opened, data)
    labels = labels_of(source, labelled_images(source, SAMPLES), file)
    cut = int(TRAIN * len(labels.indices))
    halves = labels.values[:cut], labels.values[cut:]
    kept = [k for k in range(len(labels.names)) if all(_varies(half[:, k]) for half in halves)]
    if not kept:
        raise UsageError(f"--labels: {len(labels.indices)} images are labelled, none of them differently")
    z, y = features(opened, source, labels.indices), torch.from_numpy(labels.values[:, kept]).long()
    record = {
        "labels": [labels.names[k] for k in kept],
        "train": cut,
        "test": len(y) - cut,
        "chance": [0.5] * len(kept),
        **_accuracies(opened, z, y.to(z.device), cut),
    }
    path = run_dir / "report" / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    screen.line(f"written: {path}")
    return path


def come_with(source: Source) -> bool:
    """Whether images have attributes of their own that are no factors of rooms."""
    return source.attributes is not None


def labels_of(source: Source, indices: np.ndarray, file: Path | None) -> Labels:
    """All labels of images, of a file or as they come with the set.

    Raises:
        UsageError: there are none.
    """
    if file is not None:
        return read_labels(source, indices, read_table(file)[0], file)
    if source.attributes is None:
        raise UsageError(f"{source.describe()}: has no attributes; give --labels FILE")
    return Labels(list(source.attribute_names), indices, source.attributes[indices].astype(bool))


def _accuracies(opened: Opened, z: Tensor, y: Tensor, cut: int) -> dict[str, Any]:
    subsets = opened.model.subsets
    units = units_of(subsets.n)
    choices = read_choices(",".join(units), subsets)
    parts = [(unit_name(unit), choice.dims) for unit, choice in zip(units, choices, strict=True)]
    parts.append(("all of z", torch.ones(z.shape[1], dtype=torch.bool)))
    rows = []
    for _, dims in parts:
        probe = fit_probe(z[:cut, dims], y[:cut], [2] * y.shape[1])
        rows.append(_balanced(probe.predict(z[cut:, dims]), y[cut:]))
    return {"rows": [name for name, _ in parts], "accuracy": rows}


def _balanced(found: Tensor, y: Tensor) -> list[float]:
    """Mean over the two values of the share of images whose value is found, for each label."""
    right = found == y
    shares = [(right & (y == value)).sum(dim=0) / (y == value).sum(dim=0) for value in (0, 1)]
    return ((shares[0] + shares[1]) / 2).tolist()


def _varies(values: np.ndarray) -> bool:
    return bool(values.any() and not values.all())
