"""Computing again what was not finite: does it come from the images, from the weights, or from the hardware?

A run that leaves out too many updates writes ``<run>/dump``: weights, config and the steps in question.
Noise, subsets and views are functions of the position in the stream, so the same loss and gradient can be
computed again, here, as often as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from engine import checkpoint, screen
from engine.build import build_frozen
from engine.config import Config
from engine.config_checks import micro_batch
from engine.config_file import from_dict
from engine.data.held_out import split
from engine.data.order import locate, order
from engine.data.pipeline import Loader
from engine.data.source import Source
from engine.data.sources import open_source
from engine.errors import UsageError
from engine.loop import reseed_dropout, to_device
from engine.numerics import not_finite
from engine.published import read_frozen
from engine.resume import load_model
from engine.step import Policy, choose_policy, prepare_frozen, prepare_trainable
from engine.tasks import Batch, Pretraining, Representation, Task

STEPS_TRIED = 4
SAMPLES_NAMED = 16
AFTER = 1_000  # steps behind the last bad one, whose images nobody blamed


@dataclass(frozen=True)
class Again:
    """A micro-batch computed twice: whether it was finite, and both times the same to the bit."""

    finite: bool
    same: bool
    loss: float


@dataclass
class Dump:
    """What a run left, ready to compute."""

    config: Config
    policy: Policy
    task: Task
    module: nn.Module
    source: Source
    device: torch.device
    found: checkpoint.Checkpoint

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, in the sizes in which the run computed them."""
        train = self.config.train
        world = self.found.stated("world")
        size = micro_batch(self.config, world)
        loader = Loader(
            self.source,
            self.config.data.px,
            self.config.seed,
            train.batch_size,
            micro_batch=size,
            views=self.task.views,
            augment=self.config.data.augment,
            flip=self.config.data.flip,
            threads=self.config.data.threads,
            device_id=self.device.index if self.device.type == "cuda" else None,
            start_step=step,
            accumulation=train.batch_size // size,
        )
        try:
            return [to_device(next(loader), self.device) for _ in range(train.batch_size // size)]
        finally:
            loader.close()

    def once(self, batch: Batch, step: int) -> tuple[Tensor, list[Tensor]]:
        """Loss and gradients of a batch; the module's statistics and parameters stay as they are."""
        before = [buffer.clone() for buffer in self.module.buffers()]
        reseed_dropout(self.config, step, 0)
        with self.policy.autocasting():
            loss = self.task.loss(self.module, batch)
        trained = [p for p in self.module.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        for buffer, value in zip(self.module.buffers(), before, strict=True):
            buffer.copy_(value)
        return loss.detach(), [gradient for gradient in gradients if gradient is not None]

    def twice(self, batch: Batch, step: int) -> Again:
        """A batch computed two times over."""
        (loss, first), (other, second) = self.once(batch, step), self.once(batch, step)
        finite = bool(loss.isfinite()) and not bool(not_finite(first))
        same = all(_same(a, b) for a, b in zip((loss, *first), (other, *second), strict=True))
        return Again(finite, same, float(loss))

    def alone(self, batch: Batch, step: int, row: int) -> bool:
        """Whether one sample, twice so that a batch norm has two, is finite without the others."""
        pair = {name: tensor[[row, row]] for name, tensor in batch.items()}
        return self.twice(pair, step).finite

    def names(self, positions: list[int]) -> list[str]:
        """The images at positions of the stream."""
        epochs, places = locate(np.array(positions), len(self.source))
        indices = order(self.config.seed, epochs, places, len(self.source))
        return [self.source.item(int(index)) for index in indices]


def replay(run_dir: Path) -> str:
    """Compute the dumped steps again and say what they show; prints what it does. Returns the verdict's first
    word: "hardware", "data" or "weights".

    Raises:
        UsageError: there is no dump, or its images or frozen model are not where they were.
        CheckpointError: the dump is damaged.
    """
    dump = open_dump(run_dir)
    steps = list(dump.found.stated("skipped_steps"))
    tried = sorted({steps[i * (len(steps) - 1) // max(STEPS_TRIED - 1, 1)] for i in range(STEPS_TRIED)})
    screen.line(f"{dump.found.path}: {len(steps)} updates were left out; steps {_listed(tried)} again, twice")
    screen.line(f"{dump.device}, {dump.policy.reasons[0][1]}")
    rows, bad, unsteady = [], [], False
    for step in tried:
        for number, batch in enumerate(dump.batches(step)):
            again = dump.twice(batch, step)
            unsteady |= not again.same
            rows.append([step, number, f"{again.loss:.6g}", _yes(again.finite), _yes(again.same)])
            if not again.finite:
                bad.append((step, batch))
    screen.table(["step", "micro-batch", "loss", "finite", "same twice"], rows)
    verdict = _verdict(dump, steps, bad, unsteady)
    screen.line(verdict)
    return verdict.partition(":")[0]


def _verdict(dump: Dump, steps: list[int], bad: list[tuple[int, Batch]], unsteady: bool) -> str:
    if unsteady:
        return "hardware: the same computation gave two results on this machine; test its memory and devices"
    if not bad:
        at = dump.found.step
        same = "the same" if steps == list(range(at - len(steps), at)) else f"step {at}'s"
        return (
            f"hardware: every step is finite here, from {same} weights and the same images and noise; the "
            "device that computed it is to be suspected, unless it computed in another precision"
        )
    control_step = steps[-1] + AFTER
    control = [dump.twice(batch, control_step).finite for batch in dump.batches(control_step)]
    if not any(control):
        return (
            f"weights: other images (step {control_step}) are not finite either, so the model itself has "
            "left the numbers; go on from a checkpoint before that with a lower optimizer.lr, "
            "optimizer.grad_clip or train.precision=fp32"
        )
    guilty = []
    for step, batch in bad:
        positions = batch["position"].tolist()
        guilty += [p for row, p in enumerate(positions) if not dump.alone(batch, step, row)]
    if not guilty:
        return "data: the batches are not finite again, other batches are; no single image does it alone"
    named = "; ".join(
        f"{name} (position {p})"
        for name, p in zip(dump.names(guilty[:SAMPLES_NAMED]), guilty[:SAMPLES_NAMED], strict=True)
    )
    return f"data: not finite again, and other images are fine; it is {len(guilty)} of them: {named}"


def open_dump(run_dir: Path) -> Dump:
    """What ``<run_dir>/dump`` holds, on this machine's device.

    Raises:
        UsageError, CheckpointError: see :func:`replay`.
    """
    found = checkpoint.latest(run_dir / "dump")
    if found is None:
        raise UsageError(
            f"{run_dir}: there is no dump; a run leaves one when it ends with exit code 3 after too many "
            "updates were left out (run.skips)"
        )
    config = from_dict(found.stated("config"))
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    policy = choose_policy(config, device)
    parts = read_frozen(config)
    original = build_frozen(config, parts)
    frozen = None if original is None else prepare_frozen(original, policy)
    task: Task = (
        Pretraining(config, policy)
        if config.task == "diffusion"
        else Representation(config, policy, frozen, found.stated("boundaries"), parts, start=original)
    )
    module = task.build()
    load_model(module, found.load("model"), found.path)
    data = config.data
    whole = open_source(data.source, data.path, data.px, config.seed, data.count, data.split)
    return Dump(
        config,
        policy,
        task,
        prepare_trainable(module, policy).to(device).train(),
        split(whole, data.held_out)[0],
        device,
        found,
    )


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, NaN included."""
    return torch.equal(a.nan_to_num(nan=1.25e30), b.nan_to_num(nan=1.25e30)) and torch.equal(
        a.isnan(), b.isnan()
    )


def _yes(holds: bool) -> str:
    return "yes" if holds else "NO"


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))
