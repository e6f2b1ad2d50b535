"""The adaptive group norm's loops for the CPU: its formula and all gradients, and where they are taken."""

import subprocess
import sys
import threading
from pathlib import Path

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


@pytest.mark.parametrize("channels", [8, 48, 96])
def test_a_sample_is_computed_alike_in_any_batch(channels):
    parts = inputs(5, channels, (4, 4))
    upstream = upstream_of(parts["x"])
    whole = run(cpu.adagn_silu, parts, 2, upstream)
    part = {name: v if name in ("weight", "bias") else v[1:3] for name, v in parts.items()}
    few = run(cpu.adagn_silu, part, 2, upstream[1:3])
    for name in ("y", "x", "time", "z"):
        assert torch.equal(whole[name][1:3], few[name]), name


@pytest.mark.parametrize("pixels", [(1, 300), (16, 17)], ids=str)
def test_long_sums_keep_their_digits(pixels):
    assert_right(inputs(1, 4, pixels, offset=100.0), 2, worst=2e-4, rms=2e-5)


class TestThreads:
    """Samples, and where those are few blocks of channels, are shared by torch's threads."""

    @pytest.fixture(autouse=True)
    def three_threads(self):
        torch.set_num_threads(3)
        yield
        torch.set_num_threads(1)

    @pytest.mark.parametrize(("batch", "channels"), [(1, 256), (2, 192), (5, 8)])
    @pytest.mark.parametrize("openmp", [True, False])
    def test_they_compute_what_one_computes(self, batch, channels, openmp, monkeypatch):
        if not openmp:
            monkeypatch.setattr(cpu, "_openmp", lambda: None)
        parts = inputs(batch, channels, (5, 6))
        upstream = upstream_of(parts["x"])
        several = run(cpu.adagn_silu, parts, 4, upstream)
        torch.set_num_threads(1)
        for name, value in run(cpu.adagn_silu, parts, 4, upstream).items():
            assert_close(several[name], value, 1e-6, 1e-6)

    @pytest.mark.parametrize("batch", [1, 2, 64])
    def test_blocks_are_whole_groups_and_as_many_as_threads_if_channels_allow(self, batch):
        for channels, groups in ((512, 32), (96, 32), (24, 6), (128, 1)):
            width = cpu.block_width(batch, channels, groups, 3)
            assert channels % width == 0
            assert width % (channels // groups) == 0
            assert width == channels or width >= cpu.NARROWEST
        assert batch * 512 // cpu.block_width(batch, 512, 32, 3) >= 3

    def test_they_are_those_of_torch_where_it_brings_its_own(self):
        if not Path(torch.__file__).with_name("lib").joinpath("libgomp.so.1").exists():
            pytest.skip("torch has another OpenMP here")
        assert cpu._openmp() is not None

    def test_an_empty_batch_stays_empty(self):
        parts = inputs(2, 8, (3, 3))
        parts = {name: v if name in ("weight", "bias") else v[:0] for name, v in parts.items()}
        assert cpu.adagn_silu(**parts, groups=2).shape == (0, 8, 3, 3)

    def test_several_callers_at_once_do_not_disturb_each_other(self):
        every = [inputs(2, 32, (8, 8)) for _ in range(4)]
        expected = [cpu.adagn_silu(**parts, groups=4) for parts in every]
        found = [None] * len(every)

        def call(n):
            for _ in range(20):
                found[n] = cpu.adagn_silu(**every[n], groups=4)

        threads = [threading.Thread(target=call, args=(n,)) for n in range(len(every))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so(value, dtype):
    parts = inputs(1, 8, (4, 4), ())
    parts["x"][0, 0, 0, 0] = value
    x = parts.pop("x").to(dtype)
    assert not cpu.adagn_silu(x, 2, **parts)[0, 0, 0, 0].isfinite()
    upstream = torch.ones_like(x)
    upstream[0, 4, 1, 1] = value
    x = torch.randn_like(x).requires_grad_()
    assert not torch.autograd.grad(cpu.adagn_silu(x, 2, **parts), x, upstream)[0][0, 4, 1, 1].isfinite()


def test_bfloat16_is_rounded_as_torch_rounds():
    parts = inputs(4, 32, (8, 8))
    x = parts.pop("x").bfloat16()
    exact = ref.adagn_silu(x.double(), 8, **{name: part.double() for name, part in parts.items()})
    found = cpu.adagn_silu(x, 8, **parts)
    assert (found != exact.bfloat16()).double().mean() < 0.002  # ties, to within float32


def test_they_run_without_a_place_to_keep_what_is_compiled(tmp_path):
    code = """
import numba, torch
from numba.core import caching
caching.CacheImpl._locator_classes = []
from kernels.adagn_silu import cpu
x = torch.ones(1, 8, 2, 2).to(memory_format=torch.channels_last)
print(cpu.adagn_silu(x, 2, torch.ones(8), torch.ones(8)).sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(32 / (1 + 2.718281828**-1), rel=1e-5)


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


def test_float16_is_left_to_the_reference(monkeypatch):
    monkeypatch.setattr(backend, "_asked", "auto")
    parts = {name: part.half() for name, part in inputs(2, 8, (4, 4)).items()}
    assert op.adagn_silu(groups=2, **parts).dtype == torch.float16
    assert op.group_norm(parts["x"], 2, parts["weight"], parts["bias"]).dtype == torch.float16


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
