"""The phases that need the engine: the step and its levers, and training on kernels beside references."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.parts import ROOT, Clock, Part, run, together

ENGINE = ("pydantic", "deepspeed", "rich")
# Config and images a step, the most important first: 32 are what one GPU of four gets of the thesis' 128.
SIZES = (("bedroom", 32), ("celeba64", 128), ("cifar10", 128), ("quickstart", 64))
COMPILE_SHARE = 0.4  # of the budget, to fill the compile caches with all cores
CURVE_SECONDS = 60  # of a phase, kept for the loss curves
WORTH_IT = 300  # seconds below which the largest size alone is what there is time for
STEPS, CURVE_STEPS, TRAIN_STEPS = 30, 300, 300
CIFAR_SHARE = 0.18  # of what is left, for each of three trainings; the rest is for rates, starts and measures

Report = dict[str, Any]


def lacking(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def _absent(what: str, packages: list[str]) -> str:
    return f"{what}: needs {', '.join(packages)} (`make wheelhouse` gathers all but DALI)"


def step(out: Path, clock: Clock) -> Report:
    """bench.levers for every size, after a round that fills the compile caches; loss curves on the kernels
    beside those on their references.
    """
    report = _sizes(out, clock, "step")
    if not report["absent"]:
        part = _curve(out, clock)
        report["parts"].append(part.summary())
        report["curve"] = _taken(out / "curve.json")
        report["failed"] += [] if part.ok else [f"curve: {_why(part)}"]
    return report | {"ok": not report["failed"]}


def levers(out: Path, clock: Clock) -> Report:
    """What each lever alone is worth at every size, and where the time of a step goes."""
    return _sizes(out, clock, "levers", "--ablate")


def _sizes(out: Path, clock: Clock, phase: str, *options: str) -> Report:
    """bench.levers for every size."""
    report: Report = {"ok": True, "absent": [], "configs": [], "curve": None, "failed": [], "parts": []}
    if missing := lacking(*ENGINE):
        return report | {"absent": [_absent("every row", missing)]}
    on_gpu = torch.cuda.is_available()
    sizes = SIZES if on_gpu else (("quickstart", 8),)
    parts: list[Part] = []
    if on_gpu and clock.left > WORTH_IT:
        jobs = {f"compile {name}": [*_levers(name, batch), "--compile-only"] for name, batch in sizes}
        parts += together(jobs, COMPILE_SHARE * clock.left, {"TORCHINDUCTOR_COMPILE_THREADS": "3"})
    for name, batch in sizes:
        file = out / f"{phase}_{name}.json"
        budget = ["--budget", str(max(1.0, 0.6 * (clock.left - CURVE_SECONDS)))]
        steps = ["--steps", str(STEPS if on_gpu else 2), "--out", str(file.resolve())]
        command = [*_levers(name, batch), *options, *budget, *steps]
        parts.append(run(f"{phase} {name}", command, clock.left))
        if config := _taken(file):
            report["configs"].append(config)
            report["failed"] += [f"{name}, {line}" for line in config["failures"]]
        else:
            report["failed"].append(f"{name}: {_why(parts[-1])}")
    return report | {"ok": not report["failed"], "parts": [part.summary() for part in parts]}


def _curve(out: Path, clock: Clock) -> Part:
    """Losses of the step on the kernels beside those on their references."""
    on_gpu = torch.cuda.is_available()
    config = ["--config", str(ROOT / "configs" / "quickstart.json")]
    sizes = ["--steps", str(CURVE_STEPS)] if on_gpu else ["--steps", "3", "--batch", "8"]
    file = ["--out", str((out / "curve.json").resolve())]
    return run("curve", ["-m", "bench.curve", *config, *sizes, *file], clock.left)


def _taken(file: Path) -> Any:
    """A part's JSON, which is part of the phase's from then on; None where it left none."""
    report = json.loads(file.read_text()) if file.exists() else None
    file.unlink(missing_ok=True)
    return report


def _levers(name: str, batch: int) -> list[str]:
    return ["-m", "bench.levers", "--config", str(ROOT / "configs" / f"{name}.json"), "--batch", str(batch)]


def _why(part: Part) -> str:
    lines = [line for line in part.output.strip().splitlines() if line.strip()]
    return f"exit code {part.code}: {lines[-1][:200] if lines else 'no output'}"


def show_step(report: Report, brief: bool) -> str:
    """In Markdown."""
    from bench import curve
    from bench.levers import table

    text = "".join(f"- absent: {line}\n" for line in report["absent"])
    for config in report["configs"]:
        text += f"\n{config['config']}: {config['px']} px, {config['batch']} images a step\n\n{table(config)}"
    text += f"\n{curve.table(report['curve'])}" if report["curve"] else ""
    return text + "".join(f"- {line}\n" for line in report["failed"])


def train(out: Path, clock: Clock, cifar: Path | None = None) -> Report:
    """engine/train.py itself: a short run of the quickstart; CIFAR-10 for equal times where it is given."""
    report: Report = {"ok": True, "absent": [], "cifar": None, "failed": [], "parts": []}
    if missing := lacking(*ENGINE, "nvidia.dali" if find_spec("nvidia") else "nvidia"):
        report["absent"].append(_absent("every row", missing))
        return report
    parts, on_gpu = [], torch.cuda.is_available()
    if on_gpu:
        config, folder = str(ROOT / "configs" / "quickstart.json"), out.resolve() / "run"
        short = [f"train.steps={TRAIN_STEPS}", "report.factors=false", f"run.dir={folder}"]
        command = [str(ROOT / "engine" / "train.py"), "--config", config, *short]
        parts.append(run("engine/train.py", command, clock.left))
    else:
        report["absent"].append("the quickstart: is for a GPU here; `make quickstart` runs it on a CPU")
    if cifar is None:
        report["absent"].append("CIFAR-10: needs --cifar FOLDER")
    else:
        share = max(1.0, CIFAR_SHARE * clock.left)
        times = ["--seconds", str(share), "--pretrain-seconds", str(share)]
        place = ["--data", str(cifar.resolve()), "--out", str(out.resolve() / "cifar")]
        parts.append(run("cifar", ["-m", "bench.cifar", *place, *times], clock.left))
        report["cifar"] = _taken(out / "cifar" / "cifar.json")
    report["failed"] = [f"{part.name}: {_why(part)}" for part in parts if not part.ok]
    report["parts"] = [part.summary() for part in parts]
    return report | {"ok": not report["failed"]}


def show_train(report: Report, brief: bool) -> str:
    """In Markdown."""
    from bench.cifar import table

    text = "".join(f"- absent: {line}\n" for line in report["absent"])
    text += f"\n{table(report['cifar'])}" if report["cifar"] else ""
    times = "".join(f"- {part['name']}: {part['seconds']} s\n" for part in report["parts"])
    return text + times + "".join(f"- {line}\n" for line in report["failed"])
