"""The moving average of the weights."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.ema import Ema
from engine.errors import CheckpointError

torch.set_num_threads(1)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def ema_of(module: nn.Module, decay: float = 0.9, warmup: bool = False) -> Ema:
    return Ema(module.named_parameters(), module.named_buffers(), decay, warmup)


def train(module: nn.Module, steps: int, after_step) -> None:
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        after_step(step)


def test_it_equals_the_average_of_torch_to_the_bit():
    module = network()
    ours, theirs = (
        ema_of(module),
        AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=False),
    )
    theirs.update_parameters(module)  # the first call of AveragedModel only copies

    def follow(step):
        ours.update(step)
        theirs.update_parameters(module)

    train(module, 5, follow)
    expected = dict(theirs.module.named_parameters())
    assert all(torch.equal(ours.state_dict()[name], p) for name, p in expected.items())


def test_buffers_are_those_of_the_model():
    module = network()
    ema = ema_of(module)
    train(module, 3, ema.update)
    for name, buffer in module.named_buffers():
        assert torch.equal(ema.state_dict()[name], buffer)
        assert ema.state_dict()[name].dtype == buffer.dtype
    assert ema.state_dict()["1.num_batches_tracked"] == 3


def test_it_moves_although_the_weights_are_bfloat16():
    weight = torch.ones(1000, dtype=torch.bfloat16)
    ema = Ema({"w": weight}, decay=0.9999)
    weight.add_(0.01)
    for step in range(1000):
        ema.update(step)
    shadow = ema.state_dict()["w"]
    distance = float(weight[0].float()) - 1
    assert shadow.dtype == torch.float32
    expected = torch.full((1000,), 1 + distance * (1 - 0.9999**1000))  # 7e-4 away from 1
    torch.testing.assert_close(shadow, expected, rtol=0, atol=6e-5)  # 1000 roundings of half an ulp


def test_warm_up_forgets_the_start_and_ends_at_the_decay():
    start, weight = torch.zeros(1), torch.ones(1)
    follow = start.clone()
    warm, cold = Ema({"w": follow}, decay=0.99, warmup=True), Ema({"w": follow}, decay=0.99)
    follow.copy_(weight)
    for step in range(20):
        warm.update(step)
        cold.update(step)
    assert cold.state_dict()["w"] < 0.2 < 0.99 < warm.state_dict()["w"]

    before = warm.state_dict()["w"].clone()
    follow.zero_()
    warm.update(10**6)
    torch.testing.assert_close(warm.state_dict()["w"], before * 0.99)


def test_weights_that_were_given_other_memory_are_still_followed():
    module = nn.Linear(2, 2, bias=False)
    ema = ema_of(module, decay=0.0)
    module.weight.data = torch.full((2, 2), 7.0)
    ema.update(0)
    assert torch.equal(ema.state_dict()["weight"], module.weight)


def test_a_saved_average_goes_on_as_if_never_saved():
    module = network()
    straight = ema_of(module)
    train(module, 2, straight.update)
    saved = {name: tensor.clone() for name, tensor in straight.state_dict().items()}
    resumed = ema_of(module)
    resumed.load_state_dict(saved)
    torch.manual_seed(1)
    train(module, 2, lambda step: (straight.update(step), resumed.update(step)))
    assert all(
        torch.equal(tensor, resumed.state_dict()[name]) for name, tensor in straight.state_dict().items()
    )


def test_the_average_of_another_model_is_refused_by_name():
    ema = ema_of(network())
    state = dict(ema.state_dict())
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        ema.load_state_dict({name: tensor for name, tensor in state.items() if name != "0.weight"})
    with pytest.raises(CheckpointError, match=r"3\.bias.*\(9,\) in the checkpoint, \(2,\) in the model"):
        ema.load_state_dict({**state, "3.bias": torch.zeros(9)})
