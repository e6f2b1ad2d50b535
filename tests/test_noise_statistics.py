"""A million draws of the noise look like a million independent normals."""

import pytest
import torch
from scipy import stats

from kernels.philox import STREAM_EVAL, STREAM_NOISE, normal

DRAWS = 1_000_000
PER_SAMPLE = 3 * 64 * 64  # elements of an image
SAMPLES = -(-DRAWS // PER_SAMPLE)
BATCH = 16


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    """(SAMPLES, PER_SAMPLE) of neighbouring samples."""
    return normal(1, torch.arange(SAMPLES), PER_SAMPLE, STREAM_NOISE)


def assert_uncorrelated(a: torch.Tensor, b: torch.Tensor) -> None:
    """Neither the values nor their squares correlate beyond five standard errors."""
    for x, y in ((a, b), (a.square(), b.square())):
        correlation = torch.corrcoef(torch.stack((x.flatten(), y.flatten())).double())[0, 1]
        assert correlation.abs() < 5 / a.numel() ** 0.5


def test_moments_to_the_fourth_order_are_a_normal_s(noise):
    x = noise.flatten()[:DRAWS].double()
    for order, (expected, variance) in enumerate([(0, 1), (1, 2), (0, 15), (3, 96)], start=1):
        assert abs(x.pow(order).mean() - expected) < 4 * (variance / DRAWS) ** 0.5


def test_the_distribution_is_a_normal_s(noise):
    assert stats.kstest(noise.flatten()[:DRAWS].numpy(), "norm").pvalue > 1e-3


def test_every_sample_alone_is_normal(noise):
    pvalues = [stats.kstest(row.numpy(), "norm").pvalue for row in noise]
    assert stats.kstest(pvalues, "uniform").pvalue > 1e-3


def test_tails_end_where_the_smallest_uniform_puts_them(noise):
    assert 4.3 < noise.abs().max() <= 5.68


def test_neighbouring_samples_are_uncorrelated(noise):
    assert_uncorrelated(noise[1:], noise[:-1])


def test_neighbouring_steps_are_uncorrelated(noise):
    assert_uncorrelated(noise[BATCH:], noise[:-BATCH])


@pytest.mark.parametrize("distance", [1, 2, 3, 4, 3 * 64])
def test_neighbouring_elements_pixels_and_rows_are_uncorrelated(noise, distance):
    assert_uncorrelated(noise[:, distance:], noise[:, :-distance])


@pytest.mark.parametrize("seed_and_stream", [(1, STREAM_EVAL), (2, STREAM_NOISE), (1 + 2**32, STREAM_NOISE)])
def test_other_streams_and_seeds_are_uncorrelated(noise, seed_and_stream):
    seed, stream = seed_and_stream
    assert_uncorrelated(noise, normal(seed, torch.arange(SAMPLES), PER_SAMPLE, stream))


def test_positions_2_32_apart_are_uncorrelated(noise):
    assert_uncorrelated(noise, normal(1, torch.arange(SAMPLES) + 2**32, PER_SAMPLE, STREAM_NOISE))
