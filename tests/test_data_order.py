"""The order of the data is a pure function of (seed, epoch, place)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.order import locate, order

SEEDS = st.integers(0, 2**64 - 1)


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    return order(seed, epoch, np.arange(count), count)


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 2**40), count=st.integers(1, 3000))
def test_every_epoch_visits_every_item_once(seed, epoch, count):
    assert np.array_equal(np.sort(epoch_order(seed, epoch, count)), np.arange(count))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, epoch=st.integers(0, 2**40), count=st.integers(50, 2000))
def test_epochs_and_seeds_have_orders_of_their_own(seed, epoch, count):
    first = epoch_order(seed, epoch, count)
    assert (first != epoch_order(seed, epoch + 1, count)).mean() > 0.8
    assert (first != epoch_order(seed ^ 1, epoch, count)).mean() > 0.8


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, count=st.integers(2, 500), data=st.data())
def test_an_element_does_not_depend_on_what_else_is_asked_for(seed, count, data):
    positions = np.array(data.draw(st.lists(st.integers(0, 10 * count), min_size=1, max_size=20)))
    together = order(seed, *locate(positions, count), count)
    alone = [order(seed, *locate(positions[i : i + 1], count), count)[0] for i in range(len(positions))]
    assert together.tolist() == alone


def test_a_batch_that_straddles_two_epochs_uses_both_orders():
    positions = np.arange(95, 105)
    expected = np.concatenate([epoch_order(3, 0, 100)[95:], epoch_order(3, 1, 100)[:5]])
    assert np.array_equal(order(3, *locate(positions, 100), 100), expected)


def test_every_item_is_equally_likely_at_every_place():
    count, epochs = 10, 5000
    seen = np.zeros((count, count))
    for place in range(count):
        at = order(1, np.arange(epochs), np.full(epochs, place), count)
        seen[place] = np.bincount(at, minlength=count)
    expected = epochs / count
    chi_square = ((seen - expected) ** 2 / expected).sum(axis=1)
    assert chi_square.max() < 33.7  # 9 degrees of freedom: exceeded once in 10,000


def test_neighbours_are_not_kept_together():
    steps = np.diff(epoch_order(0, 0, 1000))
    assert (np.abs(steps) == 1).mean() < 0.01


def test_millions_of_items_take_a_moment_and_no_memory():
    places = np.array([0, 1, 3_033_041])
    indices = order(0, 10**9, places, 3_033_042)
    assert len(set(indices.tolist())) == 3
    assert indices.min() >= 0
    assert indices.max() < 3_033_042


@pytest.mark.parametrize(("places", "count"), [([0], 0), ([5], 5), ([-1], 5)])
def test_places_outside_the_set_are_refused(places, count):
    with pytest.raises(ValueError, match=r"places must lie in|at least one item"):
        order(0, 0, np.array(places), count)
