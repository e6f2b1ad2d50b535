"""The reconstruction loss' kernel: Eq. 3.11 and its gradient against float64, on the noise that the noise
jump drew."""

import pytest
import torch
from kernel_cases import (
    ALPHA_BAR,
    BF16_ULPS,
    BLOCK,
    EPSILON,
    FAR,
    LAYOUTS,
    ODD_IMAGES,
    SEED,
    SHIFT,
    WEIGHT,
    assert_within_bf16_ulps,
    laid,
    per_sample,
    photos,
)

from kernels.noise_jump.op import noise_jump
from kernels.noise_jump.ref import noise_for, to_unit_range
from kernels.recon_loss import op, ref
from kernels.recon_loss.op import recon_loss
from kernels.tensors import is_channels_last

LEVELS, TIMES = [1, 999, 510], [0, 999, 500]
IMAGE = (3, 5, 7)


class Case:
    """Arguments of the loss for a batch, with two random predictions."""

    def __init__(self, batch: int, image: tuple[int, int, int], device, dtype: torch.dtype = torch.float32):
        self.x_0 = photos(batch, image).to(device)
        self.eps_theta, self.g = (torch.randn(batch, *image).to(device, dtype) for _ in range(2))
        self.level, self.time, self.positions = (
            torch.tensor(v[:batch], device=device) for v in (LEVELS, TIMES, FAR)
        )
        self.tables = [table.to(device) for table in (ALPHA_BAR, SHIFT, WEIGHT)]

    def lay(self, layout: str) -> "Case":
        self.eps_theta, self.g = laid(self.eps_theta, layout), laid(self.g, layout)
        return self

    @property
    def rest(self) -> tuple:
        return self.level, self.time, *self.tables, SEED, self.positions

    def run(self, function, dtype: torch.dtype | None = None):
        """Losses and, for a random upstream gradient, the gradient of g."""
        g = self.g.to(dtype or self.g.dtype).detach().requires_grad_()
        losses = function(self.x_0, self.eps_theta, g, *self.rest)
        upstream = torch.linspace(-1.3, 2.1, len(g), device=g.device)
        (gradient,) = torch.autograd.grad(losses.loss, g, upstream.to(losses.loss.dtype))
        return losses, gradient

    def exact(self):
        """The same in float64, from the same rounded inputs."""
        return self.run(ref.recon_loss, torch.float64)

    def size_of_terms(self):
        """Sum of the magnitudes that make up the residual: what rounding errors are relative to."""
        alpha_bar, shift, _ = self.tables
        a_level, a, s = (
            per_sample(t) for t in (alpha_bar[self.level], alpha_bar[self.time], shift[self.time])
        )
        drift, gain = (a_level.sqrt() - a.sqrt()) / (1 - a).sqrt(), ((1 - a_level) / (1 - a)).sqrt()
        eps = noise_for(SEED, self.positions, tuple(self.g.shape[1:])).double()
        return (
            (drift * to_unit_range(self.x_0)).abs()
            + (gain * eps).abs()
            + self.eps_theta.abs()
            + (s * self.g).abs()
        )

    def slope(self):
        """d loss / d residual of a sample without the residual itself, with ``run``'s upstream gradient."""
        _, shift, weight = (table[self.time] for table in self.tables)
        upstream = torch.linspace(-1.3, 2.1, len(self.g), device=self.g.device)
        return per_sample(2 / self.g[0].numel() * weight * shift * upstream).abs()


def assert_right(case: Case) -> None:
    losses, gradient = case.run(recon_loss)
    exact, exact_gradient = case.exact()
    for name, value in losses._asdict().items():
        assert torch.allclose(value.double(), getattr(exact, name), rtol=1e-5, atol=0), name
    allowed = case.slope() * (8 * EPSILON + 2e-6) * case.size_of_terms()  # normals are good to 2e-6
    assert ((gradient - exact_gradient).abs() <= allowed).all()
    assert is_channels_last(gradient) == is_channels_last(case.g)


class TestValuesAndGradient:
    @pytest.mark.parametrize("image", ODD_IMAGES, ids=str)
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("batch", [1, 3])
    def test_they_are_equation_3_11_at_any_size(self, image, layout, batch, fenced, device, monkeypatch):
        monkeypatch.setattr(op, "BLOCK", BLOCK)
        monkeypatch.setattr(op, "SUM_BLOCK", 2)
        case = Case(batch, image, device).lay(layout)
        case.x_0, case.eps_theta = fenced(case.x_0), fenced(case.eps_theta)
        case.g = fenced(case.g)
        assert_right(case)

    @pytest.mark.parametrize("source", LAYOUTS)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts_may_differ_from_each_other(self, source, layout, device):
        case = Case(3, IMAGE, device)
        case.x_0 = laid(to_unit_range(case.x_0), source)
        case.g = laid(case.g, layout)
        assert_right(case)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_eps_theta_may_be_the_first_channels_of_more(self, layout, device):
        case = Case(3, IMAGE, device)
        case.eps_theta = laid(torch.randn(3, 6, 5, 7, device=device), layout)[:, :3]
        assert_right(case)

    def test_the_sum_over_a_whole_image_keeps_five_digits(self, device, monkeypatch):
        monkeypatch.setattr(op, "BLOCK", 8192)
        assert_right(Case(1, (3, 128, 128), device).lay("channels_last"))

    def test_half_precision_gradients_are_rounded_twice_and_no_more(self, device):
        case = Case(3, IMAGE, device, torch.bfloat16).lay("channels_last")
        losses, gradient = case.run(recon_loss)
        exact, exact_gradient = case.exact()
        assert gradient.dtype == torch.bfloat16
        assert losses.loss.dtype == torch.float32
        assert torch.allclose(losses.loss.double(), exact.loss, rtol=1e-5)
        assert_within_bf16_ulps(gradient, exact_gradient, 2 * BF16_ULPS)

    def test_the_gradient_is_the_derivative(self, device):
        case = Case(2, (3, 2, 1), device, torch.float64)
        g = case.g.requires_grad_()
        assert torch.autograd.gradcheck(lambda g: recon_loss(case.x_0, case.eps_theta, g, *case.rest).loss, g)

    def test_only_the_loss_leads_back_to_g(self, device):
        case = Case(2, IMAGE, device)
        losses = recon_loss(case.x_0, case.eps_theta, case.g.requires_grad_(), *case.rest)
        assert {name for name, value in losses._asdict().items() if value.requires_grad} == {"loss"}

    def test_without_need_of_a_gradient_the_values_are_the_same(self, device):
        case = Case(3, IMAGE, device)
        with_gradient = recon_loss(case.x_0, case.eps_theta, case.g.clone().requires_grad_(), *case.rest)
        without = recon_loss(case.x_0, case.eps_theta, case.g, *case.rest)
        assert all(torch.equal(a, b) for a, b in zip(with_gradient, without, strict=True))

    def test_a_mean_over_the_batch_spreads_its_gradient(self, device):
        case = Case(3, IMAGE, device)
        gradients = []
        for function in (recon_loss, ref.recon_loss):
            g = case.g.clone().requires_grad_()
            function(case.x_0, case.eps_theta, g, *case.rest).loss.mean().backward()
            gradients.append(g.grad)
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-8)


class TestItsNoise:
    def test_is_the_noise_that_the_noise_jump_drew(self, device):
        case = Case(3, IMAGE, device)
        _, eps = noise_jump(case.x_0, case.level, case.tables[0], SEED, case.positions, return_eps=True)
        case.eps_theta, case.time = eps, case.level
        assert recon_loss(case.x_0, case.eps_theta, case.g, *case.rest).frozen.tolist() == [0, 0, 0]


class TestWhatIsNoNumber:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_in_g_spoils_its_sample_s_loss_and_its_own_gradient_alone(self, bad, device):
        case = Case(3, IMAGE, device)
        case.g[1, 2, 3, 4] = bad
        losses, gradient = case.run(recon_loss)
        assert losses.loss.isfinite().tolist() == [True, False, True]
        assert losses.x_0_error.isfinite().tolist() == [True, False, True]
        assert losses.frozen.isfinite().all()
        assert torch.equal(gradient.isfinite(), case.g.isfinite())

    def test_in_eps_theta_spoils_its_sample_alone(self, device):
        case = Case(3, IMAGE, device)
        case.eps_theta[2, 0, 0, 0] = float("nan")
        losses, _ = case.run(recon_loss)
        assert all(value.isfinite().tolist() == [True, True, False] for value in losses)


class TestItIsDeterministic:
    def test_five_runs_are_one(self, device):
        case = Case(3, IMAGE, device)
        first, *others = [case.run(recon_loss) for _ in range(5)]
        for losses, gradient in others:
            assert torch.equal(gradient, first[1])
            assert all(torch.equal(a, b) for a, b in zip(losses, first[0], strict=True))

    def test_a_sample_costs_the_same_in_any_batch(self, device):
        case = Case(3, IMAGE, device)
        whole = recon_loss(case.x_0, case.eps_theta, case.g, *case.rest)
        for i in range(3):
            j = slice(i, i + 1)
            one = recon_loss(
                case.x_0[j],
                case.eps_theta[j],
                case.g[j],
                case.level[j],
                case.time[j],
                *case.tables,
                SEED,
                case.positions[j],
            )
            assert all(torch.equal(a[i], b[0]) for a, b in zip(whole, one, strict=True))
