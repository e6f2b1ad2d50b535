"""What the frozen model loses, on models whose loss is known in closed form."""

import numpy as np
import pytest
import torch
from torch import nn

from diffsiam.evaluation.profile import accuracy, attribute_profile, error_profile, lost_at, x_0_predictions
from diffsiam.schedule import Schedule
from diffsiam.unet import UNet, UNetConfig

torch.set_num_threads(1)
TIMES = [0, 100, 200, 400, 700, 999]


class Guess(nn.Module):
    """A frozen model whose x_0_hat is a function of x_t and alpha_bar."""

    def __init__(self, schedule, x_0_hat):
        super().__init__()
        self.schedule, self.x_0_hat = schedule, x_0_hat

    def forward(self, x, t):
        return self.schedule.eps_from_x_0(x, self.x_0_hat(x, self.schedule.at("alpha_bar", t)), t)


@pytest.fixture
def schedule():
    return Schedule()


@pytest.fixture
def images():
    """Gaussian pixels of variance 0.04, about the mean 0.3."""
    return 0.3 + 0.2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_model_that_knows_only_the_mean_image_has_lost_everything(schedule, images):
    frozen = Guess(schedule, lambda x, a: images.mean(dim=0).expand_as(x))
    np.testing.assert_allclose(error_profile(frozen, schedule, images, 0, TIMES), 1, rtol=1e-4)


def test_the_error_of_the_best_model_of_gaussian_pixels_is_that_of_the_wiener_filter(schedule, images):
    variance = 0.04

    def wiener(x, a):
        return 0.3 + a.sqrt() * variance / (a * variance + 1 - a) * (x - a.sqrt() * 0.3)

    a = schedule.alpha_bar[TIMES].numpy()
    expected = (1 - a) / (a * variance + 1 - a)
    error = error_profile(Guess(schedule, wiener), schedule, images, 0, TIMES)
    np.testing.assert_allclose(error, expected, rtol=0.03)
    assert (np.diff(error) > 0).all()


def test_neither_batch_size_nor_the_other_times_change_a_prediction(schedule, images):
    frozen = UNet(UNetConfig(base_channels=16, channel_mult=(1, 2), blocks=1, attention=(2,))).eval()
    nn.init.normal_(frozen.out[2].weight, std=0.1)
    (alone,) = x_0_predictions(frozen, schedule, images[:10], 3, [400])
    _, beside, _ = x_0_predictions(frozen, schedule, images[:10], 3, [0, 400, 900], batch_size=4)
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_another_seed_gives_another_noise(schedule, images):
    frozen = Guess(schedule, lambda x, a: x / a.sqrt())
    first, again, other = (next(x_0_predictions(frozen, schedule, images, seed, [300])) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_equal_images_are_refused_for_they_have_nothing_to_lose(schedule):
    frozen = Guess(schedule, lambda x, a: x)
    with pytest.raises(ValueError, match="all images are equal"):
        error_profile(frozen, schedule, torch.zeros(4, 3, 8, 8), 0, [100])


def read_colours(images):
    """Two factors: whether the left half is red, and whether the top left pixel is green."""
    red = images[:, 0, :, :4].mean(dim=(1, 2)) > 0
    green = images[:, 1, 0, 0] > 0
    return torch.stack((red, green), dim=1).long()


def test_a_factor_of_few_pixels_is_lost_before_one_of_many(schedule):
    levels = torch.randint(0, 2, (128, 2), generator=torch.Generator().manual_seed(1))
    images = torch.zeros(128, 3, 8, 8)
    images[:, 0, :, :4] = 0.4 * (2 * levels[:, :1, None] - 1)
    images[:, 1, 0, 0] = 0.4 * (2 * levels[:, 1] - 1)
    frozen = Guess(schedule, lambda x, a: x)  # it takes nothing away: what is lost is lost in noise
    found = attribute_profile(frozen, schedule, images, levels, read_colours, TIMES, 0, batch_size=50)
    assert found.shape == (len(TIMES), 2)
    assert (found[0] == 1).all()
    np.testing.assert_allclose(found[-1], 0.5, atol=0.15)
    clean = accuracy(images, levels, read_colours)
    coarse, fine = lost_at(TIMES, found, clean, np.array([0.5, 0.5]))
    assert fine < coarse < 999


def test_the_time_of_loss_is_interpolated_and_counts_the_least_accuracy_so_far():
    columns = {
        "between two times": ([1.0, 0.8, 0.4, 0.3], 150),
        "for good": ([1.0, 0.4, 0.9, 0.9], 100 * 0.4 / 0.6),
        "before the first time": ([0.5, 0.5, 0.5, 0.5], 0),
        "never": ([1.0, 1.0, 0.9, 0.7], np.inf),
        "from the least so far": ([1.0, 0.65, 0.9, 0.55], 250),
    }
    profile = np.array([accuracies for accuracies, _ in columns.values()]).T
    lost = lost_at([0, 100, 200, 300], profile, np.ones(5), np.full(5, 0.2))
    np.testing.assert_allclose(lost, [expected for _, expected in columns.values()])
