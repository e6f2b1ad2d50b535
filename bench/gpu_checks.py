"""The phases that need torch, Triton and pytest alone: CUDA tests, and the kernels' speed."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from bench.kernels import tables
from bench.parts import Clock, Part, run, together
from bench.report import markdown

# What compiles whole networks comes first: the others fill the time until it is done.
FOLDERS = ["tests/cuda/test_cuda_objective.py", "tests/cuda/test_cuda_runtime.py", "tests/cuda"]
# A process among many: without this each would start compilers for all cores.
ONE_OF_MANY = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"}
RERUNS = 12  # failed tests that are run once more, each alone
WORKERS = 14
COMPILERS = 12
BRIEF_ROWS = 12
COMPILE_SHARE = 0.35  # of the budget, to fill the compile caches with all cores
# The summary's lines, and before them those of the progress, which are all that a stopped run leaves.
FAILED = re.compile(r"^(?:\[gw\d+\] \[[ \d]+%\] )?(?:FAILED|ERROR) (tests/.+?)(?: - (.*))?$", re.MULTILINE)

Report = dict[str, Any]


def tests(out: Path, clock: Clock) -> Report:
    """``tests/cuda`` and, on a GPU, ``tests/kernels`` compiled; failed tests once more by themselves, since a
    broken context fails whatever comes after it in the process.
    """
    folders = [*FOLDERS, *(["tests/kernels"] if torch.cuda.is_available() else [])]
    options = ["-vv", "--durations=10", "-rfEs", "--tb=short", "-W", "ignore"]
    if torch.cuda.is_available() and find_spec("xdist"):
        options += ["-n", str(min(WORKERS, len(os.sched_getaffinity(0)))), "--maxschedchunk=1"]
    limit = 0.75 * clock.left
    if find_spec("pytest_timeout"):  # it ends a session in time to say what failed and why
        options.append(f"--session-timeout={max(1.0, 0.8 * limit)}")
    part = _pytest("all", [*folders, *options], limit)
    (out / "tests.log").write_text(part.output)
    failed: dict[str, str] = {}
    for node, message in FAILED.findall(part.output):
        failed[node.strip()] = message or failed.get(node.strip(), "")
    again = [_again(node, clock) for node in list(failed)[:RERUNS]]
    with (out / "tests.log").open("a") as log:
        log.writelines(f"\n===== {part.name}, alone\n{part.output}" for part in again)
    alone = {part.name: "passes" if part.ok else "fails" for part in again}
    return {
        "ok": part.ok,
        "counts": _last_line(part.output),
        "failed": [{"test": node, "message": m, "alone": alone.get(node)} for node, m in failed.items()],
        "skipped": sorted(set(re.findall(r"^SKIPPED \[\d+\] \S+ (.*)$", part.output, re.MULTILINE))),
        "parts": [part.summary() | {"tail": "" if failed else part.output[-2000:]}],
    }


def _pytest(name: str, arguments: list[str], limit: float) -> Part:
    # Wide enough for pytest to print every message whole.
    return run(name, ["-m", "pytest", *arguments], limit, {"COLUMNS": "400", **ONE_OF_MANY})


def _again(node: str, clock: Clock) -> Part:
    return _pytest(node, [node, "--tb=short", "-W", "ignore"], min(90.0, clock.left))


def _last_line(output: str) -> str:
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return lines[-1].strip("= ") if lines else ""


def show_tests(report: Report, brief: bool) -> str:
    """In Markdown."""
    rows = [
        [f["test"], f["message"][:160].replace("|", "/"), f["alone"] or "not tried"] for f in report["failed"]
    ]
    text = f"{report['counts']}\n"
    if report["skipped"]:
        text += f"\nSkipped: {'; '.join(report['skipped'])}\n"
    return text + ("\n" + markdown(["failed", "message", "alone it"], rows) if rows else "")


def _compile(module: str, clock: Clock) -> list[Part]:
    """Let as many processes as there are cores each compile their share of a benchmark."""
    count = min(COMPILERS, len(os.sched_getaffinity(0)))
    command = ["-m", module, "--compile-only", "--share"]
    jobs = {f"compile {i}": [*command, f"{i}/{count}"] for i in range(count)}
    return together(jobs, COMPILE_SHARE * clock.left, ONE_OF_MANY)


def kernels(out: Path, clock: Clock) -> Report:
    """bench.kernels, after a round that fills the compile caches with all cores."""
    on_gpu = torch.cuda.is_available()
    sizes = [] if on_gpu else ["--config", "cifar10", "--batch", "2"]
    parts = _compile("bench.kernels", clock) if on_gpu else []
    file = out / "kernels.json"
    file.unlink(missing_ok=True)
    command = [
        "-m",
        "bench.kernels",
        "--out",
        str(file.resolve()),
        "--budget",
        str(max(1, clock.left - 40)),
        *sizes,
    ]
    parts.append(run("bench.kernels", command, clock.left))
    report = json.loads(file.read_text()) if file.exists() else {"rows": [], "failures": [], "per_step": []}
    report["failed"] = [
        *report.pop("failures"),
        *(f"{p.name}: stopped at its limit" for p in parts[-1:] if p.code is None),
    ]
    report["parts"] = [part.summary() for part in parts]
    return {"ok": parts[-1].ok and not report["failed"], **report}


def tune(out: Path, clock: Clock) -> Report:
    """bench.tune, which is for whoever changes the kernels."""
    if not torch.cuda.is_available():
        return {"ok": True, "table": "absent: launch shapes are tried on a GPU\n", "parts": []}
    parts = _compile("bench.tune", clock)
    command = [
        "-m",
        "bench.tune",
        "--budget",
        str(max(1, clock.left - 30)),
        "--out",
        str((out / "shapes.json").resolve()),
    ]
    parts.append(run("bench.tune", command, clock.left))
    summaries = [part.summary() for part in parts]
    return {"ok": parts[-1].ok, "table": parts[-1].output, "parts": summaries}


def show_tune(report: Report, brief: bool) -> str:
    """In Markdown."""
    return report["table"]


def show_kernels(report: Report, brief: bool) -> str:
    """In Markdown; the brief form shows some rows of the first preset alone."""
    rows = report["rows"]
    text = (
        tables(rows, report.get("copy_bytes_per_second"), BRIEF_ROWS if brief else len(rows)) if rows else ""
    )
    failed = report["failed"][: BRIEF_ROWS if brief else None]
    return text + "".join(f"\n- {line}" for line in failed) + "\n"
