"""The floor of a step: its convolutions and products alone, each as it came."""

import torch
from torch import nn

from bench.floor import Products, floor

CPU = torch.device("cpu")


def step_of(width=8):
    convolution = nn.Conv2d(3, width, 3).to(memory_format=torch.channels_last)
    head = nn.Linear(width, 5)
    images = torch.randn(2, 3, 6, 6).to(memory_format=torch.channels_last)

    def step():
        head(convolution(images).relu().mean((2, 3))).sum().backward()

    return step


def test_convolutions_and_products_are_seen_forward_and_backward_and_nothing_else():
    with Products() as products:
        step_of()()
    names = sorted(str(function.overloadpacket).split(".")[-1] for function, _ in products.seen.elements())
    assert names == ["addmm", "convolution", "convolution_backward", "mm", "mm"]


def test_equal_calls_are_counted_and_others_told_apart_by_shape_and_layout():
    with Products() as products:
        for _ in range(2):
            step_of()()
        step_of(width=16)()
    assert sorted(products.seen.values()) == [1] * 5 + [2] * 5
    shapes = {args[0] for function, args in products.seen if "convolution.default" in str(function)}
    assert shapes == {((2, 3, 6, 6), (108, 1, 18, 3), torch.float32)}


def test_it_is_what_they_take_alone():
    small, large = floor(step_of(), CPU), floor(step_of(width=1024), CPU)
    assert small["calls"] == large["calls"] == 5
    assert 0 < small["ms"] < large["ms"]
