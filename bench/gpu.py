"""Everything that a GPU has to tell, in one run: ``python -m bench.gpu [--phase PHASE ...]``.

For any CUDA machine, without internet. ``tests`` and ``kernels`` need torch, Triton and pytest alone. Each
phase writes PHASE.json and the report of all phases so far, and ends within its budget: what it could not
reach, what broke and what lacks a package is a row that says so. Exit code 1 if anything failed.

On a CPU every phase runs at sizes that show that it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import gpu_checks, gpu_data, gpu_steps, machine
from bench.parts import Clock

RESULTS = Path(__file__).resolve().parent / "results"
BUDGET = 520.0  # seconds a phase

Report = dict[str, Any]
PHASES: dict[str, tuple[Callable[..., Report], Callable[[Report, bool], str]]] = {
    "tests": (gpu_checks.tests, gpu_checks.show_tests),
    "kernels": (gpu_checks.kernels, gpu_checks.show_kernels),
    "step": (gpu_steps.step, gpu_steps.show_step),
    "levers": (gpu_steps.levers, gpu_steps.show_step),
    "train": (gpu_steps.train, gpu_steps.show_train),
    "data": (gpu_data.data, gpu_data.show_data),
    "tune": (gpu_checks.tune, gpu_checks.show_tune),
}
USUAL = ("tests", "kernels", "step", "levers", "train", "data")


def perform(phase: str, out: Path, budget: float, **given: Any) -> Report:
    """Run a phase, with what it is given beside its budget, and write its JSON; an error of the phase itself
    is its result.
    """
    began, told = time.monotonic(), machine.describe()
    if torch.cuda.is_available():
        told["busy_percent"] = machine.busy()
    try:
        report = PHASES[phase][0](out, Clock(budget), **given)
    except Exception:  # the other phases are still worth running
        report = {"ok": False, "broken": traceback.format_exc()}
    report = {"phase": phase, "seconds": round(time.monotonic() - began, 1), "machine": told, **report}
    (out / f"{phase}.json").write_text(json.dumps(report, indent=1))
    return report


def show(report: Report, brief: bool = False) -> str:
    """One phase in Markdown, or its headlines."""
    verdict = "passed" if report["ok"] else "FAILED"
    head = f"## {report['phase']}: {verdict} in {report['seconds']} s\n\n"
    if (busy := report["machine"].get("busy_percent", 0)) >= machine.BUSY:
        head += f"The GPU was {busy} % busy with other work when this began: do not trust its times.\n\n"
    return head + (
        f"```\n{report['broken']}```\n" if "broken" in report else PHASES[report["phase"]][1](report, brief)
    )


def write_report(out: Path) -> None:
    """``report.md`` of all phases that left their JSON in ``out``."""
    found = [json.loads(path.read_text()) for phase in PHASES if (path := out / f"{phase}.json").exists()]
    told = found[0]["machine"]
    missing = [name for name, version in told["packages"].items() if version is None]
    lines = [f"# {told['device']}", ""]
    for report in found:
        lines.append(f"- {report['phase']}: revision {report['machine']['revision']}")
    lines += [f"- {name}: {value}" for name, value in told.items() if name not in ("packages", "revision")]
    lines.append(
        "- " + ", ".join(f"{name} {version}" for name, version in told["packages"].items() if version)
    )
    if missing:
        lines.append(f"- not installed: {', '.join(missing)}")
    (out / "report.md").write_text("\n".join([*lines, "", *map(show, found)]))


def main(arguments: list[str]) -> int:
    """Run the phases and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--phase", nargs="+", default=list(USUAL), choices=list(PHASES))
    parser.add_argument("--out", type=Path, help="folder (default: bench/results/DEVICE)")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds a phase (default: %(default)s)")
    parser.add_argument("--cifar", type=Path, help="folder of CIFAR-10 for `train`: batches, or images")
    options = parser.parse_args(arguments)
    if options.cifar and not options.cifar.is_dir():
        print(f"error: {options.cifar}: no such folder; give --cifar a folder of CIFAR-10", file=sys.stderr)
        return 2
    out = options.out or RESULTS / machine.slug(machine.device_name())
    out.mkdir(parents=True, exist_ok=True)
    failed = []
    for phase in options.phase:
        print(f"bench.gpu: {phase}, at most {options.budget:.0f} s", flush=True)
        given = {"cifar": options.cifar} if phase == "train" else {}
        report = perform(phase, out, options.budget, **given)
        write_report(out)
        print(show(report, brief=True), flush=True)
        failed += [] if report["ok"] else [phase]
    print(f"bench.gpu: {'FAILED: ' + ', '.join(failed) if failed else 'all passed'}; written to {out}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
