"""ZeRO stages on several ranks, without a GPU: ``python -m bench.zero``.

The same small model learns the same images for the same steps on 1, 2 and 4 gloo ranks at every ZeRO stage,
and must come to the same weights as on one rank at stage 0. Beside the largest difference stand the bytes
that the optimizer keeps on a rank, measured, and those that a rank sends in a step, counted call by call.
Then one run of engine/train.py's goes on from its checkpoints on 4, 2, 1 and 4 ranks and through all stages,
beside one rank without a stop.

Exit code 1 if weights differ by more than a hundred-thousandth.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.curve import batch_of, pool
from bench.report import markdown
from engine import screen
from engine.build import build_frozen
from engine.communication import Collectives
from engine.config import Config
from engine.config_file import from_dict
from engine.data.share import positions
from engine.learning_rate import learning_rate
from engine.loop import build_trainer
from engine.parallel import Ranks, Trainer
from engine.step import choose_policy, prepare_frozen, prepare_trainable
from engine.tasks import Representation

WORLDS, STAGES, STEPS = (1, 2, 4), (0, 1, 2, 3), 20
CHAIN = ((4, 3), (2, 2), (1, 0), (4, 1))  # ranks and ZeRO stage of a run's legs
POOL = 64  # images
SAME = 1e-5
# Imported once, by the process that ranks are forked from.
LOADED = ["torch", "deepspeed", "bench.curve", "engine.run"]
# SGD: its steps are proportional to gradients. Adam's are nearly their signs at first, and where a gradient
# is rounding (a bias before a batch norm has none) the order of a sum decides on it. At ten times this rate
# some activation of a ReLU comes to lie at 0 within 20 steps, and rounding decides on its whole gradient.
VALUES: dict[str, Any] = {
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
    "optimizer": {"name": "sgd", "lr": 0.005},
    "train": {"steps": STEPS, "batch_size": 16, "precision": "fp32"},
    "log": {"every": 5, "grid_every": 0, "save_every": 100, "gradnorm_every": 0, "tensorboard": False},
}
Row = dict[str, Any]


def config(zero: int | str = "auto", run_dir: str = "runs/zero", **sections: dict[str, Any]) -> Config:
    """The small model's, with sections changed."""
    changed = {name: VALUES.get(name, {}) | section for name, section in sections.items()}
    return from_dict(VALUES | {"parallel": {"zero": zero}, "run": {"dir": run_dir}} | changed)


def learn(
    config: Config, ranks: Ranks, images: dict[str, Tensor], count: Collectives
) -> tuple[dict[str, Tensor], Trainer]:
    """Train on resident images; what the last step sends is counted. Gives the first weights too."""
    policy, original = choose_policy(config, ranks.device), build_frozen(config)
    assert original is not None
    task = Representation(config, policy, prepare_frozen(original, policy), None, start=original)
    trainer = build_trainer(config, prepare_trainable(task.build(), policy), ranks, policy)
    before = {name: tensor.clone() for name, tensor in trainer.full_model().items()}
    for step in range(config.train.steps):
        trainer.set_lr(learning_rate(config, step))
        with count if step + 1 == config.train.steps else nullcontext():
            for micro_step in range(config.train.accumulation):
                part = _part(step, micro_step, images, config, ranks)
                trainer.backward(task.loss(trainer.engine, part))
                trainer.step()
    return before, trainer


def _part(
    step: int, micro_step: int, images: dict[str, Tensor], config: Config, ranks: Ranks
) -> dict[str, Tensor]:
    """This rank's images of one micro-batch."""
    size = config.train.batch_size
    micro = size // (ranks.world * config.train.accumulation)
    place = {"batch_size": size, "rank": ranks.rank, "world": ranks.world, "micro_batch": micro}
    mine = torch.from_numpy(positions(step, micro_step, **place)) - step * size
    return {name: tensor[mine] for name, tensor in batch_of(step, images, config).items()}


def stages(ranks: Ranks, folder: Path, zeros: tuple[int, ...], sections: dict[str, Any]) -> None:
    """Every stage on these ranks: weights and what was counted, into ``folder``."""
    images = pool(config(**sections), ranks.device, POOL)
    for zero in zeros:
        count = Collectives()
        before, trainer = learn(config(zero, **sections), ranks, images, count)
        weights = {name: tensor.contiguous() for name, tensor in trainer.full_model().items()}
        name = f"ranks{ranks.world}_zero{zero}"
        row = {
            "ranks": ranks.world,
            "zero": zero,
            "optimizer_bytes": trainer.optimizer_bytes(),
            "sent_bytes": round(count.sent(ranks.world)),
            "calls": count.calls,
            "bytes": count.bytes,
            "moved": difference(weights, before),
            "overlap": bool(trainer.engine.zero_overlap_comm()) if zero else False,
        }
        (folder / f"{name}_rank{ranks.rank}.json").write_text(json.dumps(row))
        if ranks.is_main:
            save_file(weights, folder / f"{name}.safetensors")


def leg(ranks: Ranks, run_dir: str, zero: int, steps: int) -> None:
    """One leg of a run, from its newest checkpoint to ``steps``."""
    from engine.run import run

    run(config(zero, run_dir, train={"steps": steps}))


def on_ranks(world: int, work: Callable[..., None], *arguments: Any) -> None:
    """``work(ranks, *arguments)`` on every one of ``world`` new processes.

    Raises:
        RuntimeError: one of them failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = [
        context.Process(target=_rank, args=(rank, world, port, work, arguments)) for rank in range(world)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if failed := [rank for rank, process in enumerate(started) if process.exitcode]:
        raise RuntimeError(f"of {world} ranks these failed: {failed}")


def _rank(rank: int, world: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    screen.quiet_libraries()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # warns of optimizers it has not tested
    from engine.parallel import start_ranks, stop_ranks

    ranks = start_ranks()
    try:
        with screen.muted():
            work(ranks, *arguments)
    finally:
        stop_ranks()


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest of any weight or statistic."""
    assert a.keys() == b.keys()
    return max((a[name].double() - b[name].double()).abs().max().item() for name in a)


def table(worlds: tuple[int, ...], zeros: tuple[int, ...], **sections: dict[str, Any]) -> list[Row]:
    """One row for every number of ranks and stage; bytes are those of the rank that holds or sends most."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for world in worlds:
            on_ranks(world, stages, folder, zeros, sections)
        reference = load_file(folder / f"ranks{worlds[0]}_zero{zeros[0]}.safetensors")
        rows = []
        for path in sorted(folder.glob("*.safetensors")):
            held = [json.loads(file.read_text()) for file in sorted(folder.glob(f"{path.stem}_rank*.json"))]
            most = max(row["optimizer_bytes"] for row in held)
            found = difference(load_file(path), reference)
            rows.append({**held[0], "optimizer_bytes": most, "difference": found})
    return sorted(rows, key=lambda row: (row["ranks"], row["zero"]))


def chain(legs: tuple[tuple[int, int], ...] = CHAIN, leg_steps: int = 5) -> Row:
    """A run that goes on on other ranks at other stages, beside one that does not stop."""
    steps = leg_steps * len(legs)
    with tempfile.TemporaryDirectory() as name:
        for i, (world, zero) in enumerate(legs):
            on_ranks(world, leg, f"{name}/chain", zero, leg_steps * (i + 1))
        on_ranks(1, leg, f"{name}/straight", 0, steps)
        parts = {}
        for part in ("model", "ema", "optimizer"):
            ends = (
                Path(name, run, "checkpoints", f"step_{steps:08d}", f"{part}.safetensors")
                for run in ("chain", "straight")
            )
            parts[part] = difference(*map(load_file, ends))
    return {"legs": legs, "steps": steps, **parts}


def show(rows: list[Row], resumed: Row) -> str:
    """In Markdown."""
    columns = ["ranks", "ZeRO", "largest difference of a weight", "optimizer, KiB a rank"]
    columns += ["sent, KiB a rank and step", "collectives a step"]
    cells = [
        [
            str(row["ranks"]),
            str(row["zero"]),
            f"{row['difference']:.1e}",
            f"{row['optimizer_bytes'] / 1024:,.0f}",
            f"{row['sent_bytes'] / 1024:,.0f}",
            ", ".join(f"{count} {kind}" for kind, count in sorted(row["calls"].items())) or "none",
        ]
        for row in rows
    ]
    legs = " -> ".join(f"{world} (ZeRO {zero})" for world, zero in resumed["legs"])
    differs = ", ".join(f"{part} {resumed[part]:.1e}" for part in ("model", "ema", "optimizer"))
    return f"{markdown(columns, cells)}\nresumed on {legs} ranks, beside one rank without a stop: {differs}\n"


def main(arguments: list[str]) -> int:
    """Run and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench.zero", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    rows, resumed = table(WORLDS, STAGES), chain()
    print(json.dumps({"rows": rows, "resumed": resumed}, indent=2) if options.json else show(rows, resumed))
    worst = max(resumed["model"], *(row["difference"] for row in rows))
    return int(worst > SAME)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
