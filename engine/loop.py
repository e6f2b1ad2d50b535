"""The training loop: one function, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import checkpoint, screen
from engine.config import Config
from engine.config_file import config_hash
from engine.data.broken import Quarantine
from engine.data.fetching import fetch
from engine.data.pipeline import Loader
from engine.data.source import Source
from engine.ema import Ema
from engine.errors import NumericsError
from engine.learning_rate import learning_rate
from engine.metrics import JsonLines, Metrics, Record, Sink, TensorBoard, collapse_warning
from engine.parallel import Ranks, Trainer
from engine.preempt import Preemption
from engine.resume import load_model, restore, snapshot
from engine.step import Policy, prepare_trainable
from engine.tasks import Batch, Task
from engine.weights_and_biases import WeightsAndBiases

AFTER_NUMERICS = "the last checkpoint is intact; lower optimizer.lr or set optimizer.grad_clip"


def train(
    config: Config,
    task: Task,
    source: Source,
    ranks: Ranks,
    policy: Policy,
    resumed: checkpoint.Checkpoint | None,
    state: dict,
    quarantine: Quarantine | None = None,
) -> nn.Module | None:
    """Train to ``train.steps`` and return the averaged model, or None if the run was asked to stop before.

    Args:
        resumed: where to go on from.
        state: JSON-able facts that every checkpoint carries beside the config.
        quarantine: of the source's broken images; None: none is passed over.

    Raises:
        CheckpointError, DataError, NumericsError: see :mod:`engine.errors`.
    """
    run_dir = Path(config.run.dir or ".")
    start = resumed.step if resumed else 0

    # Build what is trained, its optimizer and its average.
    module = task.build()
    if resumed:
        load_model(module, resumed.load("model"), resumed.path)
    trainer = build_trainer(config, prepare_trainable(module, policy), ranks, policy)
    ema = Ema(
        trainer.local_parameters(),
        trainer.module.named_buffers(),
        config.train.ema_decay,
        config.train.ema_warmup,
    )
    if resumed:
        restore(resumed, trainer, ema)

    # Build the data and everything that is written.
    loader = build_loader(config, source, ranks, task.views, start, quarantine)
    shown = range(min(config.log.grid_images, len(source)))
    samples = torch.from_numpy(fetch(source, config.data.px, shown, quarantine=quarantine))
    metrics, sinks = Metrics(ranks.device), open_sinks(config, run_dir, start) if ranks.is_main else []
    progress = screen.Progress(config.train.steps, config.train.batch_size, start, task.headline)

    def save(step: int) -> None:
        tensors = snapshot(trainer, ema)
        demand_finite(tensors["model"], step)
        if ranks.is_main:
            checkpoint.save(run_dir, step, tensors, state, config_hash(config), config.log.keep)

    # Train.
    step, stopped = start, False
    with ExitStack() as stack:
        preemption = stack.enter_context(Preemption())
        stack.enter_context(progress)
        for close in (loader.close, *(sink.close for sink in sinks)):
            stack.callback(close)
        while step < config.train.steps and not stopped:
            trainer.set_lr(learning_rate(config, step))
            reseed_dropout(config, step, ranks.rank)
            for _ in range(config.train.accumulation):
                with progress.waiting():
                    batch = to_device(next(loader), ranks.device)
                if due(config.log.gradnorm_every, step) and config.parallel.zero != 3:
                    with unnoticed(trainer.module, ranks.device):
                        for name, norm in task.gradient_norms(trainer.module, batch).items():
                            metrics.add(name, norm)
                trainer.backward(task.loss(trainer.engine, batch, metrics))
                trainer.step()
            ema.update(step)
            step += 1
            progress.advance(step)
            stopped = preemption.agreed(ranks.sum_on_host)

            done = step == config.train.steps
            last = done or stopped
            record: Record = {}
            if due(config.log.every, step) or last:
                record = metrics.flush(ranks.sum)
                record |= task.derived(record)
                watch(record, config, step)
                record |= progress.report(step, record)
            if due(config.log.grid_every, step) or (done and config.log.grid_every):
                average = averaged(task, trainer, ema, ranks.device)
                if ranks.is_main:
                    record |= task.draw(average, samples.to(ranks.device), grid_path(run_dir, step))
            for sink in sinks:
                sink.write(step, record) if record else None
            if due(config.log.save_every, step) or last:
                save(step)

    # Leave.
    if stopped:
        screen.line(f"stopped at step {step}, saved; run the same command to go on")
        return None
    return averaged(task, trainer, ema, ranks.device)


def build_trainer(config: Config, module: nn.Module, ranks: Ranks, policy: Policy) -> Trainer:
    """Optimizer and ZeRO stage from the config."""
    o = config.optimizer
    options: dict[str, Any] = {"lr": o.lr, "weight_decay": o.weight_decay}
    options |= {"betas": o.betas} if o.name == "adam" else {"momentum": o.momentum}
    with screen.muted():
        return Trainer(
            module,
            o.name,
            options,
            ranks,
            micro_batch=config.train.batch_size // (ranks.world * config.train.accumulation),
            accumulation=config.train.accumulation,
            zero=zero_stage(config, ranks),
            autocast=policy.autocast,
            grad_clip=o.grad_clip,
        )


def zero_stage(config: Config, ranks: Ranks) -> int:
    """``parallel.zero``, where "auto" shards the optimizer state as soon as there is somebody to share it
    with.
    """
    stage = config.parallel.zero
    return (1 if ranks.world > 1 else 0) if stage == "auto" else stage


def build_loader(
    config: Config,
    source: Source,
    ranks: Ranks,
    views: bool,
    start: int,
    quarantine: Quarantine | None = None,
) -> Loader:
    """This rank's endless micro-batches from step ``start`` on."""
    return Loader(
        source,
        config.data.px,
        config.seed,
        config.train.batch_size,
        rank=ranks.rank,
        world=ranks.world,
        views=views,
        augment=config.data.augment,
        flip=config.data.flip,
        threads=config.data.threads,
        device_id=ranks.device.index if ranks.device.type == "cuda" else None,
        start_step=start,
        accumulation=config.train.accumulation,
        workers=config.data.workers,
        depth=config.data.prefetch,
        quarantine=quarantine,
    )


def open_sinks(config: Config, run_dir: Path, start: int) -> list[Sink]:
    """metrics.jsonl and, if asked for, TensorBoard events, both rewound to step ``start``, and W&B."""
    sinks: list[Sink] = [JsonLines(run_dir / "metrics.jsonl", start)]
    if config.log.tensorboard:
        sinks.append(TensorBoard(run_dir / "tensorboard", start))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(config.log.wandb, run_dir, config.to_dict()))
    return sinks


def due(every: int, step: int) -> bool:
    """Whether something done every so many steps is due; 0 is never."""
    return every > 0 and step % every == 0


def to_device(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    """The batch on the device, copied without waiting."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def reseed_dropout(config: Config, step: int, rank: int) -> None:
    """Tie dropout, the one draw of torch's own generator, to (seed, step, rank): resuming repeats it."""
    torch.manual_seed(((config.seed * 1_000_003 + step) * 4096 + rank) % 2**63)


@contextmanager
def unnoticed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Undo what a measurement does to batch norm's statistics and to the dropout of the step after it:
    logging must not change what is learned.
    """
    before = [buffer.clone() for buffer in module.buffers()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    for buffer, value in zip(module.buffers(), before, strict=True):
        buffer.copy_(value)


def averaged(task: Task, trainer: Trainer, ema: Ema, device: torch.device) -> nn.Module:
    """A separate module in eval mode that holds the average (collective)."""
    module = task.build().to(device).eval().requires_grad_(False)
    module.load_state_dict(trainer.full_like_parameters(ema.state_dict()))
    return module


def watch(record: Record, config: Config, step: int) -> None:
    """Stop on a loss that is no number, warn of a collapse.

    Raises:
        NumericsError: the checkpoints before this step are intact.
    """
    loss, std = record.get("loss"), record.get("feature_std")
    if isinstance(loss, float) and not math.isfinite(loss):
        raise NumericsError(f"the loss is {loss} at step {step}; {AFTER_NUMERICS}")
    if isinstance(std, float) and (warning := collapse_warning(std, config.encoder.dim)):
        screen.warn(warning)


def demand_finite(model: dict[str, Tensor], step: int) -> None:
    """Refuse to save a model that is lost: a step may leave the finite numbers after its loss was computed.

    Raises:
        NumericsError: the checkpoints before this step are intact.
    """
    finite = torch.stack([tensor.isfinite().all() for tensor in model.values()])
    if not finite.all():
        name = next(name for name, good in zip(model, finite.tolist(), strict=True) if not good)
        raise NumericsError(f"{name} is not finite after step {step}, which is not saved; {AFTER_NUMERICS}")


def grid_path(run_dir: Path, step: int) -> Path:
    """Where the grid of a step goes; creates the folder."""
    path = run_dir / "grids" / f"step_{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
