"""The reference maths of the kernels equals the papers' formulas, written out again in float64."""

import itertools

import pytest
import torch

from kernels.adagn_silu.ref import adagn_silu
from kernels.noise_jump.ref import noise_for, noise_jump, to_unit_range
from kernels.philox import STREAM_NOISE, normal
from kernels.recon_loss.ref import recon_target, weighted_error
from kernels.subset_mask.ref import subset_mask

EPSILON = 2.0**-24  # half a unit in the last place of 1 in float32
ALPHA_BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
POSITIONS = torch.tensor([3, 2**33, 17, 4])
SUBSET_OF = torch.tensor([1, 1, 2, 3, 3, 3])


def photos(count: int = 4, height: int = 5, width: int = 7) -> torch.Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8)


def per_sample(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None, None]


class TestNoiseJump:
    def test_bytes_become_channels_first_floats_from_minus_one_to_one(self):
        x_0 = photos()
        x_0[0, 2, 3] = torch.tensor([0, 51, 255])
        x = to_unit_range(x_0)
        assert x.dtype == torch.float32
        assert x.shape == (4, 3, 5, 7)
        assert x[0, :, 2, 3].tolist() == pytest.approx([-1, -0.6, 1], abs=1e-7)
        assert x[0, 0, 2, 3] == -1
        assert x[0, 2, 2, 3] == 1
        assert torch.allclose(x[1, 2].double(), x_0[1, :, :, 2].double() / 127.5 - 1, rtol=0, atol=2e-7)
        assert x.is_contiguous(memory_format=torch.channels_last)

    def test_float_images_pass_as_they_are(self):
        x_0 = torch.randn(2, 3, 4, 4, dtype=torch.float64)
        assert torch.equal(to_unit_range(x_0), x_0.float())

    def test_noise_is_the_normals_of_the_position_in_channels_last_order(self):
        flat = normal(8, POSITIONS, 3 * 5 * 7, STREAM_NOISE)
        eps = noise_for(8, POSITIONS, (3, 5, 7))
        for c, h, w in [(0, 0, 0), (2, 0, 0), (1, 0, 1), (0, 1, 0), (2, 4, 6)]:
            assert torch.equal(eps[:, c, h, w], flat[:, (h * 7 + w) * 3 + c])

    @pytest.mark.parametrize("levels", [[0, 1, 10, 100], [250, 500, 900, 999]])
    def test_it_is_the_forward_process_at_each_sample_s_own_level(self, levels):
        x_0, level = photos(), torch.tensor(levels)
        x_level, eps = noise_jump(x_0, level, ALPHA_BAR, 8, POSITIONS)
        a = per_sample(ALPHA_BAR[level])
        kept, added = a.sqrt() * to_unit_range(x_0).double(), (1 - a).sqrt() * eps.double()
        assert torch.equal(eps, noise_for(8, POSITIONS, (3, 5, 7)))
        assert x_level.dtype == torch.float32
        assert ((x_level - (kept + added)).abs() <= 4 * EPSILON * (kept.abs() + added.abs())).all()

    def test_a_sample_is_noised_alike_in_any_batch_and_order(self):
        x_0, level = photos(), torch.tensor([5, 900, 77, 400])
        whole = noise_jump(x_0, level, ALPHA_BAR, 8, POSITIONS)
        for row in range(4):
            one = noise_jump(x_0[[row]], level[[row]], ALPHA_BAR, 8, POSITIONS[[row]])
            assert all(torch.equal(a[row], b[0]) for a, b in zip(whole, one, strict=True))

    def test_bytes_and_their_floats_are_noised_alike(self):
        x_0, level = photos(), torch.tensor([5, 900, 77, 400])
        from_bytes, _ = noise_jump(x_0, level, ALPHA_BAR, 8, POSITIONS)
        from_floats, _ = noise_jump(to_unit_range(x_0), level, ALPHA_BAR, 8, POSITIONS)
        assert torch.equal(from_bytes, from_floats)


class TestReconLoss:
    SHAPE = (4, 3, 5, 7)

    @pytest.fixture
    def parts(self):
        """Arguments of weighted_error: eps_theta, g, target and s_t, lambda_t, SNR_t of four samples."""
        images = (torch.randn(self.SHAPE) for _ in range(3))
        shift, weight, snr = -torch.rand(4), torch.rand(4), torch.rand(4) + 0.1
        return *images, per_sample(shift), per_sample(weight), per_sample(snr)

    def test_every_value_is_its_formula_per_sample(self, parts):
        eps_theta, g, target, shift, weight, snr = (part.double() for part in parts)
        with_g = (target - (eps_theta + shift * g)).square().mean((1, 2, 3))
        without = (target - eps_theta).square().mean((1, 2, 3))
        expected = (
            weight.flatten() * with_g,
            weight.flatten() * without,
            with_g / snr.flatten(),
            without / snr.flatten(),
        )
        for found, formula in zip(weighted_error(*parts), expected, strict=True):
            assert found.dtype == torch.float32
            assert torch.allclose(found.double(), formula, rtol=1e-5)

    def test_the_gradient_of_g_is_its_formula(self, parts):
        eps_theta, g, target, shift, weight, snr = parts
        g.requires_grad_()
        upstream = torch.randn(4)
        weighted_error(*parts).loss.backward(upstream)
        pixels = g[0].numel()
        residual = eps_theta.double() + shift.double() * g.detach().double() - target.double()
        expected = per_sample(upstream) * 2 / pixels * weight * shift * residual
        assert torch.allclose(g.grad.double(), expected, rtol=1e-5, atol=1e-9)

    def test_only_the_loss_leads_back_to_g(self, parts):
        parts[1].requires_grad_()
        needs_grad = {name: value.requires_grad for name, value in weighted_error(*parts)._asdict().items()}
        assert needs_grad == {"loss": True, "frozen": False, "x_0_error": False, "x_0_error_frozen": False}

    def test_half_precision_predictions_are_compared_in_full_precision(self, parts):
        eps_theta, g = parts[0].bfloat16(), parts[1].bfloat16()
        half = weighted_error(eps_theta, g, *parts[2:])
        full = weighted_error(eps_theta.float(), g.float(), *parts[2:])
        assert all(torch.equal(a, b) for a, b in zip(half, full, strict=True))

    def test_the_target_is_the_noise_itself_where_the_networks_are_told_the_true_level(self):
        x_0, eps = torch.randn(self.SHAPE), torch.randn(self.SHAPE)
        a = per_sample(ALPHA_BAR[[0, 10, 500, 999]].float())
        assert torch.equal(recon_target(x_0, eps, a, a), eps)

    @pytest.mark.parametrize("k", [1, 16, 64])
    def test_the_target_is_the_noise_that_explains_the_jumped_image_at_time_t(self, k):
        """x_{t+k} = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps*, so a model told t that says eps* finds x_0."""
        t = torch.tensor([0, 20, 300, 900])
        x_0, eps = torch.randn(self.SHAPE).double(), torch.randn(self.SHAPE).double()
        a_level, a_time = per_sample(ALPHA_BAR[t + k]), per_sample(ALPHA_BAR[t])
        x_level = a_level.sqrt() * x_0 + (1 - a_level).sqrt() * eps
        target = recon_target(x_0, eps, a_level, a_time)
        assert torch.allclose(a_time.sqrt() * x_0 + (1 - a_time).sqrt() * target, x_level, atol=1e-12)


class TestSubsetMask:
    K = torch.tensor([1, 2, 3])

    @pytest.mark.parametrize(
        ("mode", "kept"),
        [
            ("hierarchical", [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
            ("sequential", [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
        ],
    )
    @pytest.mark.parametrize("detach", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_it_keeps_the_subsets_of_its_mode_to_the_bit(self, mode, kept, detach, dtype):
        z = torch.randn(3, 6).to(dtype)
        z_bar = subset_mask(z, self.K, SUBSET_OF, mode, detach)
        assert z_bar.dtype == dtype
        assert torch.equal(z_bar, z * torch.tensor(kept, dtype=dtype))

    @pytest.mark.parametrize(
        ("mode", "detach", "trained"),
        [
            ("hierarchical", False, [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]]),
            ("hierarchical", True, [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
            ("sequential", False, [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
            ("sequential", True, [[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
        ],
    )
    def test_the_gradient_reaches_the_subsets_in_training_alone(self, mode, detach, trained):
        z, upstream = torch.randn(3, 6, requires_grad=True), torch.randn(3, 6)
        subset_mask(z, self.K, SUBSET_OF, mode, detach).backward(upstream)
        assert torch.equal(z.grad, upstream * torch.tensor(trained))

    @pytest.mark.parametrize("mode", ["hierarchical", "sequential"])
    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_masked_is_zero_whatever_it_held_and_what_is_kept_is_kept(self, mode, bad):
        z = torch.full((3, 6), bad, requires_grad=True)
        z_bar = subset_mask(z, self.K, SUBSET_OF, mode)
        visible = SUBSET_OF <= self.K[:, None] if mode == "hierarchical" else SUBSET_OF == self.K[:, None]
        assert torch.equal(z_bar.isfinite(), ~visible)
        assert (z_bar[~visible] == 0).all()
        z_bar.backward(torch.ones(3, 6))
        assert torch.equal(z.grad, visible.float())

    def test_an_unknown_mode_is_refused(self):
        with pytest.raises(ValueError, match="'hierarchical' or 'sequential', got 'both'"):
            subset_mask(torch.randn(3, 6), self.K, SUBSET_OF, "both")


class TestAdaGnSilu:
    GROUPS = 2

    @pytest.fixture
    def arguments(self):
        x, weight, bias = torch.randn(2, 4, 3, 5) * 3 + 2, torch.randn(4), torch.randn(4)
        return [x.double(), weight.double(), bias.double()]

    def formula(self, x, weight, bias, time=None, z=None):
        """SiLU((1 + s_z) ((1 + s_t) GN(x) + b_t) + b_z), one channel at a time."""
        y = torch.empty_like(x)
        width = x.shape[1] // self.GROUPS
        for b, c in itertools.product(range(x.shape[0]), range(x.shape[1])):
            group = x[b, c // width * width : c // width * width + width]
            h = (x[b, c] - group.mean()) / (group.var(correction=0) + 1e-5).sqrt() * weight[c] + bias[c]
            for modulation in (time, z):
                if modulation is not None:
                    h = (1 + modulation[b, c]) * h + modulation[b, x.shape[1] + c]
            y[b, c] = h / (1 + (-h).exp())
        return y

    @pytest.mark.parametrize("conditions", [(), ("time",), ("z",), ("time", "z")])
    def test_it_is_its_formula(self, arguments, conditions):
        modulations = {name: torch.randn(2, 8).double() for name in conditions}
        x, weight, bias = arguments
        found = adagn_silu(x, self.GROUPS, weight, bias, **modulations)
        assert torch.allclose(found, self.formula(x, weight, bias, **modulations), rtol=1e-10, atol=1e-12)

    def test_its_gradients_are_right(self, arguments):
        inputs = [*arguments, torch.randn(2, 8).double(), torch.randn(2, 8).double()]
        for tensor in inputs:
            tensor.requires_grad_()
        assert torch.autograd.gradcheck(lambda x, *rest: adagn_silu(x, self.GROUPS, *rest), inputs)
