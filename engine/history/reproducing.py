"""``diffsiam runs reproduce``: a run once more, from what it recorded, and whether the same came out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from engine import checkpoint, screen
from engine.checkpoint import Checkpoint
from engine.config import Config
from engine.config_file import dump, from_dict
from engine.data.held_out import split
from engine.data.sources import open_source
from engine.errors import UsageError
from engine.history.reading import Run, open_run
from engine.published import demand_same_file, read_frozen, record


def reproduce(path: Path, out: Path, only_prepare: bool) -> bool | None:
    """Check that images and weights are those of the run, train once more, compare.

    Args:
        path: of a run with a checkpoint.
        out: of the new run; must not hold one.
        only_prepare: write ``out``'s config and print the command that runs it, on any number of ranks.

    Returns:
        Whether every saved tensor is the same to the bit; None where nothing was trained.

    Raises:
        UsageError: there is nothing to reproduce, ``out`` is taken, or images or weights are other ones.
    """
    found = checkpoint.latest(path)
    if found is None:
        raise UsageError(f"{path}: no checkpoint there; give the directory of a run")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: exists already; choose another --out")
    config = moved(from_dict(found.stated("config")), out)
    demand_same_inputs(config, found)
    for name, then, now in other_versions(open_run(path)):
        screen.warn(f"{name} was {then} and is {now} now: results may differ in the last digits")
    if only_prepare:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(dump(config))
        screen.line(f"deepspeed engine/train.py --config {out / 'config.json'}")
        return None

    from engine.parallel import stop_ranks
    from engine.run import run

    try:
        run(config)
    finally:
        stop_ranks()
    return _verdict(open_run(path), open_run(out), found)


def moved(config: Config, out: Path) -> Config:
    """The same run in another directory."""
    return config.model_copy(update={"run": config.run.model_copy(update={"dir": str(out)})})


def demand_same_inputs(config: Config, found: Checkpoint) -> None:
    """Compare images and frozen weights with what the run recorded.

    Raises:
        UsageError: they are other ones.
    """
    data = config.data
    whole = open_source(data.source, data.path, data.px, config.seed, data.count, data.split)
    if split(whole, data.held_out)[0].fingerprint() != found.stated("data"):
        raise UsageError(
            f"data.path={data.path}: these are not the images of {found.path.parent.parent} (their names, "
            "sizes or number); put those back, or train anew with --config"
        )
    parts = read_frozen(config)
    demand_same_file(found.state.get("weights"), None if parts is None else record(parts))


def other_versions(run: Run) -> list[tuple[str, str, str]]:
    """(package, version then, version now) of those that differ."""
    now = checkpoint.versions()
    return [
        (name, then, now.get(name, "absent"))
        for name, then in run.versions.items()
        if now.get(name, "absent") != then
    ]


def _verdict(old: Run, new: Run, found: Checkpoint) -> bool:
    """Say how far two runs agree."""
    again = new.checkpoints.get(found.step)
    differing = differing_tensors(found, checkpoint.verify(again)) if again else {}
    if again and not differing:
        screen.line(f"reproduced: step {found.step} is the same to the bit")
        return True
    if differing:
        name = max(differing, key=lambda key: differing[key])
        screen.line(
            f"not the same to the bit: {len(differing)} tensors of step {found.step} differ, by "
            f"{differing[name]:.3g} at most ({name})"
        )
    worst = largest_difference(old, new)
    if worst:
        step, name, change = worst
        screen.line(f"metrics differ by {change:.3g} of their value at most: {name} at step {step}")
    return False


def differing_tensors(a: Checkpoint, b: Checkpoint) -> dict[str, float]:
    """Names of averaged weights that differ in any bit, with their largest difference."""
    theirs = b.load("ema")
    return {
        name: float((tensor.double() - theirs[name].double()).abs().max())
        for name, tensor in a.load("ema").items()
        if not tensor.equal(theirs[name])
    }


def largest_difference(old: Run, new: Run) -> tuple[int, str, float] | None:
    """(step, metric, relative difference) where two logs differ most; speed is no result."""
    found = [
        (step, name, abs(new.metrics[step][name] - value) / abs(value))
        for step, line in old.metrics.items()
        for name, value in line.items()
        if _is_result(name, value) and _is_result(name, new.metrics.get(step, {}).get(name))
    ]
    return max(found, key=lambda item: item[2], default=None)


def _is_result(name: str, value: Any) -> bool:
    timing = name in ("images_per_second", "data_wait")
    return not timing and isinstance(value, int | float) and math.isfinite(value) and value != 0
