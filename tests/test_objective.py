"""Algorithm 1: the loss is the papers' formula, and gradients go where they should and nowhere else."""

import pytest
import torch
from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.objective import DiffSiam, Diffusion
from diffsiam.schedule import Schedule
from diffsiam.simsiam import SimSiam
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet, UNetConfig
from kernels.noise_jump.ref import noise_for
from kernels.philox import STREAM_T, randint

TINY = UNetConfig(8, (1, 2), blocks=1, attention=(2,))
SEED, PX, DIM, ENDS = 11, 8, 12, [2, 5, 9, 12]
POSITIONS = torch.arange(100, 116)


class Encoder(nn.Module):
    """A linear f without batch statistics, which counts what it is asked to encode."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * PX * PX, DIM)
        self.batches: list[int] = []

    def forward(self, x):
        self.batches.append(len(x))
        return self.linear(x.flatten(1))


@pytest.fixture
def frozen(awaken) -> UNet:
    return awaken(UNet(TINY)).eval()


@pytest.fixture
def x_0() -> torch.Tensor:
    return torch.randint(0, 256, (len(POSITIONS), PX, PX, 3), dtype=torch.uint8)


@pytest.fixture
def views() -> tuple[torch.Tensor, torch.Tensor]:
    shape = (len(POSITIONS), PX, PX, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8), torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.fixture
def decoder(awaken) -> Decoder:
    return awaken(Decoder(TINY, DIM), seed=1)


def model(frozen, decoder, simsiam=None, **options) -> DiffSiam:
    rule = {key: options.pop(key) for key in ("choice", "mask", "detach", "jump") if key in options}
    return DiffSiam(Encoder(), decoder, simsiam, frozen, Schedule(), Subsets(ENDS, **rule), **options)


def unit_range(x: torch.Tensor) -> torch.Tensor:
    return x.permute(0, 3, 1, 2).float() / 127.5 - 1


def equation_3_11(
    ours: DiffSiam, frozen: UNet, x_0: torch.Tensor, draw, told: torch.Tensor
) -> dict[str, torch.Tensor]:
    """lambda_t |x_0 - (u_theta(x_level, t) + w_t g(x_level, z_bar_k, t))|^2 with t = ``told``, in float64."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    alpha_bar_from_minus_one = torch.cat((torch.ones(1, dtype=torch.float64), alpha_bar))
    a_level, a, before = (
        values[index][:, None, None, None]
        for values, index in ((alpha_bar, draw.level), (alpha_bar, told), (alpha_bar_from_minus_one, told))
    )
    clean = x_0.permute(0, 3, 1, 2).double() / 127.5 - 1
    x_level = a_level.sqrt() * clean + (1 - a_level).sqrt() * noise_for(SEED, POSITIONS, (3, PX, PX))
    z_bar = ours.encoder(clean.float()).clone()
    for row, k in enumerate(draw.k.tolist()):
        z_bar[row, ENDS[k - 1] :] = 0
    with torch.no_grad():
        eps_theta = frozen(x_level.float(), told).double()
        g = ours.decoder(frozen.encode(x_level.float(), told), z_bar).double()
    u = (x_level - (1 - a).sqrt() * eps_theta) / a.sqrt()
    weight = (a**1.1 * (1 - a) ** -0.1).flatten()
    error = (clean - (u + (1 - before) / before.sqrt() * g)).square().mean((1, 2, 3))
    error_frozen = (clean - u).square().mean((1, 2, 3))
    return {
        "loss": weight * error,
        "frozen": weight * error_frozen,
        "x_0_error": error,
        "x_0_error_frozen": error_frozen,
    }


class TestTheDiffusionLoss:
    @pytest.mark.parametrize(
        ("choice", "jump", "time_told"),
        [
            ("full", False, "t"),  # PDAE
            ("time_tied", False, "t"),  # DiTi
            ("random", True, "t"),  # the thesis to the letter
            ("random", True, "t_plus_k"),
            ("time_tied", True, "t"),
        ],
    )
    def test_it_is_the_papers_formula_in_x_0_space(self, frozen, decoder, x_0, choice, jump, time_told):
        ours = model(frozen, decoder, choice=choice, jump=jump, time_told=time_told)
        losses = ours(x_0, POSITIONS, SEED)
        draw = losses.draw
        told = draw.level if time_told == "t_plus_k" else draw.t
        assert torch.equal(draw.level, draw.t) is not jump
        for name, expected in equation_3_11(ours, frozen, x_0, draw, told).items():
            assert torch.allclose(getattr(losses.recon, name).double(), expected, rtol=2e-4), name
        assert torch.allclose(losses.total, losses.recon.loss.mean())

    def test_it_draws_what_the_subsets_draw(self, frozen, decoder, x_0):
        ours = model(frozen, decoder)
        for ours_drawn, drawn in zip(
            ours(x_0, POSITIONS, SEED).draw, ours.subsets.draw(SEED, POSITIONS), strict=True
        ):
            assert torch.equal(ours_drawn, drawn)

    def test_at_the_start_it_is_the_frozen_model_s_own(self, frozen, x_0):
        recon = model(frozen, Decoder(TINY, DIM))(x_0, POSITIONS, SEED).recon
        assert torch.equal(recon.loss, recon.frozen)
        assert torch.equal(recon.x_0_error, recon.x_0_error_frozen)

    def test_a_sample_costs_the_same_in_any_batch(self, frozen, decoder, x_0):
        ours = model(frozen, decoder)
        whole = ours(x_0, POSITIONS, SEED).recon.loss
        parts = [ours(x, p, SEED).recon.loss for x, p in zip(x_0.split(5), POSITIONS.split(5), strict=True)]
        assert torch.allclose(whole, torch.cat(parts), rtol=1e-5)

    def test_another_seed_is_another_loss(self, frozen, decoder, x_0):
        ours = model(frozen, decoder)
        assert not torch.allclose(
            ours(x_0, POSITIONS, 1).recon.loss, ours(x_0, POSITIONS, 2).recon.loss, rtol=1e-2
        )


class TestGradients:
    def test_the_frozen_model_gets_none_and_belongs_to_nothing(self, frozen, decoder, x_0):
        ours = model(frozen, decoder)
        ours(x_0, POSITIONS, SEED).total.backward()
        assert all(parameter.grad is None for parameter in frozen.parameters())
        assert all(parameter.grad.any() for parameter in ours.parameters())
        owned = {id(parameter) for parameter in ours.parameters()}
        assert not owned & {id(parameter) for parameter in frozen.parameters()}
        assert {key.split(".")[0] for key in ours.state_dict()} == {"encoder", "decoder"}

    @pytest.mark.parametrize(
        ("rule", "trained"),
        [
            ({"mask": "hierarchical"}, lambda k: set(range(1, k + 1))),
            ({"mask": "hierarchical", "detach": True}, lambda k: {k}),
            ({"mask": "sequential"}, lambda k: {k}),
            ({"choice": "full"}, lambda k: {1, 2, 3, 4}),
        ],
        ids=["hierarchical", "detach", "sequential", "full"],
    )
    def test_the_encoder_learns_through_the_subsets_in_training_alone(
        self, frozen, decoder, x_0, rule, trained
    ):
        ours = model(frozen, decoder, **rule)
        ks = ours.subsets.draw(SEED, POSITIONS).k.tolist()
        assert set(ks) == ({4} if "choice" in rule else {1, 2, 3, 4})
        for k in set(ks):
            row = [ks.index(k)]
            ours.zero_grad()
            ours(x_0[row], POSITIONS[row], SEED).total.backward()
            gradient = ours.encoder.linear.weight.grad
            assert {i for i in range(1, 5) if gradient[ours.subsets.dims(i)].any()} == trained(k)

    def test_only_the_loss_needs_gradients(self, frozen, decoder, x_0):
        losses = model(frozen, decoder)(x_0, POSITIONS, SEED)
        assert losses.recon.loss.requires_grad
        others = (losses.z, losses.recon.frozen, losses.recon.x_0_error, losses.recon.x_0_error_frozen)
        assert not any(value.requires_grad for value in others)


class TestTheSum:
    def test_it_weighs_both_losses(self, frozen, decoder, x_0, views):
        ours = model(frozen, decoder, SimSiam(DIM, "none", hidden=3), loss_weight=3.0, simsiam_weight=0.25)
        losses = ours(x_0, POSITIONS, SEED, *views)
        expected = 3 * losses.recon.loss.mean() + 0.25 * losses.simsiam.mean()
        assert torch.allclose(losses.total, expected)
        assert losses.simsiam.shape == (len(POSITIONS),)

    def test_its_simsiam_part_is_the_head_s_loss_of_both_views_features(self, frozen, decoder, x_0, views):
        head = SimSiam(DIM, "mlp2", 16, 4)
        ours = model(frozen, decoder, head)
        expected = head(*(ours.encoder(unit_range(view)) for view in views))
        assert torch.allclose(ours(x_0, POSITIONS, SEED, *views).simsiam, expected, atol=1e-6)

    def test_features_are_those_of_the_clean_images(self, frozen, decoder, x_0, views):
        ours = model(frozen, decoder, SimSiam(DIM, "none", hidden=3))
        losses = ours(x_0, POSITIONS, SEED, *views)
        assert torch.allclose(losses.z, ours.encoder(unit_range(x_0)), atol=1e-6)
        assert ours.encoder.batches[:2] == [16, 32]  # clean images by themselves, then both views at once

    def test_without_a_head_no_view_is_encoded(self, frozen, decoder, x_0, views):
        ours = model(frozen, decoder)
        losses = ours(x_0, POSITIONS, SEED, *views)
        assert ours.encoder.batches == [16]
        assert losses.simsiam is None

    def test_without_a_decoder_only_views_count(self, x_0, views):
        head = SimSiam(DIM, "none", hidden=3)
        ours = model(None, None, head, simsiam_weight=0.5)
        losses = ours(x_0, POSITIONS, SEED, *views)
        assert losses.draw is None
        assert losses.recon is None
        assert torch.allclose(losses.total, 0.5 * losses.simsiam.mean())
        assert ours.encoder.batches == [32]
        assert torch.allclose(losses.z, ours.encoder(unit_range(views[0])), atol=1e-6)
        losses.total.backward()
        assert ours.encoder.linear.weight.grad.any()

    @pytest.mark.parametrize("missing", [0, 1])
    def test_a_head_without_both_views_is_refused(self, frozen, decoder, x_0, views, missing):
        given = [None if place == missing else view for place, view in enumerate(views)]
        ours = model(frozen, decoder, SimSiam(DIM, "none", hidden=3))
        with pytest.raises(ValueError, match="give view_1 and view_2, or build without a head"):
            ours(x_0, POSITIONS, SEED, *given)

    def test_a_model_without_decoder_and_head_has_no_loss(self, x_0, views):
        with pytest.raises(ValueError, match="neither a decoder nor a SimSiam head"):
            model(None, None)(x_0, POSITIONS, SEED, *views)


class TestPretraining:
    def test_it_is_the_plain_noise_prediction_loss_per_sample(self, frozen, x_0):
        loss, t = Diffusion(frozen, Schedule())(x_0, POSITIONS, SEED)
        a = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[t][
            :, None, None, None
        ]
        eps = noise_for(SEED, POSITIONS, (3, PX, PX))
        x_t = a.sqrt() * unit_range(x_0) + (1 - a).sqrt() * eps
        expected = (eps - frozen(x_t.float(), t)).square().mean((1, 2, 3))
        assert torch.allclose(loss, expected, rtol=1e-4)

    def test_it_draws_every_time_of_the_schedule(self, frozen, x_0):
        _, t = Diffusion(frozen, Schedule())(x_0, POSITIONS, SEED)
        assert torch.equal(t, randint(SEED, POSITIONS, 1000, STREAM_T))

    def test_it_trains_the_whole_network(self, frozen, x_0):
        loss, _ = Diffusion(frozen, Schedule())(x_0, POSITIONS, SEED)
        loss.mean().backward()
        assert all(parameter.grad.any() for parameter in frozen.parameters())
