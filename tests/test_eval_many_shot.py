"""Logistic regression for many penalties, and the many-shot protocol around it."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from diffsiam.evaluation.logistic import _Search, fit_logistic
from diffsiam.evaluation.many_shot import many_shot, mean_per_class, split_off_validation, top_1


def data(
    samples: int = 300, dim: int = 10, classes: int = 4, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9)).double()
    y = torch.randint(0, classes, (samples,), generator=generator)
    x = centres[y] + torch.randn(samples, dim, generator=generator).double()
    return x * torch.logspace(0, -2, dim) + 3, y


def test_every_penalty_has_the_solution_of_scikit_learn():
    x, y = data()
    c = [100.0, 1.0, 0.01, 1e-4]
    ours = fit_logistic(x, y, 4, c, tolerance=1e-8)
    for i, value in enumerate(c):
        theirs = LogisticRegression(C=value, tol=1e-10, max_iter=10_000).fit(x.numpy(), y.numpy())
        np.testing.assert_allclose(ours.weight[i], theirs.coef_, atol=1e-3)
        probability = ours.logits(x)[i].softmax(dim=1)
        np.testing.assert_allclose(probability, theirs.predict_proba(x.numpy()), atol=1e-4)


def test_it_reaches_a_stationary_point_of_its_objective():
    x, y = data()
    c = [1e4, 1.0, 1e-3]
    fit = fit_logistic(x, y, 4, c, tolerance=1e-7)
    for weight, bias, value in zip(fit.weight, fit.bias, c, strict=True):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = torch.nn.functional.cross_entropy(x @ w.T + b, y) + w.square().sum() / (2 * value * len(x))
        loss.backward()
        assert max(w.grad.abs().max(), b.grad.abs().max()) < 1e-6


def test_one_penalty_alone_and_in_company_is_the_same():
    x, y = data()
    together, alone = fit_logistic(x, y, 4, [10.0, 0.1]), fit_logistic(x, y, 4, [0.1])
    torch.testing.assert_close(together.weight[1], alone.weight[0], atol=1e-6, rtol=0)


def test_penalties_that_do_not_fit_into_memory_at_once_are_solved_in_parts(monkeypatch):
    x, y = data()
    whole = fit_logistic(x, y, 4, [10.0, 1.0, 0.1])
    monkeypatch.setattr("diffsiam.evaluation.logistic.LARGEST_LOGITS", 2 * 300 * 4)
    parts = fit_logistic(x, y, 4, [10.0, 1.0, 0.1])
    torch.testing.assert_close(parts.weight, whole.weight, atol=1e-6, rtol=0)


def test_constant_and_useless_features_break_nothing():
    x, y = data()
    x[:, 3] = 5.0
    assert fit_logistic(x, y, 4, [1e6, 1.0]).objective.isfinite().all()
    flat = fit_logistic(torch.ones(20, 3), torch.arange(20) % 2, 2, [1.0])
    assert flat.objective.item() == pytest.approx(np.log(2))


def test_a_step_that_is_too_long_or_leaves_the_numbers_is_halved_until_the_objective_falls():
    x, y = data()
    search = _Search(x, y, 4, torch.ones(x.shape[1] - 1), torch.full((3,), 1e-3, dtype=torch.float64))
    v, live = x.new_zeros(3, 4, x.shape[1]), torch.arange(3)
    logits = x.new_zeros(3, 4, len(x))
    value, chances = search._value(logits, v, live)
    gradient = search._gradient(chances, v, live)
    far = -gradient * torch.tensor([0.01, 100.0, torch.finfo(x.dtype).max])[:, None, None]
    step, there, chances, found = search._line_search(v, far, logits, value, gradient, live)
    share = (step / far)[:, 0, 0]
    assert share[0] == 1
    assert 2.0**-14 <= share[1] < 1
    assert share[2] == 0
    assert (found < value)[:2].all()
    assert found[2] == value[2]
    torch.testing.assert_close(there[1], step[1] @ x.T)
    again, expected = search._value(there, v + step, live)
    torch.testing.assert_close(found, again)
    torch.testing.assert_close(chances[:2], expected[:2])


def test_labels_out_of_range_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="there are 3 classes"):
        fit_logistic(x, y, 3, [1.0])


def test_names_of_classes_and_order_of_samples_change_no_score():
    (x, y), (test, test_y) = data(), data(seed=1)
    names, order = torch.tensor([2, 0, 3, 1]), torch.randperm(300)
    parts = split_off_validation(300)
    place = order.argsort()
    shuffled = tuple(place[part] for part in parts)
    plain = many_shot(x, y, test, test_y, 4)
    other = many_shot(x[order], names[y[order]], test, names[test_y], 4, parts=shuffled)
    assert other.test == pytest.approx(plain.test, abs=0.01)
    assert other.validation == pytest.approx(plain.validation, abs=0.03)


def test_test_is_never_touched_in_the_choice():
    (x, y), (test, test_y) = data(), data(seed=1)
    spoilt = many_shot(x, y, test, (test_y + 1) % 4, 4)
    plain = many_shot(x, y, test, test_y, 4)
    assert spoilt.penalty == plain.penalty
    assert spoilt.validation == plain.validation
    assert spoilt.test < 0.5 < plain.test


def test_validation_is_a_fifth_and_not_in_train():
    train, validation = split_off_validation(101)
    assert len(validation) == 20
    assert sorted(torch.cat((train, validation)).tolist()) == list(range(101))


def test_the_mean_over_classes_weighs_a_rare_class_as_much_as_a_common_one():
    labels, found = torch.tensor([0] * 9 + [2]), torch.zeros(10, dtype=torch.int64)
    assert top_1(found, labels) == pytest.approx(0.9)
    assert mean_per_class(found, labels) == pytest.approx(0.5)
