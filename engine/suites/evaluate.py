"""``diffsiam evaluate``: which suites run on which data, and what is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffsiam.evaluation.linear import RECIPES
from diffsiam.evaluation.predictors import ESTIMATORS
from engine import screen
from engine.config_file import config_hash
from engine.data.fetching import fetch
from engine.data.sources import open_source
from engine.errors import UsageError
from engine.plain_json import write_json
from engine.suites import described, suites, tables
from engine.suites.factors import disentanglement_suite
from engine.suites.features import Features
from engine.suites.labelled import Labelled, folder_set, rooms_sets
from engine.suites.suites import Options
from engine.suites.tables import NAMES
from engine.suites.vision import vision_set
from engine.trained import Trained, open_run

CLASSIFYING: dict[str, Callable[[Features, Labelled, Options], dict[str, Any]]] = {
    "linear": suites.linear,
    "knn": suites.knn,
    "many-shot": suites.many,
    "few-shot": suites.few,
}
SUITES = (*CLASSIFYING, "attributes", "disentanglement", "reconstruction")
FACES = {"CelebA": described.celeba, "LFW": described.lfw}


@dataclass(frozen=True)
class Request:
    """What is to be evaluated.

    Attributes:
        suites: names, or None for all that apply.
        data: ``PATH`` of an image folder, or ``NAME=PATH``; none: the run's own images.
        limit: images taken of each part.
    """

    suites: tuple[str, ...] | None
    data: tuple[str, ...]
    limit: int | None
    options: Options


def evaluate(run_dir: Path, request: Request, out: Path | None = None) -> dict[str, Any]:
    """Run the suites and write results.json, results.csv, tables.md and tables.tex.

    Raises:
        UsageError: a suite or data set that does not exist or does not fit, see the message.
    """
    for name in request.suites or ():
        _demand_known("suite", name, SUITES)
    _demand_known("recipe", request.options.recipe, (*RECIPES, "lbfgs"))
    _demand_known("dci-model", request.options.estimator, ESTIMATORS)
    trained = open_run(run_dir)
    features, chosen = Features(trained), _applicable(trained, request)
    classified = _labelled(trained, request) if set(chosen) & set(CLASSIFYING) else []
    results: dict[str, Any] = {}
    for suite in chosen:
        if suite in CLASSIFYING:
            results[suite] = {}
            for data in classified:
                screen.line(f"{suite}: {data.name}")
                results[suite][data.name] = CLASSIFYING[suite](features, data, request.options)
        else:
            screen.line(suite)
            results[suite] = _other(suite, trained, features, request)
    record = {**_origin(trained), "options": suites.describe(request.options), "limit": request.limit}
    record["results"] = results
    folder = out or run_dir / "evaluation"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", record)
    tables.write(record, folder)
    screen.line(f"features: {features.computed} parts encoded, {features.found} from the cache")
    screen.line(f"written: {folder}: results.json, results.csv, tables.md, tables.tex")
    return record


def _demand_known(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UsageError(f"--{option} {value}: there are {', '.join(known)}")


def _applicable(trained: Trained, request: Request) -> tuple[str, ...]:
    """The suites asked for, or all that this run and its data allow."""
    if request.suites is not None:
        return request.suites
    own, faces = trained.config.data.source == "rooms" and not request.data, _faces(request)
    folders = len(faces) < len(request.data)
    possible = {
        **dict.fromkeys(CLASSIFYING, own or folders or not request.data),
        "attributes": own or bool(faces),
        "disentanglement": own,
        "reconstruction": not request.data and trained.model.decoder is not None,
    }
    return tuple(name for name, fits in possible.items() if fits)


def _labelled(trained: Trained, request: Request) -> list[Labelled]:
    config = trained.config
    if request.data:
        named = (_named(item) for item in request.data)
        return [_open(name, path, config.data.px, request.limit) for name, path in named if name not in FACES]
    if config.data.source == "rooms":
        return rooms_sets(config.data.px, request.limit)
    return [folder_set(_existing(config.data.path or ""), config.data.px, request.limit)]


def _open(name: str, path: Path, px: int, limit: int | None) -> Labelled:
    """torchvision's data set of that name, or an image folder (under that name, if it has one)."""
    if name in NAMES and not (path / "train").is_dir():
        return vision_set(name, path, px, limit)
    if name and name not in NAMES:
        raise UsageError(
            f"--data {name}=...: the names are {', '.join((*NAMES, *FACES))}; or give a folder alone"
        )
    return folder_set(path, px, limit, name)


def _named(item: str) -> tuple[str, Path]:
    name, equals, path = item.partition("=")
    return (name, _existing(path)) if equals else ("", _existing(item))


def _existing(path: str) -> Path:
    found = Path(path).expanduser()
    if not found.is_dir():
        raise UsageError(
            f"{path or 'no path'}: no such folder of images; give --data PATH or --data NAME=PATH"
        )
    return found


def _faces(request: Request) -> list[tuple[str, Path]]:
    return [(name, path) for name, path in map(_named, request.data) if name in FACES]


def _other(suite: str, trained: Trained, features: Features, request: Request) -> dict[str, Any]:
    if suite == "disentanglement":
        return disentanglement_suite(features, request.options.estimator, request.limit)
    if suite == "reconstruction":
        return suites.reconstruction(trained, _own_images(trained, request.options.images), request.options)
    px, found = trained.config.data.px, {}
    sets = [FACES[name](path, px, request.limit) for name, path in _faces(request)]
    if not sets:
        if trained.config.data.source != "rooms":
            raise UsageError(
                "the attributes suite needs --data CelebA=PATH or --data LFW=PATH, or a run on Rooms"
            )
        sets = [described.rooms_described(px, binary, request.limit) for binary in (True, False)]
    for data in sets:
        found[data.name] = suites.attributes(features, data, request.options)
    return found


def _own_images(trained: Trained, count: int) -> torch.Tensor:
    """Rooms that follow the training set's, or the first images of the run's source."""
    if trained.model.decoder is None:
        raise UsageError(f"{trained.run_dir}: trained without a decoder, so it reconstructs nothing")
    data, seed = trained.config.data, trained.config.seed
    source = open_source(data.source, data.path, data.px, seed, data.count + count, data.split)
    first = len(source) - count if data.source == "rooms" else 0
    return torch.from_numpy(fetch(source, data.px, range(first, min(first + count, len(source)))))


def _origin(trained: Trained) -> dict[str, Any]:
    config = trained.config
    return {
        "run": trained.run_dir.name,
        "step": trained.step,
        "batch": config.train.batch_size,
        "method": config.method,
        "encoder": f"{config.encoder.arch}, width {config.encoder.width}, d = {config.encoder.dim}",
        "data": config.data.source,
        "px": config.data.px,
        "config_hash": config_hash(config),
    }


def parse_names(text: str) -> tuple[str, ...] | None:
    """Names separated by commas; None for none."""
    return tuple(name for name in text.split(",") if name) or None
