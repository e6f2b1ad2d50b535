"""ProbMask: its schedule, its masks, its projection, and that it finds the dimensions that matter."""

from dataclasses import replace

import pytest
import torch

from diffsiam.probmask import (
    EXACT,
    PUBLISHED,
    Scores,
    kept_share,
    project,
    relaxed_mask,
    temperature,
    train_scores,
)


def test_the_temperature_falls_from_1_to_3_hundredths():
    assert temperature(0, 100) == 1.0
    assert temperature(50, 100) == pytest.approx(0.97 * 0.5 + 0.03)
    assert temperature(100, 100) == pytest.approx(0.03)


def test_the_budget_is_everything_then_falls_as_a_cube_then_stays():
    shares = [kept_share(i, 100, 0.25, begin=0.1, end=0.4) for i in (0, 10, 25, 40, 99)]
    assert shares == pytest.approx([1, 1, 0.25 + 0.75 * 0.5**3, 0.25, 0.25])


def test_a_relaxed_mask_is_a_bernoulli_draw_when_it_is_cold():
    scores = torch.full((20_000,), 0.3)
    mask = relaxed_mask(scores, 0.03, torch.Generator().manual_seed(0))
    assert ((mask < 0.05) | (mask > 0.95)).float().mean() > 0.9
    assert (mask > 0.5).float().mean() == pytest.approx(0.3, abs=0.015)


def test_a_relaxed_mask_follows_its_formula_and_reaches_the_scores_with_a_gradient():
    scores = torch.tensor([0.2, 0.9], requires_grad=True)
    mask = relaxed_mask(scores, 0.5, torch.Generator().manual_seed(1))
    u_0, u_1 = torch.rand(2, 2, generator=torch.Generator().manual_seed(1))
    noise = -torch.log(torch.log(u_0) / torch.log(u_1))
    expected = torch.sigmoid((torch.log(scores) - torch.log(1 - scores) + noise) / 0.5)
    torch.testing.assert_close(mask, expected)
    mask.sum().backward()
    assert (scores.grad > 0).all()


def test_scores_of_0_and_1_are_certain():
    mask = relaxed_mask(torch.tensor([0.0, 1.0]).expand(500, 2), 0.5, torch.Generator().manual_seed(0))
    assert mask[:, 0].max() < 1e-6
    assert mask[:, 1].min() > 1 - 1e-6


class TestProjection:
    def test_it_is_the_nearest_point_that_holds_the_budget(self):
        scores = torch.tensor([1.3, 0.9, 0.5, 0.2, -0.4])
        found = project(scores, 1.5)
        assert found.sum() == pytest.approx(1.5, abs=1e-4)
        assert (found >= 0).all()
        assert (found <= 1).all()
        candidates = torch.rand(20_000, 5, generator=torch.Generator().manual_seed(0))
        candidates *= (1.5 / candidates.sum(1, keepdim=True)).clamp(max=1)
        distance = (candidates - scores).norm(dim=1).min()
        assert (found - scores).norm() <= distance + 1e-4

    def test_what_holds_the_budget_is_only_clipped(self):
        assert project(torch.tensor([1.5, 0.2, -0.3]), 2.0).tolist() == pytest.approx([1.0, 0.2, 0.0])

    def test_it_changes_nothing_twice(self):
        once = project(torch.tensor([0.9, 0.8, 0.7]), 1.0)
        torch.testing.assert_close(project(once, 1.0), once, atol=1e-5, rtol=0)


def informative(dim=40, of=4, count=3000):
    """Features of which the first ``of`` decide the label."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, dim, generator=generator)
    noise = 0.5 * torch.randn(count, generator=generator)
    return x, x[:, :of].sum(dim=1) + noise > 0


def test_the_default_finds_exactly_the_dimensions_that_matter():
    x, y = informative()
    found = train_scores(x, y, 4, replace(EXACT, iterations=600))
    assert found.largest(4).nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert found.scores.sum() <= 4 + 1e-3


def test_the_published_recipe_ends_with_a_drawn_mask_that_has_about_as_many():
    x, y = informative()
    found = train_scores(x, y, 4, replace(PUBLISHED, iterations=1500, weight_rate=6e-3, score_rate=6e-3))
    mask = found.drawn(x, y)
    assert mask.dtype == torch.bool
    assert 1 <= mask.sum() <= 8
    assert mask[:4].sum() >= 3


def test_of_drawn_masks_the_best_on_the_training_data_is_kept():
    x, y = informative(dim=2, of=1)
    scores = Scores(torch.tensor([0.5, 0.5]), torch.tensor([3.0, 3.0]), torch.zeros(1), torch.Generator())
    assert scores.drawn(x, y).tolist() == [True, False]


def test_the_published_numbers_are_the_sibling_s():
    assert (PUBLISHED.batch, PUBLISHED.begin, PUBLISHED.end, PUBLISHED.clip) == (128, 0.1, 0.4, 3.0)
    assert PUBLISHED.weight_rate == PUBLISHED.score_rate == 1e-4


def test_ten_epochs_are_what_no_number_of_iterations_means(monkeypatch):
    x, y = informative(dim=4, of=1, count=300)
    asked = []
    monkeypatch.setattr("diffsiam.probmask.temperature", lambda i, iterations: asked.append(iterations) or 1)
    train_scores(x, y, 2, replace(PUBLISHED, batch=100))
    assert asked == [31] * 31


def test_the_largest_are_as_many_as_asked_even_where_all_are_equal():
    scores = Scores(
        torch.ones(5), torch.tensor([0.1, -3.0, 0.2, 2.0, 0.0]), torch.zeros(1), torch.Generator()
    )
    assert scores.largest(2).nonzero()[:, 0].tolist() == [1, 3]


@pytest.mark.parametrize("kept", [0, 41])
def test_a_number_of_dimensions_that_there_are_not_is_refused(kept):
    x, y = informative()
    with pytest.raises(ValueError, match="choose 1 to 40"):
        train_scores(x, y, kept)


def test_the_same_seed_gives_the_same_scores():
    x, y = informative(dim=6, of=2, count=200)
    short = replace(EXACT, iterations=30)
    first, again, other = (train_scores(x, y, 2, short, seed) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)
