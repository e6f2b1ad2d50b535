"""The adaptive group norm of a sum that its kernels add: both results and all gradients against float64, and
equality with adding first."""

import pytest
import torch
from kernel_cases import BF16_ULPS, assert_close, assert_within_bf16_ulps
from test_adagn_silu import CHANNELS, NAMES, PIXELS, inputs, upstream_of

from kernels import backend
from kernels.adagn_silu import op, ref
from kernels.adagn_silu.op import add_adagn_silu

USES = [("y", "sum"), ("y",), ("sum",)]  # of which results something is made


def with_residual(*arguments, **options):
    """Arguments by name, x and residual in channels_last."""
    parts = inputs(*arguments, **options)
    return {"x": parts.pop("x"), "residual": inputs(*arguments, **options)["x"], **parts}


def run(function, parts, groups, upstream, dtype=None):
    """y, the sum, and the gradient of every input that has one, from those of y and sum in ``upstream``."""
    leaves = {name: part.detach().to(dtype or part.dtype).requires_grad_() for name, part in parts.items()}
    y, total = function(leaves["x"], leaves["residual"], groups, *(leaves.get(name) for name in NAMES[1:]))
    results = {"y": y, "sum": total}
    ends = [results[name] for name in upstream]
    given = [gradient.to(end.dtype) for gradient, end in zip(upstream.values(), ends, strict=True)]
    gradients = torch.autograd.grad(ends, list(leaves.values()), given, allow_unused=True)
    return results | {name: g for name, g in zip(leaves, gradients, strict=True) if g is not None}


def gradients_of(parts, uses=USES[0], dtype=torch.float32):
    return {name: upstream_of(parts["x"]).to(dtype) for name in uses}


def assert_right(parts, groups, uses=USES[0], worst=2e-5, rms=3e-6):
    upstream = gradients_of(parts, uses)
    found = run(add_adagn_silu, parts, groups, upstream)
    exact = run(ref.add_adagn_silu, parts, groups, upstream, torch.float64)
    assert found.keys() == exact.keys()
    assert torch.equal(found["sum"], parts["x"] + parts["residual"])
    for name in ("y", "sum", "x"):
        assert found[name].is_contiguous(memory_format=torch.channels_last)
    for name, value in found.items():
        assert value.dtype == parts.get(name, parts["x"]).dtype
        assert_close(value, exact[name], worst, rms)


class TestValuesAndGradients:
    @pytest.mark.parametrize(("channels", "groups"), CHANNELS)
    @pytest.mark.parametrize("uses", USES, ids=str)
    def test_they_are_the_formula_s_for_any_channels_and_uses(
        self, channels, groups, uses, fenced, device, small_tiles
    ):
        parts = with_residual(1, channels, (3, 5), ("time",), device=device)
        assert_right({name: fenced(part) for name, part in parts.items()}, groups, uses)

    @pytest.mark.parametrize("size", PIXELS, ids=str)
    @pytest.mark.parametrize("batch", [1, 3])
    def test_they_are_the_formula_s_at_any_size(self, size, batch, fenced, device, small_tiles):
        parts = with_residual(batch, 8, size, device=device)
        assert_right({name: fenced(part) for name, part in parts.items()}, 2)

    def test_the_gradients_are_the_derivatives(self, device):
        parts = with_residual(1, 4, (1, 3), dtype=torch.float64, device=device)
        for part in parts.values():
            part.requires_grad_()
        leaves = list(parts.values())
        assert torch.autograd.gradcheck(lambda x, r, *rest: add_adagn_silu(x, r, 2, *rest), leaves)

    @pytest.mark.parametrize("name", ["x", "residual"])
    def test_one_of_the_two_may_need_no_gradient(self, name, device, small_tiles):
        parts = with_residual(2, 8, (3, 5), device=device)
        upstream = gradients_of(parts)
        whole = run(add_adagn_silu, parts, 2, upstream)
        parts[name].requires_grad_()
        results = add_adagn_silu(parts["x"], parts["residual"], 2, *(parts[other] for other in NAMES[1:]))
        (gradient,) = torch.autograd.grad(results, parts[name], tuple(upstream.values()))
        assert torch.equal(gradient, whole["x"])
        assert torch.equal(gradient, whole["residual"])


class TestTheSum:
    """What is normalised is the sum that the others get."""

    def test_the_norm_of_it_is_bit_for_bit_that_of_adding_first(self, device, small_tiles):
        parts = with_residual(2, 8, (5, 7), device=device)
        y, total = add_adagn_silu(groups=2, **parts)
        rest = {name: parts[name] for name in NAMES[1:]}
        assert torch.equal(y, op.adagn_silu(total, 2, **rest))

    def test_of_bfloat16_is_rounded_once_and_then_normalised(self, device, small_tiles):
        parts = with_residual(2, 8, (5, 7), dtype=torch.bfloat16, device=device)
        upstream = gradients_of(parts, dtype=torch.bfloat16)
        found = run(add_adagn_silu, parts, 2, upstream)
        assert found["sum"].dtype == torch.bfloat16
        added = parts["x"].double() + parts["residual"].double()
        assert_within_bf16_ulps(found["sum"], added, BF16_ULPS)
        # From here on the rounded sum counts, so that no error of it is one of the norm.
        seen = {**parts, "x": found["sum"].detach(), "residual": torch.zeros_like(parts["x"])}
        exact = run(ref.add_adagn_silu, seen, 2, upstream, torch.float64)
        for name in ("y", *parts):
            assert_close(found[name], exact[name], BF16_ULPS * 2.0**-7, BF16_ULPS * 2.0**-8)

    def test_has_the_variance_that_rounding_leaves(self, device, small_tiles):
        parts = with_residual(1, 8, (3, 5), (), dtype=torch.bfloat16, device=device)
        parts["x"].fill_(256)  # where neighbours in bfloat16 are 2 apart
        parts["residual"].uniform_(0, 0.9)
        y, total = add_adagn_silu(groups=2, **parts)
        assert (total == 256).all()
        expected = torch.nn.functional.silu(parts["bias"].float())[:, None, None]
        assert_close(y, expected.expand(1, 8, 3, 5), BF16_ULPS * 2.0**-7, BF16_ULPS * 2.0**-8)

    def test_of_one_with_what_is_no_number_spoils_its_own_group(self, device, small_tiles):
        parts = with_residual(2, 8, (5, 7), device=device)
        parts["residual"][1, 5, 2, 3] = float("inf")
        found = run(add_adagn_silu, parts, 2, gradients_of(parts))
        spoilt = torch.zeros(2, 8, 5, 7, dtype=torch.bool, device=device)
        spoilt[1, 4:] = True
        assert not found["y"][spoilt].isfinite().any()
        assert found["y"][~spoilt].isfinite().all()
        assert found["sum"].isinf().sum() == 1

    def test_passes_a_gradient_on_that_is_no_number_where_it_is_one(self, device, small_tiles):
        parts = with_residual(2, 8, (5, 7), device=device)
        upstream = gradients_of(parts)
        upstream["sum"][0, 3, 1, 2] = float("nan")
        found = run(add_adagn_silu, parts, 2, upstream)
        for name in ("x", "residual"):
            assert torch.equal(found[name].isnan(), upstream["sum"].isnan())


class TestOtherImages:
    """PyTorch adds those that the kernel does not take together."""

    def test_of_another_dtype_are_promoted(self, device, small_tiles):
        parts = with_residual(2, 8, (3, 5), device=device)
        half = {**parts, "residual": parts["residual"].bfloat16()}
        _, total = add_adagn_silu(groups=2, **half)
        assert torch.equal(total, parts["x"] + half["residual"])

    def test_of_another_layout_give_the_same(self, device, small_tiles):
        parts = with_residual(2, 8, (3, 5), device=device)
        y, total = add_adagn_silu(groups=2, **parts)
        again = add_adagn_silu(groups=2, **{**parts, "residual": parts["residual"].contiguous()})
        assert torch.equal(again[0], y)
        assert torch.equal(again[1], total)

    def test_whose_gradients_come_in_another_layout_are_welcome(self, device, small_tiles):
        parts = with_residual(2, 8, (3, 5), device=device)
        upstream = gradients_of(parts)
        expected = run(add_adagn_silu, parts, 2, upstream)
        found = run(add_adagn_silu, parts, 2, {name: g.contiguous() for name, g in upstream.items()})
        assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_of_another_size_are_refused(self, device):
        parts = with_residual(2, 8, (3, 5), device=device)
        with pytest.raises(ValueError, match=r"residual must be as x, \(2, 8, 3, 5\), got \(1, 8, 3, 5\)"):
            add_adagn_silu(groups=2, **{**parts, "residual": parts["residual"][:1]})

    def test_under_the_reference_are_added_and_normalised_bit_for_bit_as_before(self, device):
        backend.set_backend("reference")
        parts = with_residual(2, 8, (3, 5), device=device)
        rest = {name: parts[name] for name in NAMES[1:]}
        y, total = add_adagn_silu(groups=2, **parts)
        assert torch.equal(total, parts["x"] + parts["residual"])
        assert torch.equal(y, ref.adagn_silu(total, 2, **rest))


class TestItIsDeterministic:
    def test_five_runs_are_one(self, device, small_tiles):
        parts = with_residual(2, 8, (5, 7), device=device)
        upstream = gradients_of(parts)
        first, *others = [run(add_adagn_silu, parts, 2, upstream) for _ in range(5)]
        assert all(torch.equal(other[name], first[name]) for other in others for name in first)

    def test_a_sample_is_computed_alike_in_any_batch(self, device, small_tiles):
        parts = with_residual(3, 8, (5, 7), device=device)
        upstream = gradients_of(parts)
        whole = run(add_adagn_silu, parts, 2, upstream)
        for i in range(3):
            here = slice(i, i + 1)
            one = {name: part if name in ("weight", "bias") else part[here] for name, part in parts.items()}
            alone = run(add_adagn_silu, one, 2, {name: g[here] for name, g in upstream.items()})
            of_samples = ("y", "sum", "x", "residual", "time", "z")
            assert all(torch.equal(alone[name][0], whole[name][i]) for name in of_samples)
