"""The adapter to DeepSpeed, on one rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffsiam.schedule import Schedule
from engine.cost import Networks
from engine.memory import memory
from engine.parallel import BUCKET, Trainer, bucket_elements


def reduction_buckets(trainer: Trainer) -> int:
    """Bytes of the buckets while gradients are being reduced."""
    seen = []

    def look(gradient: torch.Tensor) -> None:
        buffers = [bucket.buffer for bucket in trainer.optimizer.ipg_buckets.values()]
        seen.append(sum(b.nbytes for held in buffers for b in (held if isinstance(held, list) else [held])))

    x = torch.randn(4, 3).requires_grad_()
    x.register_hook(look)
    trainer.backward(trainer.engine(x).sum())
    trainer.step()
    return seen[0]


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_rank_allocates_the_reduction_buckets_that_the_plan_states(one_rank, zero):
    module = nn.Sequential(nn.Linear(3, 7), nn.Linear(7, 3))
    planned = memory(Networks(module, None, Schedule()), "adam", zero, 1, torch.float32)
    trainer = Trainer(module, "adam", {"lr": 1e-3}, one_rank, micro_batch=4, zero=zero)
    assert reduction_buckets(trainer) == planned["reduction buckets"]


def test_buckets_hold_the_largest_gradient_and_no_more_than_all():
    with torch.device("meta"):
        assert bucket_elements(nn.Linear(3, 7)) == 28
        assert bucket_elements(nn.Sequential(*(nn.Linear(2000, 3000) for _ in range(2)))) == BUCKET
        assert bucket_elements(nn.Sequential(nn.Linear(4000, 3000), nn.Linear(3, 7))) == 12_000_000
