"""Whether two training steps compute the same thing; what does not may not be timed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOSS_ERROR, GRADIENT_ERROR = 1e-5, 1e-4  # largest relative errors in float32
LOW_LOSS_ERROR, LOW_ANGLE = 5e-3, 1e-3  # of loss and 1 - cosine in bfloat16, unless the rival errs as much
SMALL_LOSS = 0.1  # below which errors are relative to this: the cosines of SimSiam may cancel
SLACK = 2  # times the rival's own rounding error: batch norms of a fresh encoder amplify any rounding
SMALL = 1e-2  # a tensor's share of its network's gradient below which it may be rounding: biases before BN

M = TypeVar("M", bound=nn.Module)
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Gate:
    """How far two steps agree, in relative errors.

    Attributes:
        gradient_error: of the worst tensor, relative to its own norm or, where that is more, to a hundredth
            of its network's.
        worst: name of that tensor.
        cosine: of all gradients together.
        green: whether all that is demanded holds.
    """

    loss_error: float
    gradient_error: float
    worst: str
    cosine: float
    green: bool

    def __str__(self) -> str:
        errors = f"loss {self.loss_error:.1e}, gradients {self.gradient_error:.1e} (worst: {self.worst})"
        return f"{'green' if self.green else 'RED'}: {errors}, cosine {self.cosine:.6f}"


Result = tuple[Tensor, Gradients]  # loss, gradients


def compare(ours: Result, reference: Result) -> Gate:
    """Hold one step's loss and gradients against another's, both in float32."""
    agreement = _agreement(ours, reference)
    green = agreement.loss_error <= LOSS_ERROR and agreement.gradient_error <= GRADIENT_ERROR
    return replace(agreement, green=green)


def compare_rounded(ours: Result, reference: Result, rival: Result | None = None) -> Gate:
    """Hold a step of lower precision against float32; ``rival`` is the published step in that precision.

    Ours passes with errors usual for bfloat16, or at most twice the rival's.
    """
    agreement = _agreement(ours, reference)
    loss_error, angle = LOW_LOSS_ERROR, LOW_ANGLE
    if rival is not None:
        usual = _agreement(rival, reference)
        loss_error = max(loss_error, SLACK * usual.loss_error)
        angle = max(angle, SLACK * (1 - usual.cosine))
    green = agreement.loss_error <= loss_error and 1 - agreement.cosine <= angle
    return replace(agreement, green=green)


def _agreement(ours: Result, reference: Result) -> Gate:
    (our_loss, our_gradients), (loss, gradients) = ours, reference
    if our_gradients.keys() != gradients.keys():
        only = f"{min(our_gradients.keys() ^ gradients.keys())} has a gradient in one step only"
        return Gate(math.nan, math.nan, only, math.nan, green=False)
    loss_error = ((our_loss - loss).abs() / loss.abs().clamp_min(SMALL_LOSS)).item()
    floor = {network: SMALL * norm for network, norm in _norms_by_network(gradients).items()}
    errors = {
        name: ((our_gradients[name] - g).norm() / max(g.norm(), floor[_network(name)])).item()
        for name, g in gradients.items()
    }
    worst = max(errors, key=lambda name: errors[name])
    a, b = (torch.cat([g.flatten() for _, g in sorted(some.items())]) for some in (our_gradients, gradients))
    cosine = torch.cosine_similarity(a.double(), b.double(), dim=0).item()
    return Gate(loss_error, errors[worst], worst, cosine, green=False)


def _network(name: str) -> str:
    return name.partition(".")[0]


def _norms_by_network(gradients: Gradients) -> dict[str, Tensor]:
    norms: dict[str, list[Tensor]] = {}
    for name, gradient in gradients.items():
        norms.setdefault(_network(name), []).append(gradient.norm())
    return {network: torch.stack(parts).norm() for network, parts in norms.items()}


def take_gradients(module: nn.Module) -> Gradients:
    """The gradients of a module in float32, which it then has no more."""
    gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.detach().float().clone()
        parameter.grad = None
    return gradients


def wake(module: M, seed: int = 0) -> M:
    """Give parameters that start at 0 small values: behind a layer of zeros every step's gradients are 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module


@contextmanager
def comparable() -> Iterator[None]:
    """While the block runs, gradients of equal mathematics are close: no TF32, and ReLU smoothed.

    A ReLU's derivative jumps at 0. Among a million activations some lie so near it that rounding decides, and
    each of them shifts the gradients by more than all rounding together.
    """
    tf32, relu = torch.backends.cudnn.allow_tf32, F.relu
    torch.backends.cudnn.allow_tf32 = False
    F.relu = _smooth_relu
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, F.relu = tf32, relu


def _smooth_relu(input: Tensor, inplace: bool = False) -> Tensor:
    """x sigmoid(4 x), out of place."""
    return F.silu(4 * input) / 4
