"""What equal times of training are worth: ``python -m bench.cifar --data FOLDER --out OUT``.

A diffusion model of CIFAR-10 is trained for a while, then DiffSiam on it and SimSiam alone, equally long by
the clock; their encoders are measured by linear, kNN and few-shot classification. Each run is one of
``engine/train.py``, whose number of steps follows from the rate of a short run before it, so that schedules
of the learning rate end where the time does. The diffusion model's time is its own, as in the thesis, where
it is given.

On a CPU networks and runs are so small that they show that all of it runs, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.parts import ROOT, Part, run
from bench.report import in_a_line, markdown

METHODS = ("literal", "simsiam")  # DiffSiam as printed, and SimSiam
SUITES = ("linear", "knn", "few-shot")
RATE_STEPS = 300
LIMIT = 900.0  # seconds of one process beyond its training
QUIET = ("report.page=false", "log.grid_every=0", "log.gradnorm_every=0", "log.every=50")
SMALL = {  # overrides on a CPU
    "diffusion": ("frozen.base_channels=8", "frozen.channel_mult=[1,2]", "frozen.blocks=1", "frozen.heads=1"),
    "both": ("encoder.width=8", "simsiam.dim=32", "simsiam.hidden=16"),
    "run": ("train.batch_size=8", "log.every=1"),
}
SMALL_STEPS, SMALL_IMAGES, SMALL_EPISODES = 2, 160, 2

Row = dict[str, Any]


class Failed(Exception):
    """A part that the others need did not end well."""


class Trainings:
    """Runs of engine/train.py under one folder.

    Args:
        data: folder of CIFAR-10's images or batches.
        reduced: tiny networks and two steps a run.
    """

    def __init__(self, data: Path, out: Path, reduced: bool):
        self.data, self.out, self.reduced = data, out, reduced
        self.parts: list[Part] = []

    def train(self, name: str, config: str, seconds: float, *overrides: str) -> Row:
        """Train for about so many seconds; returns the run's folder, steps and rate.

        Raises:
            Failed: a process did not end with 0.
        """
        if self.reduced:
            steps = SMALL_STEPS
        else:
            rate = self._last(self._run(f"{name}, rate", config, RATE_STEPS, LIMIT, *overrides))
            steps = max(RATE_STEPS, int(seconds * rate["images_per_second"] / self._batch(config)))
        folder = self._run(name, config, steps, seconds + LIMIT, *overrides)
        last = self._last(folder)
        return {"folder": str(folder), "steps": steps, "images_per_second": last["images_per_second"]}

    def _run(self, name: str, config: str, steps: int, limit: float, *overrides: str) -> Path:
        folder = self.out / name.replace(", ", "_")
        small = SMALL["run"] if self.reduced else ()
        settings = [f"data.path={self.data}", f"run.dir={folder}", f"train.steps={steps}", *QUIET, *small]
        command = [str(ROOT / "engine" / "train.py"), "--config", str(ROOT / "configs" / f"{config}.json")]
        part = run(name, [*command, *settings, *overrides], limit)
        self.parts.append(part)
        if not part.ok:
            lines = part.output.strip().splitlines()
            raise Failed(f"{name}: exit code {part.code}: {lines[-1][:200] if lines else 'no output'}")
        return folder

    @staticmethod
    def _batch(config: str) -> int:
        return json.loads((ROOT / "configs" / f"{config}.json").read_text())["train"]["batch_size"]

    @staticmethod
    def _last(folder: Path) -> Row:
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def evaluate_run(folder: Path, data: Path, reduced: bool) -> Row:
    """Accuracy of each suite, and of few-shot episodes by their number of shots."""
    from engine.suites.evaluate import Request, evaluate
    from engine.suites.suites import Options

    options = Options(episodes=SMALL_EPISODES) if reduced else Options()
    images = str(data) if (data / "train").is_dir() else f"CIFAR10={data}"
    request = Request(SUITES, (images,), SMALL_IMAGES if reduced else None, options)
    return evaluate(folder, request)["results"]


def bench(data: Path, out: Path, seconds: float, pretrain_seconds: float, reduced: bool) -> Row:
    """Both methods' rows; what failed is named and ends what needs it."""
    trainings, report = Trainings(data, out, reduced), Row(seconds=seconds, rows={}, failed=[])
    weights: Sequence[str] = (f"frozen.weights={out / 'diffusion' / 'unet.safetensors'}",)
    if reduced:
        weights = ("frozen.weights=random", *SMALL["diffusion"])
    else:
        try:
            report["diffusion"] = trainings.train("diffusion", "cifar10_dm", pretrain_seconds)
        except Failed as error:
            report["failed"].append(str(error))
    for method in METHODS:
        needs = () if method == "simsiam" else weights
        if needs and report["failed"]:
            continue
        try:
            small = SMALL["both"] if reduced else ()
            row = trainings.train(method, "cifar10", seconds, f"method={method}", *needs, *small)
            report["rows"][method] = row | {"results": evaluate_run(Path(row["folder"]), data, reduced)}
        except Failed as error:
            report["failed"].append(str(error))
        except Exception as error:  # the other method is still worth measuring
            report["failed"].append(f"{method}: {in_a_line(error)}")
    return report | {"parts": [part.summary() for part in trainings.parts]}


def accuracies(results: Row) -> dict[str, float]:
    """Name of a measure -> its accuracy, in percent."""
    found = {}
    for suite, by_data in results.items():
        for value in by_data.values():
            for name, number in _numbers(suite, value):
                found[name] = 100 * number
    return found


def _numbers(name: str, value: Any) -> list[tuple[str, float]]:
    """Accuracies within a suite's result, however deep they lie."""
    if not isinstance(value, dict):
        return []
    accuracy = value.get("accuracy", value.get("mean"))  # of all episodes
    own = [(name, accuracy)] if isinstance(accuracy, float) else []
    return own + [pair for key, inner in value.items() for pair in _numbers(f"{name} {key}", inner)]


def table(report: Row) -> str:
    """In Markdown."""
    measured = {method: accuracies(row["results"]) for method, row in report["rows"].items()}
    names = list(dict.fromkeys(name for found in measured.values() for name in found))
    rows = [
        [method, f"{row['steps']}", f"{row['images_per_second']:.0f}"]
        + [f"{measured[method][name]:.1f}" if name in measured[method] else "" for name in names]
        for method, row in report["rows"].items()
    ]
    lines = "".join(f"- FAILED {line}\n" for line in report["failed"])
    return markdown(["method", "steps", "images/s", *names], rows) + f"\n{lines}"


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 1 if something failed, 2 for no such folder."""
    parser = argparse.ArgumentParser(prog="bench.cifar", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10: batches, or images")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs and cifar.json")
    parser.add_argument("--seconds", type=float, default=120.0, help="of each method (default: %(default)s)")
    parser.add_argument(
        "--pretrain-seconds", type=float, default=120.0, help="of the diffusion model (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        print(f"error: {options.data}: no such folder; give --data a folder of CIFAR-10", file=sys.stderr)
        return 2
    out, data = options.out.resolve(), options.data.resolve()
    out.mkdir(parents=True, exist_ok=True)
    reduced = not torch.cuda.is_available()
    report = bench(data, out, options.seconds, options.pretrain_seconds, reduced)
    (out / "cifar.json").write_text(json.dumps(report, indent=1))
    print(table(report))
    return int(bool(report["failed"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
