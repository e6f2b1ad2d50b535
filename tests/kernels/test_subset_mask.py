"""The subset mask's kernel equals its reference to the bit, forward and backward."""

import pytest
import torch

from kernels.subset_mask import op, ref
from kernels.subset_mask.op import subset_mask

DIMS = [1, 15, 16, 17, 55]  # around a block of 16
RULES = [(mode, detach) for mode in ("hierarchical", "sequential") for detach in (False, True)]


def case(batch: int, dim: int, dtype: torch.dtype, device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z, k and an uneven split into four subsets."""
    z = torch.randn(batch, dim).to(device, dtype)
    k = torch.tensor([2, 4, 1][:batch], device=device)
    subset_of = torch.randint(1, 5, (dim,)).sort().values.to(device)
    return z, k, subset_of


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN with NaN."""
    return (
        a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(), b.nan_to_num())
    )


@pytest.mark.parametrize(("mode", "detach"), RULES)
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("batch", [1, 3])
def test_it_is_the_reference_forward_and_backward(mode, detach, dim, batch, fenced, device, monkeypatch):
    monkeypatch.setattr(op, "LARGEST_BLOCK", 16)
    z, k, subset_of = case(batch, dim, torch.float32, device)
    upstream = torch.randn(batch, dim, device=device)
    results = []
    for function in (subset_mask, ref.subset_mask):
        leaf = fenced(z).requires_grad_()
        z_bar = function(leaf, k, subset_of, mode, detach)
        results.append((z_bar, *torch.autograd.grad(z_bar, leaf, upstream)))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_it_keeps_the_bits_of_any_dtype(dtype, device):
    z, k, subset_of = case(3, 55, dtype, device)
    assert same_bits(subset_mask(z, k, subset_of), ref.subset_mask(z, k, subset_of))


@pytest.mark.parametrize(("mode", "detach"), RULES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_stays_behind_the_mask_in_both_directions(mode, detach, bad, device):
    z, k, subset_of = case(3, 12, torch.float32, device)
    results = []
    for function in (subset_mask, ref.subset_mask):
        leaf = torch.full_like(z, bad).requires_grad_()
        z_bar = function(leaf, k, subset_of, mode, detach)
        results.append((z_bar, *torch.autograd.grad(z_bar, leaf, torch.full_like(z, bad))))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert (results[0][0] == 0).any()


@pytest.mark.parametrize(("mode", "detach"), [rule for rule in RULES if rule != ("hierarchical", True)])
def test_its_gradient_is_the_derivative_and_so_is_that_gradient_s(mode, detach, device):
    z, k, subset_of = case(2, 7, torch.float64, device)
    assert torch.autograd.gradcheck(lambda z: subset_mask(z, k, subset_of, mode, detach), z.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: subset_mask(z, k, subset_of, mode, detach), z)


def test_an_upstream_gradient_without_memory_of_its_own_is_welcome(device):
    z, k, subset_of = case(3, 12, torch.float32, device)
    subset_mask(z.requires_grad_(), k, subset_of).sum().backward()
    assert torch.equal(z.grad, (subset_of <= k[:, None]).float())


def test_five_runs_are_one(device):
    z, k, subset_of = case(3, 55, torch.float32, device)
    first, *others = [subset_mask(z, k, subset_of, detach=True) for _ in range(5)]
    assert all(torch.equal(first, other) for other in others)
