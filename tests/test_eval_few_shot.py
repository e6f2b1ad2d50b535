"""Few-shot heads: the batched solver is the plain loop, and episodes are fair."""

import numpy as np
import pytest
import torch

from bench.few_shot import loop
from diffsiam.evaluation.episodes import draw_episodes, draw_heads, draw_orders
from diffsiam.evaluation.few_shot import Recipe, nearest_mean_logits, train_heads
from diffsiam.evaluation.few_shot_run import few_shot

LABELS = np.repeat(np.arange(7), 40)


def features(apart: float = 0.3, dim: int = 24) -> torch.Tensor:
    rng = np.random.default_rng(0)
    centres = apart * rng.normal(size=(7, dim))
    return torch.from_numpy(centres[LABELS] + rng.normal(size=(len(LABELS), dim)))


@pytest.mark.parametrize("shots", [1, 5])
def test_batched_heads_are_those_of_the_plain_loop(shots):
    recipe, x = Recipe(epochs=30), features()
    episodes = draw_episodes(LABELS, shots, 3)
    orders, (weight, bias) = draw_orders(episodes, recipe), draw_heads(3, 5, 24)
    start = (weight.double(), bias.double())
    support = x[episodes.support]
    head = train_heads(support, episodes.support_y, orders, start, recipe)
    weights, logits = head.weight(support, start[0]), head.logits(x[episodes.query], support, start[0])
    for e in range(3):
        plain = loop(support[e], episodes.support_y, orders[e], (start[0][e], start[1][e]), recipe)
        torch.testing.assert_close(weights[e], plain.weight, atol=1e-12, rtol=0)
        torch.testing.assert_close(head.bias[e], plain.bias, atol=1e-12, rtol=0)
        torch.testing.assert_close(logits[e], plain(x[episodes.query[e]]), atol=1e-11, rtol=0)


def test_the_chunks_change_nothing(monkeypatch):
    whole = few_shot(features(), LABELS_T, 5, episodes=12)
    monkeypatch.setattr("diffsiam.evaluation.few_shot_run.CHUNK", 5)
    parts = few_shot(features(), LABELS_T, 5, episodes=12)
    np.testing.assert_array_equal(whole.linear, parts.linear)
    np.testing.assert_array_equal(whole.nearest_mean, parts.nearest_mean)


LABELS_T = torch.from_numpy(LABELS)


def test_support_and_query_are_disjoint_and_of_the_right_classes():
    episodes = draw_episodes(LABELS, 10, 50)
    for support, query in zip(episodes.support, episodes.query, strict=True):
        assert not set(support.tolist()) & set(query.tolist())
        classes = LABELS[support].reshape(5, 10)
        assert (classes == classes[:, :1]).all()
        assert len(set(classes[:, 0])) == 5
        assert (LABELS[query].reshape(5, 15) == classes[:, :1]).all()


def test_episodes_depend_on_labels_and_seed_alone():
    a, b, other = (
        few_shot(x, LABELS_T, 1, 30, seed) for x, seed in ((features(), 0), (features(), 0), (features(), 1))
    )
    np.testing.assert_array_equal(a.linear, b.linear)
    assert (a.linear != other.linear).any()
    one, same = draw_episodes(LABELS, 1, 9), draw_episodes(LABELS.copy(), 1, 9)
    assert one.support.equal(same.support)


def test_every_epoch_is_a_fresh_order_of_all_supports():
    orders = draw_orders(draw_episodes(LABELS, 5, 4), Recipe(epochs=6))
    assert orders.sort(dim=2).values.equal(torch.arange(25).expand(4, 6, 25))
    assert len({tuple(order.tolist()) for order in orders.flatten(0, 1)}) == 24


def test_separable_classes_are_all_right_and_noise_is_chance():
    easy, noise = few_shot(features(5.0), LABELS_T, 5, 40), few_shot(features(0.0), LABELS_T, 5, 100)
    assert easy.linear.min() == 1
    assert easy.nearest_mean.min() == 1
    assert abs(noise.linear.mean() - 0.2) < 0.03
    assert abs(noise.nearest_mean.mean() - 0.2) < 0.03


def test_the_nearest_mean_is_that_of_the_supports():
    x, y = torch.tensor([[[0.0], [2.0], [10.0], [12.0]]]), torch.tensor([0, 0, 1, 1])
    logits = nearest_mean_logits(x, y, torch.tensor([[[1.0], [5.0], [7.0]]]), 2)
    torch.testing.assert_close(logits, torch.tensor([[[0.0, -100], [-16, -36], [-36, -16]]]))


def test_small_classes_are_left_out_and_counted():
    labels = np.concatenate([LABELS, np.full(16, 7)])
    assert draw_episodes(labels, 1, 3).dropped == 0
    episodes = draw_episodes(labels, 5, 3)
    assert episodes.dropped == 1
    assert (labels[episodes.support] != 7).all()
    with pytest.raises(ValueError, match="4 of 4 classes|of 4 classes"):
        draw_episodes(np.repeat(np.arange(4), 40), 1, 3)


def test_the_interval_is_that_of_a_mean():
    scores = few_shot(features(), LABELS_T, 1, 64)
    summary = scores.summary()["linear"]
    assert summary["mean"] == pytest.approx(scores.linear.mean())
    assert summary["ci95"] == pytest.approx(1.96 * scores.linear.std() / 8)
