"""A run of seconds, and processes that run it: what the tests of training share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent

TINY = {
    "method": "diffsiam",
    "data": {"source": "rooms", "px": 16, "count": 500, "threads": 1},
    "frozen": {
        "weights": "random",
        "base_channels": 16,
        "channel_mult": [1, 2],
        "blocks": 1,
        "attention": [2],
    },
    "encoder": {"arch": "resnet10", "width": 8, "dim": 64},
    "subsets": {"n": 8},
    "decoder": {"init": "frozen"},
    "simsiam": {"projector": "mlp2", "dim": 32, "hidden": 16},
    "train": {"steps": 6, "batch_size": 8, "precision": "fp32"},
    "log": {"every": 1, "grid_every": 0, "save_every": 3, "tensorboard": False},
}


def write_config(path: Path, values: dict = TINY) -> Path:
    path.write_text(json.dumps(values))
    return path


def environment(**more: str) -> dict[str, str]:
    kept = {
        k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
    }
    return kept | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)} | more


def start(arguments: list[str], **env: str) -> subprocess.Popen:
    """engine/train.py as a process of its own."""
    return start_python([str(ROOT / "engine" / "train.py"), *arguments], **env)


def start_python(arguments: list[str], **env: str) -> subprocess.Popen:
    """Python as a process of its own."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen, seconds: float = 200) -> list[str]:
    """Outputs of processes that must end well."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    """Everything a checkpoint holds, by file and name."""
    directory = run / "checkpoints" / f"step_{step:08d}"
    return {
        f"{file.stem}:{name}": tensor
        for file in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def differing(run_a: Path, run_b: Path, step: int) -> list[str]:
    """Names of the tensors in which two checkpoints differ in any bit."""
    a, b = tensors(run_a, step), tensors(run_b, step)
    assert a, f"{run_a} holds no tensors"
    assert a.keys() == b.keys()
    return [name for name in a if not a[name].equal(b[name])]


def distance(run_a: Path, run_b: Path, step: int) -> float:
    """The largest difference between two checkpoints."""
    a, b = tensors(run_a, step), tensors(run_b, step)
    assert a.keys() == b.keys()
    return max((a[name].float() - b[name].float()).abs().max().item() for name in a)


def logged(run: Path, name: str) -> list[float]:
    """One metric over the steps of a run."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]
