"""The adaptive group norm's passes for the CPU: its formula and all gradients, and where they are taken."""

import pytest
import torch
import torch.nn.functional as F
from kernel_cases import assert_close
from test_adagn_silu import CHANNELS, CONDITIONS, NAMES, PIXELS, inputs, run, upstream_of

from kernels import backend
from kernels.adagn_silu import cpu, op, ref


def assert_right(parts, groups, worst=2e-5, rms=3e-6):
    upstream = upstream_of(parts["x"]).to(parts["x"].dtype)
    found = run(cpu.adagn_silu, parts, groups, upstream)
    exact = run(ref.adagn_silu, parts, groups, upstream, torch.float64)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    for name, value in found.items():
        assert value.dtype == parts.get(name, parts["x"]).dtype
        assert_close(value, exact[name], worst, rms)


@pytest.mark.parametrize(("channels", "groups"), CHANNELS)
@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
def test_values_and_gradients_are_the_formula_s_for_any_channels_and_conditions(channels, groups, conditions):
    assert_right(inputs(2, channels, (3, 5), conditions), groups)


@pytest.mark.parametrize("size", [*PIXELS, (32, 32)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_values_and_gradients_are_the_formula_s_at_any_size(size, batch):
    assert_right(inputs(batch, 8, size), 2, worst=5e-5)


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance():
    assert_right(inputs(2, 8, (5, 7), offset=3000.0), 2, worst=5e-4, rms=5e-4)


def test_the_gradients_are_the_derivatives():
    parts = inputs(2, 4, (2, 3), dtype=torch.float64)
    leaves = [parts[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda x, *rest: cpu.adagn_silu(x, 2, *rest), leaves)


def test_in_bfloat16_only_inputs_and_outputs_are_rounded():
    parts = {
        name: part.bfloat16() if name != "weight" else part for name, part in inputs(2, 16, (6, 5)).items()
    }
    assert_right(parts, 4, worst=2**-7, rms=2**-8)


@pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
def test_large_images_without_gradient_are_the_formula_s_too(conditions):
    parts = inputs(2, 8, (32, 33), conditions)
    exact = ref.adagn_silu(groups=2, **{name: part.double() for name, part in parts.items()})
    with torch.no_grad():
        y = cpu.adagn_silu(groups=2, **parts)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, exact, 2e-5, 3e-6)


def test_a_sample_is_computed_alike_in_any_batch_and_any_piece_of_it(monkeypatch):
    parts = inputs(5, 8, (4, 4))
    upstream = upstream_of(parts["x"])
    whole = run(cpu.adagn_silu, parts, 2, upstream)
    monkeypatch.setattr(cpu, "CACHED", 2 * parts["x"][0].numel())
    pieces = run(cpu.adagn_silu, parts, 2, upstream)
    for name, value in whole.items():
        assert torch.equal(value, pieces[name]), name


def test_a_sample_that_is_not_finite_spoils_no_other():
    parts = inputs(3, 8, (4, 4))
    expected = cpu.adagn_silu(**parts, groups=2)
    parts["x"][1, 0, 0, 0] = torch.nan
    y = cpu.adagn_silu(**parts, groups=2)
    assert torch.equal(y[[0, 2]], expected[[0, 2]])
    assert y[1, :4].isnan().all()


@pytest.mark.parametrize(
    ("name", "layout", "taken"),
    [
        ("auto", torch.channels_last, True),
        ("auto", torch.contiguous_format, False),
        ("reference", torch.channels_last, False),
    ],
)
def test_auto_takes_them_for_channels_last_and_reference_never(name, layout, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "adagn_silu", lambda x, *_: calls.append(x) or x)
    monkeypatch.setattr(backend, "_asked", name)
    parts = inputs(2, 8, (4, 4))
    op.adagn_silu(parts.pop("x").contiguous(memory_format=layout), 2, **parts)
    assert bool(calls) == taken


def test_five_runs_are_equal_bit_for_bit():
    parts = inputs(3, 24, (5, 7))
    upstream = upstream_of(parts["x"])
    first, *others = (run(cpu.adagn_silu, parts, 6, upstream) for _ in range(5))
    for other in others:
        assert all(torch.equal(value, first[name]) for name, value in other.items())


@pytest.mark.parametrize(("channels", "groups"), CHANNELS)
@pytest.mark.parametrize("size", [(3, 5), (32, 32)], ids=str)
def test_the_group_norm_alone_is_torch_s_with_its_gradients(channels, groups, size):
    parts = inputs(2, channels, size, ())
    upstream = upstream_of(parts["x"])
    found = run(lambda *a: cpu.group_norm(*a[:4]), parts, groups, upstream)
    exact = run(lambda *a: F.group_norm(*a[:4]), parts, groups, upstream, torch.float64)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    for name, value in found.items():
        assert_close(value, exact[name], 5e-5, 3e-6)


@pytest.mark.parametrize(("name", "taken"), [("auto", True), ("reference", False)])
def test_the_group_norm_alone_is_taken_under_auto_for_channels_last(name, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "group_norm", lambda x, *_: calls.append(x) or x)
    monkeypatch.setattr(backend, "_asked", name)
    x, weight, bias = inputs(2, 8, (4, 4), ()).values()
    op.group_norm(x, 2, weight, bias)
    assert bool(calls) == taken
    op.group_norm(x.contiguous(), 2, weight, bias)
    assert len(calls) == taken
