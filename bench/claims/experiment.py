"""Training and measuring the models one after the other, each in a process of its own, each only once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench.claims.models import models
from engine import screen
from engine.config import Config
from engine.config_file import config_hash, from_dict, load
from engine.errors import UsageError
from engine.processes import REQUESTS


class Stopped(Exception):
    """A request to stop, which the child at work got as well; ``number`` is the signal's."""

    def __init__(self, number: int):
        super().__init__(f"{signal.Signals(number).name}: stopped; the same command goes on")
        self.number = number


@dataclass(frozen=True)
class Experiment:
    """Where the experiment reads and writes.

    Attributes:
        config: the recipe all models share (JSON file).
        overrides: ``key=value`` for all of them.
        results: folder of the results, one JSON file a model and seed.
        runs: folder of the trainings.
        simsiam_weight: see :func:`bench.claims.models.models`.
    """

    config: Path
    overrides: tuple[str, ...]
    results: Path
    runs: Path
    simsiam_weight: float

    def names(self) -> list[str]:
        """All models, in order."""
        return list(models(self.simsiam_weight))

    def arguments(self, name: str, seed: int) -> list[str]:
        """What configures the training of a model (an untrained one has the recipe's own)."""
        switches = models(self.simsiam_weight)[name] or ()
        places = (f"seed={seed}", f"run.dir={self.run(name, seed)}")
        return [*self.overrides, *switches, *places]

    def load(self, name: str, seed: int) -> Config:
        """The config of a model and seed."""
        return load(self.config, self.arguments(name, seed))

    def is_trained(self, name: str) -> bool:
        """Whether this model is trained at all."""
        return models(self.simsiam_weight)[name] is not None

    def run(self, name: str, seed: int) -> Path:
        """Directory of a training."""
        return self.runs / f"seed{seed}" / name

    def result(self, name: str, seed: int) -> Path:
        """File of a result."""
        return self.results / f"seed{seed}" / f"{name}.json"

    def is_done(self, name: str, seed: int) -> bool:
        """Whether the result is there and is that of this config.

        Raises:
            UsageError: it is that of another config: the two must not be mixed.
        """
        path = self.result(name, seed)
        if not path.exists():
            return False
        measured = from_dict(
            json.loads(path.read_text())["config"]
        )  # keys that came since have their default
        if config_hash(measured) == config_hash(self.load(name, seed)):
            return True
        raise UsageError(
            f"{path} was measured with another config; move it away or give --results another folder"
        )


def carry_out(experiment: Experiment, names: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Train and measure what is missing, seed by seed; returns what failed.

    Raises:
        Stopped: this process was asked to stop, and the training, if there was one, has saved.
    """
    failed = []
    for seed in seeds:
        for name in names:
            if experiment.is_done(name, seed):
                continue
            screen.line(f"seed {seed}, {name}")
            if not _train(experiment, name, seed) or not _measure(experiment, name, seed):
                failed.append(f"seed {seed}, {name}")
    return failed


def _train(experiment: Experiment, name: str, seed: int) -> bool:
    if not experiment.is_trained(name):
        return True
    return _run("engine.train", "--config", str(experiment.config), *experiment.arguments(name, seed))


def _measure(experiment: Experiment, name: str, seed: int) -> bool:
    places = ("--results", str(experiment.results), "--runs", str(experiment.runs))
    what = ("--config", str(experiment.config), "--model", name, "--seed", str(seed))
    weight = ("--simsiam-weight", str(experiment.simsiam_weight))
    return _run("bench.claims.measure", *what, *places, *weight, *experiment.overrides)


def _run(module: str, *arguments: str) -> bool:
    """A module as a child of this process, which waits for it and passes every request to stop on to it."""
    environment = {"DS_ACCELERATOR": "cpu", **os.environ}
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        child.send_signal(number)

    with subprocess.Popen([sys.executable, "-m", module, *arguments], env=environment) as child:
        previous = {number: signal.signal(number, pass_on) for number in REQUESTS}
        try:
            code = child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
    if asked:
        raise Stopped(asked[0])
    return code == 0
