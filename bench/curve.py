"""Loss curves of the real step on the kernels and on their references: ``python -m bench.curve``.

Both train the same model from the same weights on the same resident Rooms, with the same t, k and noise. In
float32 they must stay together step by step; in bfloat16 rounding parts them, and their means must not.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.contenders import Batch, Ours
from bench.gate import SMALL_LOSS
from bench.report import markdown
from bench.step import parse, with_ranks
from engine.config import Config
from engine.data.rooms import Rooms
from engine.errors import UsageError
from engine.parallel import Ranks
from engine.step import choose_policy

FIRST, LAST = 10, 50  # steps compared one by one, and steps whose means are compared
# Largest relative difference of either, by precision; "auto" is bfloat16 on a GPU.
PRECISIONS = {"fp32": (1e-4, 1e-2), "auto": (2e-2, 2e-2)}
POOL = 2048  # resident images
Row = dict[str, Any]


def pool(config: Config, device: torch.device, count: int = POOL) -> dict[str, Tensor]:
    """Resident Rooms uint8 (count, px, px, 3), and two views of each: mirrored, and half as bright again."""
    rooms = Rooms(config.data.px, config.seed, count)
    images = torch.from_numpy(rooms.images(np.arange(count))).to(device)
    brighter = (images.float() * 1.3).clamp(max=255).to(torch.uint8)
    return {"x_0": images, "view_1": images.flip(2).contiguous(), "view_2": brighter}


def batch_of(step: int, images: dict[str, Tensor], config: Config) -> Batch:
    """The images of a step in order, and their positions."""
    size, device = config.train.batch_size, images["x_0"].device
    position = torch.arange(step * size, (step + 1) * size, device=device)
    return {name: pool[position % len(pool)] for name, pool in images.items()} | {"position": position}


def curve(config: Config, ranks: Ranks, images: dict[str, Tensor], steps: int) -> list[float]:
    """The loss of every step."""
    torch.manual_seed(0)
    ours = Ours(config, ranks, choose_policy(config, ranks.device))
    return torch.stack([ours.step(batch_of(step, images, config)) for step in range(steps)]).tolist()


def compare(ours: list[float], reference: list[float], bounds: tuple[float, float]) -> Row:
    """Largest relative difference of the first steps, and that of the last steps' means."""
    a, b = np.array(ours), np.array(reference)
    first = float(np.max(np.abs(a - b)[:FIRST] / np.maximum(np.abs(b)[:FIRST], SMALL_LOSS)))
    means = a[-LAST:].mean(), b[-LAST:].mean()
    last = float(abs(means[0] - means[1]) / max(abs(means[1]), SMALL_LOSS))
    green = first <= bounds[0] and last <= bounds[1]
    return {"first_steps": first, "last_mean": last, "bounds": bounds, "green": bool(green)}


def bench(config: Config, ranks: Ranks, steps: int) -> Row:
    """Both curves in each precision that the device has."""
    cuda = ranks.device.type == "cuda"
    images, rows = pool(config, ranks.device), {}
    for precision, bounds in list(PRECISIONS.items())[: 2 if cuda else 1]:
        curves = {}
        for backend in ("triton" if cuda else "auto", "reference"):
            compile = "auto" if precision == "auto" else "off"
            train = config.train.model_copy(update={"precision": precision, "compile": compile})
            kernels = config.kernels.model_copy(update={"backend": backend})
            some = config.model_copy(update={"train": train, "kernels": kernels})
            tf32 = torch.backends.cudnn.allow_tf32
            torch.backends.cudnn.allow_tf32 = precision != "fp32"
            curves[backend] = curve(some, ranks, images, steps)
            torch.backends.cudnn.allow_tf32 = tf32
        ours, reference = curves.values()
        rows[precision] = compare(ours, reference, bounds) | {"kernels": ours, "reference": reference}
    return {"config": config.data.px, "batch": config.train.batch_size, "steps": steps, "rows": rows}


def table(report: Row) -> str:
    """In Markdown: both curves at some steps, and how far they part."""
    rows = []
    for precision, row in report["rows"].items():
        places = sorted({0, *(report["steps"] * i // 6 - 1 for i in range(1, 7))} - {-1})
        for name in ("kernels", "reference"):
            at = ", ".join(f"{row[name][i]:.4f}" for i in places)
            rows.append([precision, name, at, "", ""])
        verdict = "green" if row["green"] else "RED"
        rows[-1][3:] = [f"{row['first_steps']:.1e}", f"{row['last_mean']:.1e} {verdict}"]
    columns = ["precision", "losses of", f"at 7 of {report['steps']} steps"]
    return markdown([*columns, f"first {FIRST} differ by", f"means of last {LAST} by"], rows)


def main(arguments: list[str]) -> int:
    """Run and return the exit code: 1 if curves part."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--out", type=Path, help="JSON file")
    mine, others = own.parse_known_args(arguments)
    options = parse(others)
    try:
        report = with_ranks(options, lambda config, ranks: bench(config, ranks, options.steps))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if mine.out:
        mine.out.write_text(json.dumps(report))
    print(table(report))
    return int(not all(row["green"] for row in report["rows"].values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
