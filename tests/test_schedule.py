"""The noise schedule: published numbers, and the algebra between its epsilon and x_0 forms."""

import pytest
import torch

from diffsiam.schedule import Schedule
from kernels.recon_loss.ref import recon_target

COLUMNS = ("alpha_bar", "shift", "shift_ddim", "strength", "weight", "weight_x0")

# DDPM's linear schedule with PDAE's coefficients, worked out in 50 decimal digits.
EXACT = {
    0: (9.999000000e-01, 0, -1.000000000e-02, 0, 2.511861312e-04, 2.511610125e00),
    1: (
        9.997800921e-01,
        -6.743005516e-03,
        -1.482929290e-02,
        1.000050004e-04,
        5.105135179e-04,
        2.320977041e00,
    ),
    10: (
        9.978065725e-01,
        -4.045159569e-02,
        -4.683404202e-02,
        1.896592894e-03,
        4.044972658e-03,
        1.840088318e00,
    ),
    50: (
        9.699514936e-01,
        -1.671140270e-01,
        -1.733450501e-01,
        2.941367852e-02,
        4.253198014e-02,
        1.372912088e00,
    ),
    100: (
        8.951415909e-01,
        -3.176905740e-01,
        -3.238184817e-01,
        1.087326802e-01,
        1.299367834e-01,
        1.109227386e00,
    ),
    200: (
        6.563470055e-01,
        -5.804390525e-01,
        -5.862192376e-01,
        4.200006250e-01,
        3.666244885e-01,
        7.002205395e-01,
    ),
    500: (
        7.779665837e-02,
        -9.546525134e-01,
        -9.603141890e-01,
        3.286837208e00,
        7.201784416e-01,
        6.075392883e-02,
    ),
    800: (
        1.507521060e-03,
        -9.911772642e-01,
        -9.992459552e-01,
        2.550891793e01,
        5.214787993e-01,
        7.873271845e-04,
    ),
    999: (
        4.035829765e-05,
        -9.899287017e-01,
        -9.999798206e-01,
        1.558219851e02,
        3.635611839e-01,
        1.467330266e-05,
    ),
}


@pytest.fixture(scope="module")
def schedule() -> Schedule:
    return Schedule()


@pytest.fixture(scope="module")
def beta() -> torch.Tensor:
    return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)


def same(a: torch.Tensor, b: torch.Tensor, rtol: float = 1e-12) -> bool:
    return torch.allclose(a, b, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("t", EXACT)
@pytest.mark.parametrize("column", COLUMNS)
def test_the_tables_hold_the_exact_numbers(schedule, column, t):
    assert getattr(schedule, column)[t].item() == pytest.approx(EXACT[t][COLUMNS.index(column)], rel=1e-8)


def test_the_tables_are_double_precision_and_leave_no_trace_in_checkpoints(schedule):
    assert all(getattr(schedule, name).dtype == torch.float64 for name in (*COLUMNS, "snr", "alpha_bar_prev"))
    assert schedule.state_dict() == {}


def test_the_loss_weight_peaks_in_the_middle(schedule):
    assert schedule.weight.mean().item() == pytest.approx(0.49267, abs=5e-6)
    assert schedule.weight.max().item() == pytest.approx(0.72247, abs=5e-6)
    assert schedule.weight.argmax().item() == 475


@pytest.mark.parametrize(
    ("times", "percent"),
    [((0, 50), 0.17), ((50, 100), 0.84), ((100, 300), 14.7), ((300, 500), 27.7), ((500, 1000), 56.6)],
)
def test_most_of_the_loss_weight_lies_at_late_times(schedule, times, percent):
    share = schedule.weight[slice(*times)].sum() / schedule.weight.sum()
    assert 100 * share.item() == pytest.approx(percent, rel=0.03)


def test_the_loss_weight_is_a_power_of_signal_and_noise(schedule):
    """lambda_t = SNR^0.1 / (1 + SNR) = abar^0.1 (1 - abar)^0.9."""
    a = schedule.alpha_bar
    assert same(schedule.weight, a**0.1 * (1 - a) ** 0.9)


def test_the_x_0_weight_is_the_epsilon_weight_times_the_signal_to_noise_ratio(schedule):
    a = schedule.alpha_bar
    assert same(schedule.snr, a / (1 - a))
    assert same(schedule.weight_x0, schedule.snr * schedule.weight)


def test_the_strength_in_x_0_units_is_the_shift_in_epsilon_units(schedule):
    """w_t = -s_t sqrt((1 - abar_t) / abar_t)."""
    a = schedule.alpha_bar
    assert same(schedule.strength, -schedule.shift * ((1 - a) / a).sqrt())


def test_the_strength_is_a_function_of_the_step_before(schedule):
    """w_t = W(abar_{t-1}) with W(a) = (1 - a) / sqrt(a), and abar_{-1} = 1."""
    before = torch.cat((torch.ones(1, dtype=torch.float64), schedule.alpha_bar[:-1]))
    assert torch.equal(schedule.alpha_bar_prev, before)
    assert same(schedule.strength, (1 - before) / before.sqrt())


def test_sampling_guides_with_the_training_strength_of_the_next_step(schedule):
    """w^ddim_t = w_{t+1}: the two published coefficients differ by one index."""
    a = schedule.alpha_bar
    strength_ddim = -schedule.shift_ddim * ((1 - a) / a).sqrt()
    assert same(strength_ddim[:-1], schedule.strength[1:])


def test_the_shift_is_the_posterior_mean_moved_by_its_covariance_times_g(schedule, beta):
    """mu(eps_theta) + Sigma_t G = mu(eps_theta + s_t G) for the DDPM posterior (PDAE, Eq. 8-9)."""
    a, before = schedule.alpha_bar, schedule.alpha_bar_prev
    x_t, eps, g = torch.randn(3, 1000, dtype=torch.float64)

    def mean(eps_hat):
        return (x_t - beta / (1 - a).sqrt() * eps_hat) / (1 - beta).sqrt()

    sigma = beta * (1 - before) / (1 - a)
    assert torch.allclose(mean(eps) + sigma * g, mean(eps + schedule.shift * g), rtol=0, atol=1e-12)


def test_the_compensated_predictions_are_one_thing_in_both_forms(schedule):
    """u_theta + w_t G is the x_0 of eps_theta + s_t G."""
    a = schedule.alpha_bar
    x_t, eps, g = torch.randn(3, 1000, dtype=torch.float64)

    def x_0(eps_hat):
        return (x_t - (1 - a).sqrt() * eps_hat) / a.sqrt()

    assert same(x_0(eps) + schedule.strength * g, x_0(eps + schedule.shift * g))


@pytest.mark.parametrize("k", [0, 1, 64])
def test_the_error_of_x_0_is_the_error_of_epsilon_over_the_snr_even_after_a_jump(schedule, k):
    """x_0 - x_0_hat = sqrt(1 / SNR_t) (eps_hat - eps*) for an image at level t + k and networks told t."""
    t = torch.arange(1000 - k)
    a_time, a_level, snr = schedule.alpha_bar[t], schedule.alpha_bar[t + k], schedule.snr[t]
    x_0, eps, eps_hat = torch.randn(3, len(t), dtype=torch.float64)
    x_level = a_level.sqrt() * x_0 + (1 - a_level).sqrt() * eps
    x_0_hat = (x_level - (1 - a_time).sqrt() * eps_hat) / a_time.sqrt()
    target = recon_target(x_0, eps, a_level, a_time)
    assert torch.allclose(x_0 - x_0_hat, (eps_hat - target) / snr.sqrt(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("t", "k", "gain"), [(0, 1, 1.48), (0, 64, 21.6), (20, 16, 1.64), (100, 32, 1.28), (800, 64, 1.00)]
)
def test_the_jump_asks_for_more_noise_than_the_networks_are_told(schedule, t, k, gain):
    found = recon_target(torch.zeros(1), torch.ones(1), schedule.alpha_bar[t + k], schedule.alpha_bar[t])
    assert found.item() == pytest.approx(gain, abs=0.005 if gain < 10 else 0.05)


def test_tables_are_gathered_per_sample_in_single_precision(schedule):
    t = torch.tensor([7, 0, 999])
    gathered = schedule.at("weight", t)
    assert gathered.dtype == torch.float32
    assert gathered.shape == (3, 1, 1, 1)
    assert torch.equal(gathered.flatten(), schedule.weight[t].float())


def test_images_and_noise_are_found_from_each_other(schedule):
    t = torch.tensor([0, 300, 999])
    x_0, eps = torch.randn(2, 3, 3, 2, 2)
    a = schedule.alpha_bar[t].float()[:, None, None, None]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    assert torch.allclose(schedule.x_0_from_eps(x_t, eps, t), x_0, rtol=1e-4, atol=1e-4)
    assert torch.allclose(schedule.eps_from_x_0(x_t, x_0, t), eps, rtol=1e-4, atol=1e-4)


def test_steps_betas_and_gamma_are_free():
    schedule = Schedule(steps=10, beta_start=0.1, beta_end=0.5, gamma=0.5)
    assert schedule.steps == len(schedule.alpha_bar) == 10
    assert schedule.alpha_bar[0].item() == pytest.approx(0.9)
    assert (schedule.alpha_bar[9] / schedule.alpha_bar[8]).item() == pytest.approx(0.5)
    assert same(schedule.weight, (schedule.alpha_bar * (1 - schedule.alpha_bar)).sqrt())
