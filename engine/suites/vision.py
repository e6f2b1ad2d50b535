"""The ten data sets of thesis Table 4.1, from where torchvision's downloads lie; nothing is fetched.

Images are resized (shorter side, bicubic) and cropped at the centre. Splits are the official ones; where
there is none (Caltech), or the files do not say (SUN397), ours are fixed by a seed and said here:

Caltech: 30 images a class for training, the rest for test, seed 0; 101 classes, no background class.
SUN397: 50 a class for training and 50 for test, seed 0, unless Training_01.txt and Testing_01.txt lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from diffsiam.evaluation.many_shot import mean_per_class, top_1
from engine.errors import UsageError
from engine.suites.labelled import Labelled, Part, limited

METRICS = {"mean": mean_per_class, "top": top_1}
# name: (torchvision's class, keywords of the parts (train, validation or None, test), metric)
OFFICIAL: dict[str, tuple[str, Sequence[dict[str, Any] | None], str]] = {
    "CIFAR10": ("CIFAR10", ({"train": True}, None, {"train": False}), "top"),
    "Aircraft": ("FGVCAircraft", tuple({"split": part} for part in ("train", "val", "test")), "mean"),
    "Cars": ("StanfordCars", ({"split": "train"}, None, {"split": "test"}), "top"),
    "CIFAR100": ("CIFAR100", ({"train": True}, None, {"train": False}), "top"),
    "DTD": ("DTD", tuple({"split": part} for part in ("train", "val", "test")), "top"),
    "Flowers": ("Flowers102", tuple({"split": part} for part in ("train", "val", "test")), "mean"),
    "Food": ("Food101", ({"split": "train"}, None, {"split": "test"}), "top"),
    "Pets": ("OxfordIIITPet", ({"split": "trainval"}, None, {"split": "test"}), "mean"),
}
DRAWN = {"Caltech": ("Caltech101", 30, None, "mean"), "SUN": ("SUN397", 50, 50, "top")}


def vision_set(name: str, root: Path, px: int, limit: int | None = None) -> Labelled:
    """One of :data:`engine.suites.tables.NAMES` at ``root``.

    Raises:
        UsageError: torchvision is missing, or its files are not there.
    """
    if name in DRAWN:
        found = _drawn(name, root, px)
    else:
        kind, keywords, metric = OFFICIAL[name]
        parts = [None if k is None else _open(kind, root, **k) for k in keywords]
        train, validation, test = parts
        fit = _part(train, px, f"{name} {root} train")
        split = None
        if validation is not None:
            other = _part(validation, px, f"{name} {root} val")
            split = (np.arange(len(fit.labels)), len(fit.labels) + np.arange(len(other.labels)))
            fit = _joined(fit, other)
        found = Labelled(
            name,
            fit,
            _part(test, px, f"{name} {root} test"),
            int(fit.labels.max()) + 1,
            METRICS[metric],
            split,
        )
    return limited(found, limit)


def _drawn(name: str, root: Path, px: int) -> Labelled:
    kind, train, test, metric = DRAWN[name]
    whole = _open(kind, root)
    labels = _labels(whole)
    listed = _listed_sun(whole, root) if name == "SUN" else None
    fit, held = listed or draw_split(labels, train, test)
    parts = [_part(whole, px, f"{name} {root} {len(part)} {part[:3]}", part) for part in (fit, held)]
    return Labelled(name, parts[0], parts[1], int(labels.max()) + 1, METRICS[metric])


def draw_split(labels: np.ndarray, train: int, test: int | None) -> tuple[np.ndarray, np.ndarray]:
    """``train`` images of every class, and ``test`` others (None: all others), drawn by seed 0."""
    rng, fit, held = np.random.default_rng(0), [], []
    for value in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == value))
        fit.append(members[:train])
        held.append(members[train : None if test is None else train + test])
    return np.sort(np.concatenate(fit)), np.sort(np.concatenate(held))


def _listed_sun(whole: Any, root: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """SUN397's first partition, if its two lists lie at ``root`` or in SUN397/."""
    for folder in (root, root / "SUN397"):
        lists = [folder / f"{part}_01.txt" for part in ("Training", "Testing")]
        if all(file.is_file() for file in lists):
            place = {f"/{path.relative_to(whole._data_dir)}": i for i, path in enumerate(whole._image_files)}
            fit, held = ([place[line] for line in file.read_text().split()] for file in lists)
            return np.array(fit), np.array(held)
    return None


def _open(kind: str, root: Path, **keywords: Any) -> Any:
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise UsageError("torchvision is not installed; pip install 'diffsiam[evaluation]'") from error
    try:
        return getattr(datasets, kind)(str(root), **keywords)
    except (RuntimeError, OSError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"{root}: torchvision's {kind} does not find its files there ({said})") from error


def _part(data: Any, px: int, key: str, indices: np.ndarray | None = None) -> Part:
    chosen = np.arange(len(data)) if indices is None else indices
    labels = _labels(data)[chosen]
    assert labels.min() >= 0
    return Part(lambda: np.stack([_square(data[int(i)][0], px) for i in chosen]), labels, f"{key} {px}")


def _joined(a: Part, b: Part) -> Part:
    labels = np.concatenate((a.labels, b.labels))
    return Part(lambda: np.concatenate((a.pixels(), b.pixels())), labels, f"{a.key} + {b.key}")


def _labels(data: Any) -> np.ndarray:
    """All labels, without opening an image."""
    for name in ("targets", "_labels", "y"):
        if hasattr(data, name):
            return np.asarray(getattr(data, name), dtype=np.int64)
    return np.array([label for _, label in data._samples], dtype=np.int64)  # StanfordCars


@cache
def _resize(px: int) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(px, v2.InterpolationMode.BICUBIC), v2.CenterCrop(px)])


def _square(image: Any, px: int) -> np.ndarray:
    """Shorter side to ``px``, centre crop, RGB: some images of Caltech and SUN are grey."""
    return np.asarray(_resize(px)(image.convert("RGB")))
