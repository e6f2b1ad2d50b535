"""Runs that nobody trained, with everything a finished one leaves for its report."""

import json
from pathlib import Path

import numpy as np
import torch
from edited_runs import make_run

from engine.config_file import dump, from_dict
from engine.data.rooms import FACTORS
from engine.report import lattice

torch.set_num_threads(1)  # for fixtures that come before a test
NAMES = [factor.name for factor in FACTORS]
ROWS = ["all", "none", "all, x_T of a", "x_T only", "all + x_T"]


def finished_run(folder: Path, awaken, **changes) -> Path:
    """A run of random networks that can be edited with, and all its numbers."""
    make_run(folder, awaken, **changes)
    state = json.loads(next(folder.glob("checkpoints/*/state.json")).read_text())
    return told_run(folder, state["config"])


def told_run(folder: Path, values: dict, lines: int = 6, shift: float = 0.0) -> Path:
    """A run's config, log and evaluation of Rooms; no networks. ``shift`` moves its numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    config = from_dict(values)
    (folder / "config.json").write_text(dump(config))
    write_log(folder, [point(config.subsets.n, step + 1, shift) for step in range(lines)])
    report = folder / "report"
    report.mkdir(exist_ok=True)
    (report / "evaluation.json").write_text(json.dumps(evaluation(config.subsets.n, shift)))
    return folder


def write_log(folder: Path, points: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points))


def point(n: int, step: int, shift: float = 0.0, **more) -> dict:
    """A line of the log of a healthy run."""
    return {
        "step": step,
        "loss": 1 / step + shift,
        "loss_with_g": 1 / step + shift,
        "loss_frozen": 1.2,
        "feature_std": 0.3,
        "reduction": 0.1 + shift,
        "reduction_by_time": [0.1 * i for i in range(10)],
        "reduction_by_subset": [0.05 * (i + 1) for i in range(n)],
        "causal_effect_by_subset": [0.2] * n,
        "images_per_second": 100.0,
        "data_wait": 0.01,
    } | more


def evaluation(n: int, shift: float = 0.0, factors: list[str] = NAMES) -> dict:
    """Rooms' report: subset i moves factor i and no other."""
    success = np.full((n + len(ROWS), len(factors)), 0.1)
    success[range(n), range(n)] = 0.9
    success[n] = 0.8 + shift
    arm = {"loss_reduction": 0.4 + shift, "mean_probe": 0.6, "moved_by_all": 4, "distinct_factors": n}
    return {
        "verdict": "passes the bar: all of it",
        "bar": [],
        "arms": {"this run": arm, "random encoder": None},
        "full_z_source": "none",
        "factors": factors,
        "probe": {"this run": [0.5 + shift] * len(factors)},
        "causal": {
            "pairs": 8,
            "guidance_scale": 1.0,
            "rows": [*(f"subset {i + 1}" for i in range(n)), *ROWS],
            "success": success.tolist(),
            "live": [{"subset": i + 1, "factor": factors[i], "effect": 0.8} for i in range(n)],
        },
    }


def make_few_pictures(monkeypatch, pairs: int = 1) -> None:
    """An explorer's pictures in seconds."""
    few = {"UP": 2, "DOWN": 2, "LEARNT_FROM": 60, "ATTRIBUTES": 2, "PAIRS": pairs}
    for name, value in few.items():
        monkeypatch.setattr(lattice, name, value)


def render_few(run: Path, monkeypatch, pairs: int = 1) -> Path:
    """The pictures of its explorer in few moves."""
    make_few_pictures(monkeypatch, pairs)
    return lattice.render(run, 1.0)
