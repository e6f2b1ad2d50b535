"""DDIM moves in both directions, and what guides it."""

import math

import numpy as np
import pytest
import torch

from diffsiam.decoder import Decoder
from diffsiam.sampling import (
    Move,
    ddim,
    ddim_times,
    guided,
    invert,
    moves_down,
    moves_up,
    sample,
    to_uint8,
    unguided,
)
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet, UNetConfig
from kernels.noise_jump.ref import to_unit_range

TINY = UNetConfig(8, (1, 2), blocks=1, attention=(2,))
SPREAD = 0.3  # standard deviation of the Gaussian images


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Schedule()


@pytest.fixture(scope="module")
def gaussian(schedule):
    """The exact noise prediction for images x_0 ~ N(0, SPREAD^2 I)."""

    def predict(x, t):
        a = schedule.at("alpha_bar", t)
        return (1 - a).sqrt() * x / (a * SPREAD**2 + 1 - a)

    return predict


@pytest.fixture
def images() -> torch.Tensor:
    return (SPREAD * torch.randn(2, 3, 4, 4)).clamp(-0.9, 0.9)


def deviation(schedule: Schedule, t: int) -> float:
    """Standard deviation of x_t of the Gaussian images: the flow scales every image along with it."""
    a = schedule.alpha_bar[t].item()
    return math.sqrt(a * SPREAD**2 + 1 - a)


class TestSpacing:
    def test_a_hundred_moves_keep_101_times_from_the_first_to_the_last(self):
        assert ddim_times(1000, 100) == [0, *range(9, 1000, 10)]
        assert len(ddim_times(1000, 100)) == 101

    def test_a_thousand_moves_keep_all_times(self):
        assert ddim_times(1000, 1000) == list(range(1000))

    @pytest.mark.parametrize("moves", [1, 10, 20, 50, 250, 500])
    def test_it_is_pdae_s_truncated_linspace(self, moves):
        assert ddim_times(1000, moves) == sorted({int(t) for t in np.linspace(0, 999, moves + 1)})

    def test_by_default_a_path_runs_between_the_states_of_the_first_and_the_last_time(self, schedule):
        up, down = moves_up(schedule, 4), moves_down(schedule, 4)
        a = schedule.alpha_bar.tolist()
        assert up == [Move(t, a[t], a[after]) for t, after in ((0, 249), (249, 499), (499, 749), (749, 999))]
        assert [move.t for move in down] == [999, 749, 499, 249]
        assert down[-1].after == a[0]

    def test_the_strided_path_runs_between_the_image_itself_and_pure_noise(self, schedule):
        up, down = moves_up(schedule, 4, "strided"), moves_down(schedule, 4, "strided")
        assert [move.t for move in up] == [0, 250, 500, 750]
        assert [move.t for move in down] == [750, 500, 250, 0]
        assert (up[-1].after, down[-1].after) == (0.0, 1.0)
        assert up[0].after == schedule.alpha_bar[250].item()
        assert down[0].after == schedule.alpha_bar[500].item()

    def test_a_stride_that_does_not_divide_the_times_makes_a_few_more_moves(self, schedule):
        assert len(moves_up(schedule, 300, "strided")) == 334

    @pytest.mark.parametrize("moves", [0, 1001])
    def test_more_moves_than_times_are_refused(self, schedule, moves):
        with pytest.raises(ValueError, match="choose 1 to 1000"):
            moves_up(schedule, moves)


class TestMoves:
    def test_one_move_is_equation_3_5(self, schedule):
        x, eps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
        now, after = 300, 280
        a, b = schedule.alpha_bar[[now, after]]
        x_0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        expected = b.sqrt() * x_0 + (1 - b).sqrt() * eps
        found = ddim(x.float(), lambda *_: eps.float(), [Move(now, a.item(), b.item())], clamp=False)
        assert torch.allclose(found.double(), expected, atol=1e-5)

    def test_a_clamped_move_goes_to_the_clipped_image_with_the_noise_that_explains_it(self, schedule):
        x, eps = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
        now, after = 600, 500
        a, b = schedule.alpha_bar[[now, after]]
        x_0 = ((x - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
        expected = b.sqrt() * x_0 + (1 - b).sqrt() * (x - a.sqrt() * x_0) / (1 - a).sqrt()
        found = ddim(x.float(), lambda *_: eps.float(), [Move(now, a.item(), b.item())])
        assert torch.allclose(found.double(), expected, atol=1e-5)

    def test_the_model_is_asked_at_the_time_of_the_state_it_is_given(self, schedule):
        asked = []

        def predict(x, t):
            assert not torch.is_grad_enabled()
            asked.append(t.tolist())
            return torch.zeros_like(x)

        invert(torch.zeros(2, 3, 4, 4), predict, schedule, 4)
        assert asked == [[t] * 2 for t in (0, 249, 499, 749)]
        asked.clear()
        sample(torch.zeros(2, 3, 4, 4), predict, schedule, 4)
        assert asked == [[t] * 2 for t in (999, 749, 499, 249)]

    def test_samples_are_images_even_without_clamping_on_the_way(self, schedule):
        far = sample(5 * torch.randn(2, 3, 4, 4), lambda x, t: torch.zeros_like(x), schedule, 10)
        assert far.abs().max() <= 1


class TestTheExactGaussianModel:
    def test_inversion_arrives_where_the_flow_does_more_precisely_with_more_moves(
        self, schedule, gaussian, images
    ):
        exact = images * deviation(schedule, 999) / deviation(schedule, 0)
        errors = [
            (invert(images, gaussian, schedule, moves) - exact).abs().max() for moves in (25, 100, 1000)
        ]
        assert errors[0] > 2 * errors[1] > 4 * errors[2]
        assert errors[2] < 0.02

    def test_sampling_arrives_where_the_flow_does_more_precisely_with_more_moves(
        self, schedule, gaussian, images
    ):
        x_T = images * deviation(schedule, 999) / deviation(schedule, 0)
        errors = [(sample(x_T, gaussian, schedule, moves) - images).abs().max() for moves in (25, 100, 1000)]
        assert errors[0] > 2 * errors[1] > 4 * errors[2]
        assert errors[2] < 0.005

    def test_an_image_comes_back_from_its_inversion_more_precisely_with_more_moves(
        self, schedule, gaussian, images
    ):
        errors = []
        for moves in (25, 100, 1000):
            back = sample(invert(images, gaussian, schedule, moves), gaussian, schedule, moves)
            errors.append((back - images).abs().max())
        assert errors[0] > 2 * errors[1] > 4 * errors[2]
        assert errors[2] < 0.01


class TestGuidance:
    T = torch.tensor([999, 400])

    @pytest.fixture
    def networks(self, awaken):
        return awaken(UNet(TINY)).eval(), awaken(Decoder(TINY, 8), seed=1).eval()

    @pytest.fixture
    def x(self):
        return torch.randn(2, 3, 8, 8)

    @pytest.mark.parametrize("coefficient", ["ddim", "train"])
    def test_the_coefficient_is_that_of_sampling_or_of_training(self, schedule, networks, x, coefficient):
        frozen, decoder = networks
        a, before = schedule.alpha_bar[self.T], schedule.alpha_bar_prev[self.T]
        c = {"ddim": -(1 - a).sqrt(), "train": -(a / before).sqrt() * (1 - before) / (1 - a).sqrt()}[
            coefficient
        ]
        z = torch.randn(2, 8)
        with torch.no_grad():
            found = guided(frozen, decoder, schedule, Subsets([2, 8]), z, coefficient)(x, self.T)
            expected = frozen(x, self.T) + c[:, None, None, None] * decoder(frozen.encode(x, self.T), z)
        assert torch.allclose(found, expected.float(), atol=1e-5)

    def test_sampling_s_coefficient_is_the_default(self, schedule, networks, x):
        z = torch.randn(2, 8)
        with torch.no_grad():
            default = guided(*networks, schedule, Subsets([2, 8]), z)(x, self.T)
            ddim = guided(*networks, schedule, Subsets([2, 8]), z, "ddim")(x, self.T)
            train = guided(*networks, schedule, Subsets([2, 8]), z, "train")(x, self.T)
        assert torch.equal(default, ddim)
        assert not torch.equal(default, train)

    def test_the_guidance_scale_multiplies_g_alone(self, schedule, networks, x):
        z = torch.randn(2, 8)
        with torch.no_grad():
            none, one, two = (
                guided(*networks, schedule, Subsets([2, 8]), z, scale=scale)(x, self.T) for scale in (0, 1, 2)
            )
        assert torch.equal(none, unguided(networks[0])(x, self.T))
        assert torch.allclose(two - one, one - none, atol=1e-5)
        assert not torch.equal(two, one)

    @pytest.mark.parametrize(
        ("choice", "hides"), [("time_tied", True), ("profile", True), ("random", False), ("full", False)]
    )
    def test_a_time_sees_the_subsets_it_was_trained_with(self, schedule, networks, x, choice, hides):
        subsets = Subsets([2, 8], choice, boundaries=[500])
        z = torch.randn(2, 8)
        other = z.clone()
        other[:, 2:] += 1  # another second subset
        with torch.no_grad():
            before, after = (
                guided(*networks, schedule, subsets, value, "ddim")(x, self.T) for value in (z, other)
            )
        assert not torch.equal(before[0], after[0])  # at t = 999 both subsets count
        assert torch.equal(before[1], after[1]) is hides  # at t = 400 a tied model has the first alone

    def test_without_guidance_it_is_the_frozen_model(self, networks, x):
        frozen, _ = networks
        with torch.no_grad():
            assert torch.equal(unguided(frozen)(x, self.T), frozen(x, self.T))

    def test_half_precision_networks_predict_in_single_precision(self, schedule, networks, x):
        frozen, decoder = (network.bfloat16() for network in networks)
        with torch.no_grad():
            assert unguided(frozen)(x, self.T).dtype == torch.float32
            z = torch.randn(2, 8).bfloat16()
            assert guided(frozen, decoder, schedule, Subsets([2, 8]), z)(x, self.T).dtype == torch.float32


def test_bytes_survive_the_way_to_floats_and_back():
    x = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_unit_range(x)), x)


def test_floats_are_rounded_to_the_nearest_byte_and_clipped():
    x = torch.tensor([-1.2, -1.0, -0.99, 0.99, 1.0, 1.2]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(x)[0, 0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]
