"""The adaptive group norm's kernels: its formula and all gradients against float64, at sizes that fill no
tile."""

import pytest
import torch
from kernel_cases import BF16_ULPS, assert_close

from kernels.adagn_silu import ref
from kernels.adagn_silu.op import adagn_silu

# C, groups: blocks of channels that fit exactly, that need a mask, and a single odd group.
CHANNELS = [(8, 2), (24, 6), (12, 3), (5, 1)]
# Tiles of 8 pixels for 8 channels, 2 a program: less than a tile, one, just over one, several programs.
PIXELS = [(1, 1), (7, 1), (2, 4), (3, 3), (5, 11)]
CONDITIONS = [(), ("time",), ("z",), ("time", "z")]
NAMES = ("x", "weight", "bias", "time", "z")


def inputs(batch, channels, size, conditions=("time", "z"), dtype=torch.float32, device="cpu", offset=2.0):
    """Arguments by name, x in channels_last."""
    x = torch.randn(batch, channels, *size) * 3 + offset
    parts = {"weight": torch.randn(channels), "bias": torch.randn(channels)}
    parts |= {name: torch.randn(batch, 2 * channels) for name in conditions}
    parts = {name: part.to(device, dtype) for name, part in parts.items()}
    return {"x": x.to(device, dtype).contiguous(memory_format=torch.channels_last), **parts}


def run(function, parts, groups, upstream, dtype=None):
    """y and the gradient of every input."""
    leaves = {name: part.detach().to(dtype or part.dtype).requires_grad_() for name, part in parts.items()}
    y = function(leaves["x"], groups, *(leaves.get(name) for name in NAMES[1:]))
    gradients = torch.autograd.grad(y, list(leaves.values()), upstream.to(y.dtype))
    return {"y": y, **dict(zip(leaves, gradients, strict=True))}


def upstream_of(x):
    return torch.randn(x.shape, device=x.device).contiguous(memory_format=torch.channels_last)


def assert_right(parts, groups, worst=2e-5, rms=3e-6):
    upstream = upstream_of(parts["x"])
    found = run(adagn_silu, parts, groups, upstream)
    exact = run(ref.adagn_silu, parts, groups, upstream, torch.float64)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    for name, value in found.items():
        assert value.dtype == parts.get(name, parts["x"]).dtype
        assert_close(value, exact[name], worst, rms)


class TestValuesAndGradients:
    @pytest.mark.parametrize(("channels", "groups"), CHANNELS)
    @pytest.mark.parametrize("conditions", CONDITIONS, ids=str)
    def test_they_are_the_formula_s_for_any_channels_and_conditions(
        self, channels, groups, conditions, fenced, device, small_tiles
    ):
        parts = inputs(1, channels, (3, 5), conditions, device=device)
        assert_right({name: fenced(part) for name, part in parts.items()}, groups)

    @pytest.mark.parametrize("size", PIXELS, ids=str)
    @pytest.mark.parametrize("batch", [1, 3])
    def test_they_are_the_formula_s_at_any_size(self, size, batch, fenced, device, small_tiles):
        parts = inputs(batch, 8, size, device=device)
        assert_right({name: fenced(part) for name, part in parts.items()}, 2)

    def test_they_are_the_formula_s_in_the_tiles_of_the_engine(self, device):
        assert_right(inputs(1, 128, (8, 9), device=device), 2)

    def test_a_mean_far_from_zero_costs_no_digits_of_the_variance(self, device, small_tiles):
        parts = inputs(2, 8, (5, 7), device=device, offset=3000.0)
        assert_right(parts, 2, worst=5e-4, rms=5e-4)

    def test_the_gradients_are_the_derivatives(self, device):
        parts = inputs(1, 4, (1, 3), dtype=torch.float64, device=device)
        for part in parts.values():
            part.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *rest: adagn_silu(x, 2, *rest), list(parts.values()))

    def test_bfloat16_is_computed_in_float32(self, device, small_tiles):
        parts = inputs(2, 8, (3, 5), dtype=torch.bfloat16, device=device)
        upstream = upstream_of(parts["x"])
        found = run(adagn_silu, parts, 2, upstream.bfloat16())
        exact = run(ref.adagn_silu, parts, 2, upstream.bfloat16(), torch.float64)
        for name, value in found.items():
            assert value.dtype == torch.bfloat16
            assert_close(value, exact[name], BF16_ULPS * 2.0**-7, BF16_ULPS * 2.0**-8)

    def test_half_precision_images_may_meet_full_precision_parameters(self, device, small_tiles):
        parts = inputs(2, 8, (3, 5), device=device)
        parts["x"] = parts["x"].bfloat16()
        found = run(adagn_silu, parts, 2, upstream_of(parts["x"]).bfloat16())
        assert {
            name: value.dtype for name, value in found.items() if value.dtype == torch.bfloat16
        }.keys() == {"y", "x"}

    def test_images_that_need_no_gradient_get_none_and_the_others_theirs(self, device, small_tiles):
        parts = inputs(2, 8, (3, 5), device=device)
        for name in NAMES[1:]:
            parts[name].requires_grad_()
        upstream = upstream_of(parts["x"])
        gradients = []
        for function in (adagn_silu, ref.adagn_silu):
            y = function(parts["x"], 2, *(parts[name] for name in NAMES[1:]))
            gradients.append(torch.autograd.grad(y, [parts[name] for name in NAMES[1:]], upstream))
        for found, expected in zip(*gradients, strict=True):
            assert_close(found, expected, 2e-5, 1e-5)

    def test_an_upstream_gradient_in_another_layout_is_welcome(self, device, small_tiles):
        parts = inputs(2, 8, (3, 5), device=device)
        upstream = torch.randn(2, 8, 3, 5, device=device)
        found, expected = (run(f, parts, 2, upstream)["x"] for f in (adagn_silu, ref.adagn_silu))
        assert_close(found, expected, 2e-5, 1e-5)
        adagn_silu(parts["x"].requires_grad_(), 2, parts["weight"], parts["bias"]).sum().backward()


class TestWhatIsNoNumber:
    def test_spoils_its_own_group_of_its_own_sample(self, device, small_tiles):
        parts = inputs(2, 8, (5, 7), device=device)
        parts["x"][1, 5, 2, 3] = float("nan")
        found = run(adagn_silu, parts, 2, upstream_of(parts["x"]))
        spoilt = torch.zeros(2, 8, 5, 7, dtype=torch.bool, device=device)
        spoilt[1, 4:] = True
        assert torch.equal(found["y"].isnan(), spoilt)
        assert torch.equal(found["x"].isnan(), spoilt)

    def test_in_the_upstream_gradient_leaves_other_groups_alone(self, device, small_tiles):
        parts = inputs(2, 8, (5, 7), device=device)
        upstream = upstream_of(parts["x"])
        upstream[0, 0, 0, 0] = float("inf")
        found = run(adagn_silu, parts, 2, upstream)
        assert found["y"].isfinite().all()
        assert found["x"][0, 4:].isfinite().all()
        assert found["x"][1].isfinite().all()
        assert not found["x"][0, :4].isfinite().any()


class TestItIsDeterministic:
    def test_five_runs_are_one(self, device, small_tiles):
        parts = inputs(2, 8, (5, 7), device=device)
        upstream = upstream_of(parts["x"])
        first, *others = [run(adagn_silu, parts, 2, upstream) for _ in range(5)]
        assert all(torch.equal(other[name], first[name]) for other in others for name in first)

    def test_a_sample_is_computed_alike_in_any_batch(self, device, small_tiles):
        parts = inputs(3, 8, (5, 7), device=device)
        upstream = upstream_of(parts["x"])
        whole = run(adagn_silu, parts, 2, upstream)
        for i in range(3):
            one = {
                name: part if name in ("weight", "bias") else part[i : i + 1] for name, part in parts.items()
            }
            alone = run(adagn_silu, one, 2, upstream[i : i + 1])
            assert all(torch.equal(alone[name][0], whole[name][i]) for name in ("y", "x", "time", "z"))
