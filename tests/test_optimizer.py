"""Weights that lie channels_last are updated as any others, in place and without copies."""

import pytest
import torch
from torch import nn

from engine.optimizer import Adam, lay_out

SHAPES = [(8, 4, 3, 3), (8, 8, 1, 1), (4, 4, 2, 2), (5, 7), (3,)]


def networks(count: int) -> list[nn.ParameterList]:
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in SHAPES]
    return [nn.ParameterList(nn.Parameter(v.clone()) for v in values) for _ in range(count)]


def test_only_the_layout_of_convolutions_changes():
    plain, turned = networks(2)
    lay_out(turned)
    for a, b in zip(plain, turned, strict=True):
        assert torch.equal(a, b)
        assert b.is_contiguous(memory_format=torch.channels_last) if b.dim() == 4 else b.is_contiguous()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("grads_contiguous", [False, True])
def test_updates_are_those_of_torch_s_adam_whatever_the_layout(fused, grads_contiguous):
    plain, turned = networks(2)
    lay_out(turned)
    optimizers = [
        torch.optim.Adam(plain, 0.1, weight_decay=0.01, fused=fused),
        Adam(turned, 0.1, weight_decay=0.01, fused=fused),
    ]
    for step in range(3):
        torch.manual_seed(step + 1)
        for a, b in zip(plain, turned, strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone() if grads_contiguous else torch.empty_like(b).copy_(a.grad)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(plain, turned, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
        assert a.abs().sum() > 0
        for key in ("exp_avg", "exp_avg_sq"):
            kept = optimizers[1].state[b][key]
            assert kept.shape == b.shape
            torch.testing.assert_close(kept, optimizers[0].state[a][key], rtol=1e-6, atol=1e-9)


def test_the_fused_kernel_gets_contiguous_tensors_alone(monkeypatch):
    (turned,) = networks(1)
    lay_out(turned)
    seen = []
    fused = torch._fused_adam_

    def watched(*lists, **options):
        seen.extend(t.is_contiguous() for tensors in lists[:4] for t in tensors)
        return fused(*lists, **options)

    monkeypatch.setattr(torch, "_fused_adam_", watched)
    for p in turned:
        p.grad = torch.ones_like(p)
    Adam(turned, 0.1, fused=True).step()
    assert len(seen) == 4 * len(SHAPES)
    assert all(seen)
