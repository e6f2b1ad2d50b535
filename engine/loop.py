"""The training loop: one function, top to bottom."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine import checkpoint, faults, screen
from engine.config import Config
from engine.data.broken import Quarantine
from engine.data.fetching import fetch
from engine.data.pipeline import Loader
from engine.data.source import Source
from engine.ema import Ema
from engine.hang import HangWatch
from engine.keeper import Keeper, Stragglers
from engine.learning_rate import learning_rate
from engine.metrics import JsonLines, Metrics, Record, Sink, Sinks, TensorBoard
from engine.parallel import Ranks, Trainer
from engine.preempt import Interrupted, Preemption
from engine.report.live import LivePage
from engine.resume import load_model, restore
from engine.step import Policy, prepare_trainable
from engine.tasks import Batch, Task
from engine.together import reading
from engine.weights_and_biases import WeightsAndBiases


def train(
    config: Config,
    task: Task,
    source: Source,
    ranks: Ranks,
    policy: Policy,
    resumed: checkpoint.Checkpoint | None,
    state: dict,
    quarantine: Quarantine | None = None,
    preemption: Preemption | None = None,
    hang: HangWatch | None = None,
) -> nn.Module | None:
    """Train to ``train.steps`` and return the averaged model, or None if the run was asked to stop before.

    Args:
        resumed: where to go on from.
        state: JSON-able facts that every checkpoint carries beside the config.
        quarantine: of the source's broken images; None: none is passed over.
        preemption, hang: of the run, if it watches already.

    Raises:
        CheckpointError, DataError, NumericsError, RankError: see :mod:`engine.errors`.
    """
    run_dir = Path(config.run.dir or ".")
    start = resumed.step if resumed else 0
    every = config.log

    with ExitStack() as stack:
        preemption = preemption or stack.enter_context(Preemption())
        hang = hang or stack.enter_context(watch_for_hangs(config, ranks))

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
        stack.callback(loader.close)
        shown = range(min(every.grid_images, len(source)))
        with reading(ranks):
            samples = torch.from_numpy(fetch(source, config.data.px, shown, quarantine=quarantine))
        metrics = Metrics(ranks.device)
        sinks = stack.enter_context(Sinks(open_sinks(config, run_dir, start) if ranks.is_main else []))
        progress = stack.enter_context(
            screen.Progress(config.train.steps, config.train.batch_size, start, task.headline)
        )
        keeper = Keeper(config, trainer, ema, ranks, state, resumed)
        stragglers = Stragglers(ranks)

        # Train.
        step = reported = start
        while step < config.train.steps:
            hang.step(step, first=step == start)
            faults.point("step", step)
            with progress.waiting(), stragglers.own_time():
                faults.point("data", step)
                loader.wait(preemption.requested)
            if preemption.agreed(ranks.sum_on_host):
                break
            trainer.set_lr(learning_rate(config, step))
            reseed_dropout(config, step, ranks.rank)
            for _ in range(config.train.accumulation):
                with reading(ranks), progress.waiting():
                    batch = to_device(next(loader), ranks.device)
                if due(every.gradnorm_every, step) and config.parallel.zero != 3:
                    with unnoticed(trainer.module, ranks.device):
                        for name, norm in task.gradient_norms(trainer.module, batch).items():
                            metrics.add(name, norm)
                loss = faults.spoil("loss", step, task.loss(trainer.engine, batch, metrics))
                faults.spoil_gradient("gradient", step, trainer.module)
                trainer.backward(loss)
                skipped = trainer.step()
            assert skipped is not None, "the last micro-batch ends the step"
            faults.spoil_weights("weights", step, trainer.module)
            metrics.settle(skipped)
            ema.update(step)
            step += 1
            keeper.note(step, skipped)
            progress.advance(step)

            done = step == config.train.steps
            record: Record = {}
            if due(every.every, step) or done:
                record, reported = report(step, metrics, task, keeper, progress, stragglers, ranks), step
            if due(every.grid_every, step) or (done and every.grid_every):
                with hang.phase("drawing"):
                    record |= draw(task, trainer, ema, ranks, samples, grid_path(run_dir, step), preemption)
            if due(config.run.compare_every, step):
                keeper.compare(step)
            sinks.write(step, record)
            if due(every.save_every, step) or done:
                with hang.phase("saving"):
                    keeper.save(step, last=done)

        # Leave.
        if step == config.train.steps:
            with hang.phase("averaging"):
                return averaged(task, trainer, ema, ranks.device)
        if step > reported:
            sinks.write(step, report(step, metrics, task, keeper, progress, stragglers, ranks))
        if step == start:
            screen.line("stopped before the first step; run the same command to go on")
            return None
        with hang.phase("saving"):
            keeper.save(step, last=True)
        screen.line(f"stopped at step {step}, saved; run the same command to go on")
        return None


def report(
    step: int,
    metrics: Metrics,
    task: Task,
    keeper: Keeper,
    progress: screen.Progress,
    stragglers: Stragglers,
    ranks: Ranks,
) -> Record:
    """Read the metrics, show them, and look whether something is wrong with them (collective)."""
    record = metrics.flush(ranks.sum)
    record |= task.derived(record)
    record |= keeper.look(step, record)
    stragglers.look()
    return record | progress.report(step, record)


def draw(
    task: Task,
    trainer: Trainer,
    ema: Ema,
    ranks: Ranks,
    samples: Tensor,
    path: Path,
    preemption: Preemption,
) -> Record:
    """The grid of this step, drawn by rank 0 while the others wait; a request to stop breaks it off."""
    average, record = averaged(task, trainer, ema, ranks.device), Record()
    if ranks.is_main:
        with suppress(Interrupted), preemption.interruptible():
            path.parent.mkdir(parents=True, exist_ok=True)
            faults.point("draw")
            record = task.draw(average, samples.to(ranks.device), path)
    ranks.any(False)
    return record


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
    """metrics.jsonl and, if asked for, TensorBoard, both rewound to step ``start``; W&B; the report."""
    sinks: list[Sink] = [JsonLines(run_dir / "metrics.jsonl", start)]
    if config.log.tensorboard:
        sinks.append(TensorBoard(run_dir / "tensorboard", start))
    if config.log.wandb:
        sinks.append(WeightsAndBiases(config.log.wandb, run_dir, config.to_dict()))
    if config.report.page:
        sinks.append(LivePage(run_dir))
    return sinks


def watch_for_hangs(config: Config, ranks: Ranks) -> HangWatch:
    """With the limits of the config."""
    run = config.run
    return HangWatch(run.timeout, run.timeout_slow, ranks.rank, ranks.peers, run.dir or ".")


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


def grid_path(run_dir: Path, step: int) -> Path:
    """Where the grid of a step goes."""
    return run_dir / "grids" / f"step_{step:08d}.png"
