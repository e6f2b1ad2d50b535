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
WORTH_IT = 300  # seconds below which the largest size alone is what there is time for
STEPS, CURVE_STEPS, TRAIN_STEPS = 30, 300, 300

Report = dict[str, Any]


def lacking(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if find_spec(name) is None]


def _absent(what: str, packages: list[str]) -> str:
    return f"{what}: needs {', '.join(packages)} (`make wheelhouse` gathers all but DALI)"


def step(out: Path, clock: Clock) -> Report:
    """bench.levers for every size, after a round that fills the compile caches."""
    if missing := lacking(*ENGINE):
        return {
            "ok": True,
            "absent": [_absent("every row", missing)],
            "configs": [],
            "failed": [],
            "parts": [],
        }
    on_gpu = torch.cuda.is_available()
    sizes = SIZES if on_gpu else (("quickstart", 8),)
    parts: list[Part] = []
    if on_gpu and clock.left > WORTH_IT:
        jobs = {f"compile {name}": [*_levers(name, batch), "--compile-only"] for name, batch in sizes}
        parts += together(jobs, COMPILE_SHARE * clock.left, {"TORCHINDUCTOR_COMPILE_THREADS": "3"})
    configs, failed = [], []
    for name, batch in sizes:
        file = out / f"step_{name}.json"
        budget = ["--budget", str(max(1.0, 0.6 * clock.left)), "--out", str(file.resolve())]
        steps = ["--steps", str(STEPS if on_gpu else 2)]
        parts.append(run(f"step {name}", [*_levers(name, batch), *budget, *steps], clock.left))
        if file.exists():
            configs.append(json.loads(file.read_text()))
            file.unlink()
            failed += [f"{name}, {line}" for line in configs[-1]["failures"]]
        else:
            failed.append(f"{name}: {_why(parts[-1])}")
    return {
        "ok": not failed,
        "absent": [],
        "configs": configs,
        "failed": failed,
        "parts": [part.summary() for part in parts],
    }


def _levers(name: str, batch: int) -> list[str]:
    return ["-m", "bench.levers", "--config", str(ROOT / "configs" / f"{name}.json"), "--batch", str(batch)]


def _why(part: Part) -> str:
    lines = [line for line in part.output.strip().splitlines() if line.strip()]
    return f"exit code {part.code}: {lines[-1][:200] if lines else 'no output'}"


def show_step(report: Report, brief: bool) -> str:
    """In Markdown."""
    from bench.levers import table

    text = "".join(f"- absent: {line}\n" for line in report["absent"])
    for config in report["configs"]:
        text += f"\n{config['config']}: {config['px']} px, {config['batch']} images a step\n\n{table(config)}"
    return text + "".join(f"- {line}\n" for line in report["failed"])


def train(out: Path, clock: Clock) -> Report:
    """Loss curves on resident images; where DALI is installed also a run of engine/train.py."""
    if missing := lacking(*ENGINE):
        return {
            "ok": True,
            "absent": [_absent("every row", missing)],
            "curve": None,
            "failed": [],
            "parts": [],
        }
    on_gpu = torch.cuda.is_available()
    config, file = str(ROOT / "configs" / "quickstart.json"), out / "curve.json"
    sizes = ["--steps", str(CURVE_STEPS)] if on_gpu else ["--steps", "3", "--batch", "8"]
    parts = [
        run(
            "curve",
            ["-m", "bench.curve", "--config", config, *sizes, "--out", str(file.resolve())],
            clock.left,
        )
    ]
    curve = json.loads(file.read_text()) if file.exists() else None
    file.unlink(missing_ok=True)
    absent = []
    if lacking("nvidia.dali" if find_spec("nvidia") else "nvidia"):
        absent.append("engine/train.py itself: needs nvidia-dali-cuda130")
    elif on_gpu:
        short = [f"train.steps={TRAIN_STEPS}", "report.factors=false", f"run.dir={out.resolve() / 'run'}"]
        command = [str(ROOT / "engine" / "train.py"), "--config", config, *short]
        parts.append(run("engine/train.py", command, clock.left))
    else:
        absent.append("engine/train.py itself: is for a GPU here; `make quickstart` runs it on a CPU")
    failed = [f"{part.name}: {_why(part)}" for part in parts if not part.ok]
    summaries = [part.summary() for part in parts]
    return {"ok": not failed, "absent": absent, "curve": curve, "failed": failed, "parts": summaries}


def show_train(report: Report, brief: bool) -> str:
    """In Markdown."""
    from bench.curve import table

    text = "".join(f"- absent: {line}\n" for line in report["absent"])
    text += f"\n{table(report['curve'])}" if report["curve"] else ""
    times = "".join(f"- {part['name']}: {part['seconds']} s\n" for part in report["parts"])
    return text + times + "".join(f"- {line}\n" for line in report["failed"])
