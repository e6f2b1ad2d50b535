"""SimSiam's loss: symmetric, in [-1, 1], and blind to how its targets came about."""

import pytest
import torch
from torch import nn

from diffsiam.simsiam import SimSiam, encode_views, negative_cosine


@pytest.fixture
def views():
    return torch.randn(8, 6, requires_grad=True), torch.randn(8, 6, requires_grad=True)


@pytest.fixture(params=["none", "mlp2", "mlp3"])
def head(request) -> SimSiam:
    return SimSiam(dim=6, projector=request.param, width=10, hidden=4)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def minus_cosine(p: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return -(p * target).sum(1) / (p.square().sum(1) * target.square().sum(1)).sqrt()


def test_the_published_head_has_its_published_size():
    head = SimSiam(dim=512, projector="mlp3", width=512, hidden=128)
    assert size(head.projector) == 791_040
    assert size(head.predictor) == 131_968


@pytest.mark.parametrize(("projector", "layers"), [("none", ""), ("mlp2", "LBR LB"), ("mlp3", "LBR LBR LB")])
def test_a_projector_is_linear_layers_with_batch_norm_and_relu_between_them(projector, layers):
    kinds = {nn.Linear: "L", nn.BatchNorm1d: "B", nn.ReLU: "R"}
    found = "".join(kinds[type(layer)] for layer in SimSiam(6, projector, 10, 4).projector.children())
    assert found == layers.replace(" ", "")


def test_without_a_projector_the_predictor_works_on_the_feature_itself():
    predictor = SimSiam(dim=6, projector="none", width=10, hidden=4).predictor
    assert (predictor[0].in_features, predictor[-1].out_features) == (6, 6)


def test_the_distance_is_minus_the_cosine_of_each_sample():
    p, target = torch.randn(2, 5, 7)
    assert negative_cosine(p, target).shape == (5,)
    assert torch.allclose(negative_cosine(p, target), minus_cosine(p, target), atol=1e-6)


def test_the_distance_is_computed_in_single_precision():
    p, target = torch.randn(2, 5, 7).bfloat16()
    assert torch.equal(negative_cosine(p, target), negative_cosine(p.float(), target.float()))


def test_agreement_costs_minus_one_opposition_one_and_length_nothing():
    p = torch.randn(5, 7)
    assert torch.allclose(negative_cosine(p, 3 * p), torch.full((5,), -1.0))
    assert torch.allclose(negative_cosine(p, -p / 2), torch.full((5,), 1.0))


def test_the_gradient_stops_at_the_target():
    p, target = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    negative_cosine(p, target).sum().backward()
    assert p.grad.any()
    assert target.grad is None


def test_the_loss_is_half_of_both_predictions_of_the_other_view(head, views):
    z_1, z_2 = views
    target_1, target_2 = head.projector(z_1), head.projector(z_2)
    p_1, p_2 = head.predictor(target_1), head.predictor(target_2)
    expected = minus_cosine(p_1, target_2) / 2 + minus_cosine(p_2, target_1) / 2
    loss = head(z_1, z_2)
    assert loss.shape == (8,)
    assert torch.allclose(loss, expected, atol=1e-6)
    assert (loss.abs() <= 1).all()


def test_the_loss_is_symmetric_in_the_views(head, views):
    assert torch.allclose(head(*views), head(*reversed(views)), atol=1e-6)


def test_the_gradient_is_that_of_predictions_against_fixed_targets(head, views):
    fixed_1, fixed_2 = (head.projector(z).detach() for z in views)
    p_1, p_2 = (head.predictor(head.projector(z)) for z in views)
    upstream = torch.randn(8)
    inputs = [*views, *head.parameters()]
    expected = torch.autograd.grad(
        (minus_cosine(p_1, fixed_2) + minus_cosine(p_2, fixed_1)) / 2, inputs, upstream
    )
    found = torch.autograd.grad(head(*views), inputs, upstream)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


def test_views_are_encoded_in_one_batch_and_given_back_in_order():
    batches = []

    def encoder(images):
        batches.append(len(images))
        return images.flatten(1) - images.mean()

    view_1, view_2 = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2) + 5
    z_1, z_2 = encode_views(encoder, view_1, view_2)
    mean = torch.cat((view_1, view_2)).mean()
    assert batches == [8]
    assert torch.equal(z_1, view_1.flatten(1) - mean)
    assert torch.equal(z_2, view_2.flatten(1) - mean)
