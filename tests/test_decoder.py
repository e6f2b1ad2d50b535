"""The trainable decoder is PDAE's gradient estimator: its tensors, its function, its start."""

from functools import cache

import plain_unet
import pytest
import torch

from diffsiam.decoder import Decoder
from diffsiam.unet import UNet, UNetConfig

DIFFAE_128 = UNetConfig(128, (1, 1, 2, 3, 4), blocks=2, attention=(8,))
CANDIDATE_64 = UNetConfig(64, (1, 2, 4, 8), blocks=2, attention=(4,))
SHIFTDDPM_CIFAR = UNetConfig(128, (1, 2, 2, 2), blocks=2, attention=(2,))
PARTS = ("label_emb", "shift_middle_block", "shift_output_blocks", "shift_out")
TINY = UNetConfig(8, (1, 2, 3), blocks=1, attention=(2,), heads=2)
DIM = 10


@cache
def on_meta(config: UNetConfig) -> tuple[UNet, Decoder]:
    with torch.device("meta"):
        return UNet(config), Decoder(config, 512)


@pytest.fixture
def frozen(awaken) -> UNet:
    return awaken(UNet(TINY)).eval()


@pytest.fixture
def features(frozen):
    with torch.no_grad():
        return frozen.encode(torch.randn(2, 3, 8, 8), torch.tensor([5, 70]))


@pytest.fixture
def z_bar() -> torch.Tensor:
    return torch.randn(2, DIM)


@pytest.mark.parametrize(
    ("config", "sizes", "total", "tensors"),
    [
        (DIFFAE_128, (262_656, 12_596_224, 65_659_776, 3_715), 177_140_870, 744),
        (CANDIDATE_64, (131_328, 11_547_648, 40_326_976, 1_859), 115_965_830, 614),
        (SHIFTDDPM_CIFAR, (262_656, 3_676_672, 29_816_960, 3_715), 76_615_430, 610),
    ],
    ids=["128", "64", "cifar"],
)
def test_the_published_sizes_hold_part_by_part_and_together_with_the_frozen_half(
    config, sizes, total, tensors
):
    frozen, decoder = on_meta(config)
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in decoder.named_children()}
    assert found == dict(zip(PARTS, sizes, strict=True))
    assert sum(sizes) + sum(p.numel() for p in frozen.parameters()) == total
    assert len(decoder.state_dict()) + len(frozen.state_dict()) == tensors


def test_its_keys_add_to_the_frozen_ones_the_four_published_prefixes():
    frozen, decoder = (module.state_dict() for module in on_meta(DIFFAE_128))
    assert len(decoder) == 312
    assert not frozen.keys() & decoder.keys()
    assert {key.split(".")[0] for key in decoder} == set(PARTS)


def test_its_blocks_mirror_the_frozen_ones_and_add_the_z_layers():
    frozen, decoder = (module.state_dict() for module in on_meta(DIFFAE_128))
    shapes = {
        key.removeprefix("shift_"): value.shape for key, value in decoder.items() if key.startswith("shift_")
    }
    mirrored = {
        key: value.shape
        for key, value in frozen.items()
        if key.startswith(("middle_block.", "output_blocks.", "out."))
    }
    added = {key: shape for key, shape in shapes.items() if key not in mirrored}
    assert {key: shapes[key] for key in mirrored} == mirrored
    assert added == {
        key.replace("emb_layers", "emb_z_layers"): mirrored[key] for key in mirrored if "emb_layers" in key
    }


def test_it_is_its_formula(awaken, frozen, features, z_bar):
    decoder = awaken(Decoder(TINY, DIM), seed=1).eval()
    state = decoder.state_dict()
    z = plain_unet.linear(state, "label_emb", z_bar.double())
    skips, time = [skip.double() for skip in features.skips], features.time.double()
    expected = plain_unet.decode(state, 3, 1, 2, skips, time, z)
    found = decoder(features, z_bar)
    assert found.shape == (2, 3, 8, 8)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_it_has_no_say_at_the_start(features, z_bar):
    assert (Decoder(TINY, DIM)(features, z_bar) == 0).all()


def test_at_the_start_only_the_output_convolution_learns(features, z_bar):
    decoder = Decoder(TINY, DIM)
    z_bar.requires_grad_()
    g = decoder(features, z_bar)
    g.backward(torch.randn_like(g))
    moved = {name for name, parameter in decoder.named_parameters() if parameter.grad.any()}
    assert moved == {"shift_out.2.weight", "shift_out.2.bias"}
    assert not z_bar.grad.any()


def test_once_it_has_learnt_gradients_reach_z_and_every_parameter(awaken, features, z_bar):
    decoder = awaken(Decoder(TINY, DIM))
    z_bar.requires_grad_()
    g = decoder(features, z_bar)
    g.backward(torch.randn_like(g))
    assert all(parameter.grad.any() for parameter in decoder.parameters())
    assert z_bar.grad.any()


class TestStartFromTheFrozenDecoder:
    Z_LAYERS = "emb_z_layers"

    def test_it_copies_every_tensor_the_frozen_decoder_has_and_leaves_the_rest(self, awaken, frozen):
        decoder = awaken(Decoder(TINY, DIM), seed=1)
        before = {key: value.clone() for key, value in decoder.state_dict().items()}
        decoder.start_from(frozen)
        source = frozen.state_dict()
        for key, value in decoder.state_dict().items():
            own = key.startswith(("label_emb", "shift_out.2")) or self.Z_LAYERS in key
            assert torch.equal(value, before[key] if own else source[key.removeprefix("shift_")]), key

    def test_it_still_has_no_say_at_the_start(self, frozen, features, z_bar):
        decoder = Decoder(TINY, DIM)
        decoder.start_from(frozen)
        assert (decoder(features, z_bar) == 0).all()

    def test_it_then_computes_eps_theta_but_for_z_and_the_output_convolution(self, frozen, features, z_bar):
        decoder = Decoder(TINY, DIM)
        decoder.start_from(frozen)
        decoder.shift_out[2].load_state_dict(frozen.out[2].state_dict())
        with torch.no_grad():
            for name, parameter in decoder.named_parameters():
                if self.Z_LAYERS in name:
                    parameter.zero_()
            assert torch.allclose(decoder(features, z_bar), frozen.decode(features), atol=1e-6)

    def test_training_it_leaves_the_frozen_model_alone(self, frozen):
        before = {key: value.clone() for key, value in frozen.state_dict().items()}
        decoder = Decoder(TINY, DIM)
        decoder.start_from(frozen)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.add_(1)
        assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_dropout_works_in_every_block_in_training_only(awaken, features, z_bar):
    decoder = awaken(Decoder(TINY, DIM, dropout=0.5))
    assert {m.p for m in decoder.modules() if isinstance(m, torch.nn.Dropout)} == {0.5}
    with torch.no_grad():
        assert not torch.equal(decoder.train()(features, z_bar), decoder(features, z_bar))
        assert torch.equal(decoder.eval()(features, z_bar), decoder(features, z_bar))
