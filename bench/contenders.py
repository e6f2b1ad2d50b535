"""Who takes part in a benchmark of the step: ours, as the training loop runs it, and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from bench.gate import Result, take_gradients, wake
from bench.rivals import Draws, Rival
from bench.timing import Phases
from diffsiam.objective import DiffSiam
from engine.build import build_frozen
from engine.config import Config
from engine.ema import Ema
from engine.learning_rate import learning_rate
from engine.loop import build_trainer, due, reseed_dropout
from engine.metrics import Metrics
from engine.parallel import Ranks
from engine.step import Policy, choose_policy, prepare_frozen, prepare_trainable
from engine.tasks import Representation
from kernels.noise_jump.ref import noise_for

Batch = dict[str, Tensor]
R = TypeVar("R", bound=Rival)
UPDATE = ("backward", "optimizer", "average")  # parts of a step beside the forward passes


class Ours:
    """The training step of engine/loop.py without loader and files."""

    def __init__(self, config: Config, ranks: Ranks, policy: Policy):
        self.config, self.steps = config, 0
        original = build_frozen(config)
        frozen = None if original is None else prepare_frozen(wake(original), policy)
        self.task = Representation(config, policy, frozen, boundaries(config), start=original)
        module = prepare_trainable(wake(self.task.build()), policy)
        self.trainer = build_trainer(config, module, ranks, policy)
        buffers = self.trainer.module.named_buffers()
        train = config.train
        self.ema = Ema(self.trainer.local_parameters(), buffers, train.ema_decay, train.ema_warmup)
        self.metrics = Metrics(ranks.device)

    def gradients(self, batch: Batch) -> Result:
        """Loss and gradients of the trained parameters, without an update."""
        loss = self.task.loss(self.trainer.engine, batch)
        self.trainer.backward(loss)
        return loss.detach(), take_gradients(self.trainer.module)

    def step(self, batch: Batch) -> Tensor:
        """One update; returns the loss, 0-d, which nobody has waited for."""
        self.trainer.set_lr(learning_rate(self.config, self.steps))
        reseed_dropout(self.config, self.steps, 0)
        loss = self.task.loss(self.trainer.engine, batch, self.metrics)
        self.trainer.backward(loss)
        self.metrics.settle(self.trainer.step())
        self.ema.update(self.steps)
        self.steps += 1
        if due(self.config.log.every, self.steps):
            self.metrics.flush()
        return loss.detach()

    def phases(self) -> Phases:
        """The parts of a step."""
        module = self.trainer.module
        calls = [(self.trainer, "backward")], [(self.trainer, "step")], [(self.ema, "update")]
        forward = forward_phases(self.task.frozen, module.encoder, module.decoder)
        return {**dict(zip(UPDATE, calls, strict=True)), **forward}

    def state(self) -> list[Tensor]:
        """All tensors that stay from step to step."""
        module = self.trainer.module
        networks = [module, *([self.task.frozen] if self.task.frozen is not None else [])]
        held = [t for network in networks for t in (*network.parameters(), *network.buffers())]
        moments = (t for state in self.trainer.optimizer.state.values() for t in state.values())
        return [*held, *self.ema.state_dict().values(), *(t for t in moments if isinstance(t, Tensor))]


def forward_phases(frozen: Any, encoder: Any, decoder: Any) -> Phases:
    """The networks' forward passes; a compiled network cannot be watched from outside and is in the rest."""
    named: dict[str, list[tuple[Any, str]]] = {}
    if frozen is not None:
        named["frozen"] = [(frozen, "encode"), (frozen, "decode")]
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        if network is not None and network._compiled_call_impl is None:
            named[name] = [(network, "forward")]
    return named


def rival_phases(rival: Rival) -> Phases:
    """The parts of a rival's step."""
    methods = ("backward", "update", "follow")
    updates = {name: [(rival, method)] for name, method in zip(UPDATE, methods, strict=True)}
    return {**updates, **forward_phases(rival.frozen, rival.encoder, rival.decoder)}


def build_rival(
    kind: Callable[..., R], config: Config, device: torch.device, autocast: torch.dtype | None = None
) -> R:
    """A rival's step with the weights that :class:`Ours` starts from."""
    frozen = build_frozen(config)
    policy = choose_policy(config, device)
    task = Representation(config, policy, None if frozen is None else wake(frozen), boundaries(config))
    module = wake(task.build()).to(device)
    assert isinstance(module, DiffSiam)
    frozen = None if frozen is None else frozen.to(device)
    networks = (module.encoder, module.decoder, module.simsiam, frozen)
    return kind(config, *networks, task.subsets, autocast)


def rival_gradients(rival: Rival, batch: Batch, seed: int) -> Result:
    """Loss and gradients for our t, k and noise."""
    positions, px = batch["position"], rival.config.data.px
    draw = rival.subsets.draw(seed, positions)
    draws = Draws(draw.t, draw.level, draw.k, noise_for(seed, positions, (3, px, px)))
    loss = rival.loss(batch["x_0"], views_of(batch), draws)
    rival.backward(loss)
    return loss.detach(), take_gradients(rival.module)


def views_of(batch: Batch) -> list[Tensor]:
    """Both views, or none."""
    return [batch[name] for name in ("view_1", "view_2") if name in batch]


def boundaries(config: Config) -> list[int] | None:
    """Those of the config, or equal windows: a step takes as long with any."""
    if config.subsets.choice != "profile":
        return None
    n, steps = config.subsets.n, config.schedule.steps
    return list(config.subsets.boundaries or (steps * i // n for i in range(1, n)))


def make_batch(config: Config, device: torch.device, images: int | None = None) -> Batch:
    """Random images, ``images`` or the config's number: nothing in a step depends on what they show."""
    generator = torch.Generator().manual_seed(config.seed)
    shape = (images or config.train.batch_size, config.data.px, config.data.px, 3)
    names = ("x_0", "view_1", "view_2") if config.simsiam.weight > 0 else ("x_0",)
    batch = {name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for name in names}
    batch["position"] = torch.arange(shape[0])
    return {name: tensor.to(device) for name, tensor in batch.items()}
