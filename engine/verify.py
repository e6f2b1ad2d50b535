"""Proof that a run resumes exactly, with the user's own config, on the user's own machine.

Some steps straight; the same with a request to stop in the middle and a new start; both states compared to
the bit. Where they differ, a second straight run tells whether the machine computes anything twice alike.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine import checkpoint, screen
from engine.config_file import load
from engine.errors import NumericsError, UsageError
from engine.faults import VARIABLE

ENTRY = Path(__file__).resolve().with_name("train.py")
FIXED = (
    "train.steps={steps}",
    "log.every=1",
    "log.save_every=1000000",
    "log.grid_every=0",
    "log.tensorboard=false",
    "report.factors=false",
    "run.stop_code=0",
)


def verify_resume(
    config: Path, overrides: Sequence[str], steps: int, stop: int, world: int, folder: Path | None = None
) -> str:
    """Run, stop, resume and compare; prints what it does. Returns the sha256 of the common state.

    Args:
        steps: to train; ``stop``: those before the stop, fewer.
        world: ranks, all on this machine.
        folder: for the two or three runs, which are removed; None: the system's temporary folder.

    Raises:
        UsageError: the config cannot run, or the steps make no sense.
        NumericsError: the states differ; how much, and whether two straight runs do as well.
    """
    if not 0 < stop < steps:
        raise UsageError(f"--stop {stop}: give a step between 1 and {steps - 1}, or more --steps")
    load(config, overrides)  # what is wrong with it is said before anything starts
    with tempfile.TemporaryDirectory(prefix="verify_resume_", dir=folder) as place:
        runs = {name: Path(place) / name for name in ("straight", "resumed", "again")}

        def train(name: str, stop: int | None = None) -> None:
            fixed = [item.format(steps=steps) for item in FIXED]
            arguments = ["--config", str(config), *overrides, *fixed, f"run.dir={runs[name]}"]
            _train(arguments, world, f"step:step={stop}:term" if stop is not None else "")

        screen.line(f"{steps} steps straight, {world} rank{'s' if world > 1 else ''}")
        train("straight")
        screen.line(f"{stop} steps, a request to stop, and on from the checkpoint")
        train("resumed", stop)
        stopped = checkpoint.latest(runs["resumed"])
        if stopped is None or not 0 < stopped.step < steps:
            raise UsageError("the run did not stop where it was asked to; give more --steps")
        train("resumed")
        states = {name: state(runs[name]) for name in ("straight", "resumed")}
        if not (differing := different(states["straight"], states["resumed"])):
            digest = state_hash(states["straight"])
            screen.line(
                f"exact: stopped at step {stopped.step} and resumed, all {len(states['straight'])} tensors "
                f"of step {steps} are bit-identical to the straight run's; sha256 {digest}"
            )
            return digest
        train("again")
        own = different(states["straight"], state(runs["again"]))
        raise NumericsError(_verdict(differing, own, len(states["straight"])))


def _verdict(differing: dict[str, float], own: dict[str, float], count: int) -> str:
    name = max(differing, key=lambda key: differing[key])
    said = (
        f"not exact: {len(differing)} of {count} tensors differ after resuming, by {differing[name]:.3g} at "
        f"most ({name})"
    )
    if own:
        return (
            f"{said}; two straight runs differ as well, by {max(own.values()):.3g}: this machine's kernels "
            "do not compute the same twice, and resuming can be no more exact than that"
        )
    return f"{said}; two straight runs are bit-identical, so resuming is at fault: please report this"


def state(run_dir: Path) -> dict[str, Tensor]:
    """All tensors of a run's newest checkpoint by file and name."""
    found = checkpoint.latest(run_dir)
    assert found is not None, f"{run_dir} has trained"
    stems = sorted(file.stem for file in found.path.glob("*.safetensors"))
    return {f"{stem}:{name}": tensor for stem in stems for name, tensor in found.load(stem).items()}


def state_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 (hex) of names, dtypes, shapes and bits, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def different(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Names of tensors that differ in any bit, with their largest difference."""
    if a.keys() != b.keys():
        raise NumericsError("the two states do not hold the same tensors")
    return {
        name: float((a[name].double() - b[name].double()).abs().max())
        for name in a
        if not torch.equal(a[name], b[name])
    }


def _train(arguments: Sequence[str], world: int, fault: str) -> None:
    """Run engine/train.py on ``world`` ranks of this machine.

    Raises:
        UsageError: it failed; with its last line.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), VARIABLE: fault}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(ENTRY), *arguments],
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [process.communicate()[0] for process in ranks]
    for process, output in zip(ranks, outputs, strict=True):
        if process.returncode:
            last = (output.strip().splitlines() or ["it said nothing"])[-1]
            raise UsageError(f"the run failed with exit code {process.returncode}: {last}")
