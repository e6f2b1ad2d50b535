"""What was trained: rows of (what, text) for every run, from its config and what it said when it started."""

from __future__ import annotations

import statistics
from typing import Any

from engine.report.reading import Run
from engine.report.told import duration, number

SAID = ("device", "precision", "attention", "kernels", "networks", "decoder", "resident", "parameters")


def facts(run: Run) -> dict[str, str]:
    """Rows by name, in order; what is not known is left out."""
    config, said = run.config, dict(run.started.get("rows") or ())
    rows = {
        "method": _method(run),
        "seed": str(config.seed),
        "data": said.get("data", _data(run)),
        "data fingerprint": str(run.state.get("data") or ""),
        "frozen model": said.get("frozen model", config.frozen.weights or "") if config.needs_frozen else "",
        "sha256 of its file": str((run.state.get("weights") or {}).get("sha256", "")),
        **(_representation(run) if config.task == "diffsiam" else {}),
        "training": f"{config.train.steps:,} steps of {config.train.batch_size}, {config.optimizer.name}, "
        f"lr {config.optimizer.lr:g} ({config.optimizer.schedule})",
        **{what: said.get(what, "") for what in SAID},
        "versions": ", ".join(f"{name} {v}" for name, v in _versions(run).items()),
        "throughput": _throughput(run),
        "cost": _cost(run),
        "checkpoint": _checkpoint(run),
    }
    return {what: text for what, text in rows.items() if text}


def state(run: Run, running: bool) -> str:
    """Where the run stands, in one sentence."""
    steps = f"{run.step:,} of {run.config.train.steps:,} steps"
    if run.is_done:
        return f"finished: {steps}"
    return f"running: {steps}" if running else f"stopped after {steps}"


def _method(run: Run) -> str:
    return "diffusion model (pretraining)" if run.config.task == "diffusion" else run.config.method


def _data(run: Run) -> str:
    data = run.config.data
    where = (
        f"{data.count:,} procedural rooms" if data.source == "rooms" else f"{data.source} {data.path or ''}"
    )
    return f"{where}, {data.px} px"


def _representation(run: Run) -> dict[str, str]:
    encoder = run.config.encoder
    told = f"{encoder.arch}, width {encoder.width}, d = {encoder.dim}"
    return {"encoder": told, "subsets": _subsets(run)}


def _subsets(run: Run) -> str:
    s, boundaries = run.config.subsets, run.state.get("boundaries")
    told = f"{s.n}, choice {s.choice}, mask {s.mask}, {'detached' if s.detach else 'not detached'}"
    return told + (f", boundaries at t = {', '.join(map(str, boundaries))}" if boundaries else "")


def _versions(run: Run) -> dict[str, Any]:
    return run.started.get("versions") or run.checkpoint.get("versions") or {}


def _throughput(run: Run) -> str:
    rates = [rate for rate in run.curve("images_per_second")[1] if rate]
    return f"{number(statistics.median(rates))} images a second (median)" if rates else ""


def _cost(run: Run) -> str:
    if not run.seconds:
        return ""
    world = int(run.started.get("world", 1))
    images = run.step * run.config.train.batch_size
    hours = run.seconds * world / 3600
    each = f"{duration(run.seconds)} of training steps on {world} rank{'s' * (world > 1)}"
    return f"{each} ({number(hours)} device hours), {images:,} images"


def _checkpoint(run: Run) -> str:
    if not run.checkpoint:
        return ""
    average = run.checkpoint["files"].get("ema.safetensors", {}).get("sha256", "")
    told = f"step {run.checkpoint['step']:,}, config {run.checkpoint['config_hash'][:12]}"
    return f"{told}, sha256 of the averages {average}" if average else told
