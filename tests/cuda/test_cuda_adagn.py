"""The adaptive group norm at every size of the 128-px preset, forward and backward, against float64."""

import pytest
import torch
from cuda_cases import DTYPES, assert_close

from bench.shapes import load_preset
from kernels import backend
from kernels.adagn_silu import ref
from kernels.adagn_silu.op import adagn_silu, add_adagn_silu

NORMS = sorted({(norm.channels, norm.px) for norm in load_preset("bedroom").norms})
LARGEST = (256, 128)
CONDITIONS = [(), ("time",), ("z",), ("time", "z")]
NAMES = ("x", "weight", "bias", "time", "z")
# A gradient of gain or offset sums half a million rounded products, which may cancel.
ROUNDING = {"fp32": (5e-5, 1e-5), "bf16": (2.0**-7, 2.0**-8)}


def inputs(batch, channels, px, conditions, dtype=torch.float32, parameters=None):
    """Arguments by name, x in channels_last with a mean of two thirds of its deviation."""
    x = torch.randn(batch, channels, px, px, device="cuda") * 3 + 2
    shapes = {"weight": (channels,), "bias": (channels,)}
    shapes |= {name: (batch, 2 * channels) for name in conditions}
    parts = {name: torch.randn(shape, device="cuda") for name, shape in shapes.items()}
    parts = {name: part.to(parameters or dtype) for name, part in parts.items()}
    return {"x": x.to(dtype).contiguous(memory_format=torch.channels_last), **parts}


def run(function, parts, groups, upstream, dtype=None):
    """y and the gradient of every input."""
    leaves = {name: part.detach().to(dtype or part.dtype).requires_grad_() for name, part in parts.items()}
    y = function(leaves["x"], groups, *(leaves.get(name) for name in NAMES[1:]))
    gradients = torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))
    return {"y": y.detach(), **dict(zip(leaves, gradients, strict=True))}


def upstream_of(x):
    return torch.randn_like(x)


def assert_right(parts, groups, dtype):
    upstream = upstream_of(parts["x"])
    found = run(adagn_silu, parts, groups, upstream)
    exact = run(ref.adagn_silu, parts, groups, upstream, torch.float64)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    assert found["x"].is_contiguous(memory_format=torch.channels_last)
    for name, value in found.items():
        assert value.dtype == parts.get(name, parts["x"]).dtype
        assert_close(name, value, exact[name], *ROUNDING[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("conditions", CONDITIONS, ids="+".join)
@pytest.mark.parametrize("px", [16, 128])
def test_it_is_its_formula_under_any_conditions(px, conditions, dtype):
    assert_right(inputs(3, 128, px, conditions, DTYPES[dtype]), 32, dtype)


@pytest.mark.parametrize(("channels", "px"), NORMS)
def test_it_is_its_formula_at_every_size_of_the_preset(channels, px):
    assert_right(inputs(2, channels, px, ("time", "z"), torch.bfloat16), 32, "bf16")


def test_it_is_its_formula_for_a_whole_batch_of_the_largest_images():
    channels, px = LARGEST
    assert_right(inputs(32, channels, px, (), torch.bfloat16), 32, "bf16")


def test_half_precision_images_meet_full_precision_parameters_as_under_autocast():
    parts = inputs(4, 128, 64, ("time", "z"), torch.bfloat16, torch.float32)
    assert_right(parts, 32, "bf16")


@pytest.mark.parametrize("dtype", DTYPES)
def test_five_runs_are_one(dtype):
    parts = inputs(8, 128, 64, ("time", "z"), DTYPES[dtype])
    upstream = upstream_of(parts["x"])
    first, *others = [run(adagn_silu, parts, 32, upstream) for _ in range(5)]
    assert all(torch.equal(other[name], first[name]) for other in others for name in first)


def test_a_sample_is_computed_alike_in_any_split_of_the_batch():
    parts = inputs(8, 128, 64, ("time", "z"), torch.bfloat16)
    upstream = upstream_of(parts["x"])
    whole = run(adagn_silu, parts, 32, upstream)
    for part in (slice(0, 1), slice(1, 4), slice(4, 8)):
        some = {name: p if name in ("weight", "bias") else p[part] for name, p in parts.items()}
        alone = run(adagn_silu, some, 32, upstream[part])
        assert all(torch.equal(alone[name], whole[name][part]) for name in ("y", "x", "time", "z"))


def run_adding(function, x, residual, groups, upstream, *rest):
    """y, the sum, and the gradients of x and residual."""
    leaves = [part.detach().requires_grad_() for part in (x, residual)]
    results = function(*leaves, groups, *rest)
    given = [gradient.to(x.dtype) for gradient in upstream]
    gradients = torch.autograd.grad(results, leaves, given)
    return dict(zip(("y", "sum", "x", "residual"), (*(r.detach() for r in results), *gradients), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "px"), NORMS)
def test_it_adds_a_residual_as_pytorch_does_and_normalises_the_sum(channels, px, dtype):
    parts = inputs(2, channels, px, (), DTYPES[dtype])
    x, rest = parts.pop("x"), tuple(parts.values())
    residual, upstream = torch.randn_like(x), (upstream_of(x), upstream_of(x))
    found = run_adding(add_adagn_silu, x, residual, 32, upstream, *rest)
    assert torch.equal(found["sum"], x + residual)
    assert torch.equal(found["y"], adagn_silu(found["sum"], 32, *rest))
    seen, nothing, exact_rest = (
        found["sum"].double(),
        torch.zeros_like(x).double(),
        (p.double() for p in rest),
    )
    exact = run_adding(ref.add_adagn_silu, seen, nothing, 32, upstream, *exact_rest)
    for name in ("y", "x", "residual"):
        assert_close(name, found[name], exact[name], *ROUNDING[dtype])
    again = run_adding(add_adagn_silu, x, residual, 32, upstream, *rest)
    assert all(torch.equal(again[name], found[name]) for name in found)


def test_other_layouts_go_to_the_reference_where_that_is_allowed():
    backend.set_backend("auto")
    parts = inputs(2, 64, 32, ("time",))
    parts["x"] = parts["x"].contiguous()
    upstream = upstream_of(parts["x"])
    found, expected = (run(function, parts, 32, upstream) for function in (adagn_silu, ref.adagn_silu))
    assert all(torch.equal(found[name], expected[name]) for name in found)
