"""Rooms: the same bytes for the same index, one factor one change, and granularity from fine to global."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from engine.data.rooms import FACTORS, LEVELS, Rooms, granularity, render
from engine.errors import UsageError

GOLDEN = {
    (16, False): "44fac42cc3670fe47a96c19090de2d6a7510cca0b1d17d3e58ee3dc96dd54223",
    (32, False): "c5f7e27c2eafa44df66763a1aab17848c2ec3355de9a72695616828b523d9d0d",
    (49, True): "f4288325b7d5feaf957cac1e65e86bbc21f0bf90230409efc127385f8d154306",
}
FIRST = np.arange(64)


def some_levels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, LEVELS, (count, len(FACTORS)))


@pytest.mark.parametrize(("px", "continuous"), GOLDEN)
def test_the_first_64_rooms_are_these_bytes(px, continuous):
    images = Rooms(px, continuous=continuous).images(FIRST)
    assert hashlib.sha256(images.tobytes()).hexdigest() == GOLDEN[px, continuous]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("split", [1, 7, 100])
def test_a_room_does_not_depend_on_the_batch_it_is_drawn_in(split, continuous):
    rooms = Rooms(24, seed=3, continuous=continuous)
    indices = np.arange(700)  # more than one chunk
    whole = rooms.images(indices)
    parts = [rooms.images(indices[start : start + split]) for start in range(0, 100, split)]
    np.testing.assert_array_equal(np.concatenate(parts), whole[: sum(map(len, parts))])
    np.testing.assert_array_equal(rooms.images(indices[::-1]), whole[::-1])


def test_seeds_and_held_out_rooms_are_other_rooms():
    rooms = Rooms(16, seed=1, count=1_000)
    held_out = rooms.held_out(500)
    longer = Rooms(16, seed=1, count=1_500)
    np.testing.assert_array_equal(held_out.factors(np.arange(500)), longer.factors(np.arange(1_000, 1_500)))
    assert len(held_out) == 500
    assert (Rooms(16, seed=2).factors(FIRST) != rooms.factors(FIRST)).any()


def test_there_are_about_ten_factors_of_4_to_8_values_in_four_orders():
    assert len(FACTORS) == 12
    assert all(4 <= len(factor.values) == len(set(factor.values)) <= 8 for factor in FACTORS)
    order = ["fine", "medium", "coarse", "global"]
    assert [factor.granularity for factor in FACTORS] == sorted(
        (factor.granularity for factor in FACTORS), key=order.index
    )
    assert {factor.granularity for factor in FACTORS} == set(order)


def test_every_value_of_a_factor_is_equally_likely():
    levels = Rooms(16, seed=5).factors(np.arange(20_000))
    for column, count in zip(levels.T, LEVELS, strict=True):
        seen = np.bincount(column, minlength=count)
        chi_square = ((seen - 20_000 / count) ** 2 / (20_000 / count)).sum()
        assert chi_square < 25  # 1 in 7,000 at 5 degrees of freedom


def test_factors_are_pairwise_independent():
    levels = Rooms(16, seed=6).factors(np.arange(20_000))
    for i in range(len(FACTORS)):
        for j in range(i):
            seen = np.bincount(levels[:, i] * LEVELS[j] + levels[:, j], minlength=LEVELS[i] * LEVELS[j])
            expected = 20_000 / (LEVELS[i] * LEVELS[j])
            freedom = LEVELS[i] * LEVELS[j] - 1
            assert ((seen - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("px", [16, 32])
@pytest.mark.parametrize("factor", range(len(FACTORS)), ids=[factor.name for factor in FACTORS])
def test_every_two_values_of_a_factor_give_different_rooms(factor, px):
    levels = some_levels(40).repeat(LEVELS[factor], axis=0)
    levels[:, factor] = np.tile(np.arange(LEVELS[factor]), 40)
    images = render(levels, px).reshape(40, LEVELS[factor], -1)
    for a in range(LEVELS[factor]):
        for b in range(a):
            assert (images[:, a] != images[:, b]).any(axis=1).all()


@pytest.mark.parametrize("factor", [0, 1, 2, 3, 5], ids=lambda index: FACTORS[index].name)
def test_a_local_factor_changes_its_own_place_only(factor):
    places = {  # rows and columns, relative, that hold the factor at any pan
        "quilt": (0.60, 0.94, 0.2, 1.0),
        "lamp": (0.33, 0.67, 0.0, 0.46),
        "picture": (0.16, 0.35, 0.4, 0.8),
        "clutter": (0.71, 0.95, 0.0, 0.36),
        "window": (0.09, 0.46, 0.0, 0.6),
    }
    top, bottom, left, right = (round(64 * edge) for edge in places[FACTORS[factor].name])
    before = some_levels(64)
    after = before.copy()
    after[:, factor] = (before[:, factor] + 1) % LEVELS[factor]
    changed = (render(before, 64) != render(after, 64)).any(axis=(0, 3))
    changed[top:bottom, left:right] = False
    assert not changed.any()


@pytest.mark.parametrize("px", [16, 24, 32, 64])
def test_each_order_of_granularity_changes_more_than_the_finer_one(px):
    change = granularity(px, samples=128)
    groups = {}
    for factor in FACTORS:
        groups.setdefault(factor.granularity, []).append(change[factor.name])
    for finer, coarser in (("fine", "medium"), ("medium", "coarse"), ("coarse", "global")):
        assert max(groups[finer]) < min(groups[coarser])
    assert max(groups["global"]) > 100 * min(groups["fine"])


def test_granularity_is_repeatable_and_names_every_factor():
    change = granularity(16, samples=8, seed=1)
    assert list(change) == [factor.name for factor in FACTORS]
    assert change == granularity(16, samples=8, seed=1)


def test_whole_levels_are_the_same_in_continuous_mode():
    levels = some_levels(32)
    np.testing.assert_array_equal(render(levels, 24), render(levels.astype(np.float64), 24))


def test_continuous_factors_fill_their_range():
    levels = Rooms(16, continuous=True).factors(np.arange(5_000))
    assert levels.dtype == np.float64
    assert (levels >= 0).all()
    assert (levels <= LEVELS - 1).all()
    np.testing.assert_allclose(levels.mean(axis=0), (LEVELS - 1) / 2, atol=0.1)


@pytest.mark.parametrize("factor", range(len(FACTORS)), ids=[factor.name for factor in FACTORS])
def test_a_level_in_between_is_nearer_to_both_neighbours_than_they_are_to_each_other(factor):
    low = some_levels(32, seed=2).astype(np.float64)
    low[:, factor] = np.minimum(low[:, factor], LEVELS[factor] - 2)
    middle, high = low.copy(), low.copy()
    middle[:, factor] += 0.5
    high[:, factor] += 1

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.square(render(a, 32).astype(float) - render(b, 32)).mean())

    assert 0 < distance(low, middle) < distance(low, high)
    assert 0 < distance(middle, high) < distance(low, high)


@pytest.mark.parametrize("px", [16, 17, 49, 128])
def test_rooms_of_any_size_between_16_and_128_fill_their_pixels(px):
    images = Rooms(px).images(np.arange(3))
    assert images.shape == (3, px, px, 3)
    assert images.dtype == np.uint8
    assert images.std(axis=(1, 2)).min() > 5


def test_a_small_room_is_a_large_one_seen_from_afar():
    levels = some_levels(32)
    large = render(levels, 64).reshape(32, 16, 4, 16, 4, 3).mean(axis=(2, 4))
    assert (
        np.abs(large - render(levels, 16)).mean() < 2
    )  # of 255: edges are antialiased by area at every size


@pytest.mark.parametrize("px", [0, 15, 129])
def test_a_size_that_cannot_be_drawn_is_a_usage_error(px):
    with pytest.raises(UsageError, match="16 to 128"):
        Rooms(px)
    with pytest.raises(UsageError, match="16 to 128"):
        render(some_levels(1), px)


@pytest.mark.parametrize("count", [0, -1])
def test_an_empty_set_is_a_usage_error(count):
    with pytest.raises(UsageError, match="empty"):
        Rooms(16, count=count)
    with pytest.raises(UsageError, match="empty"):
        Rooms(16).held_out(count)


@pytest.mark.parametrize("index", [-1, 100])
def test_an_index_outside_the_set_is_refused(index):
    with pytest.raises(IndexError):
        Rooms(16, count=100).images(np.array([index]))


@pytest.mark.parametrize("levels", [np.zeros((2, 3)), np.full((1, 12), -1), np.full((1, 12), 7)])
def test_levels_that_name_no_room_are_a_usage_error(levels):
    with pytest.raises(UsageError, match="levels"):
        render(levels, 16)


def test_no_rooms_are_no_images():
    assert render(some_levels(0), 16).shape == (0, 16, 16, 3)
