"""The swap test, on models of which it is known what every part of z and x_T does."""

import numpy as np
import pytest
import torch
from known_models import KnowsNothing
from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.encoder import build_encoder
from diffsiam.evaluation.swap import (
    ALL,
    ALL_AND_NOISE,
    CONTROLS,
    INVERTED,
    NOISE,
    NONE,
    Live,
    SwapMap,
    causal_effect,
    evaluating,
    live_subsets,
    own_times,
    score,
    swap_test,
)
from diffsiam.objective import DiffSiam
from diffsiam.sampling import to_uint8
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet, UNetConfig

torch.set_num_threads(1)
PX, PAIRS = 4, 24


class MeanColour(nn.Module):
    """z = the three mean colours."""

    def forward(self, x):
        return x.mean(dim=(2, 3))


class KnowsTheImage(KnowsNothing):
    """A frozen model that takes x_t for an image without noise: DDIM keeps all there is in x_T."""

    def decode(self, features):
        return torch.zeros_like(features[0])


class KnowsHalf(KnowsNothing):
    """A frozen model of pixels with variance 1/4 about grey: x_0_hat is their posterior mean."""

    def decode(self, features):
        x, t = features
        a = self.schedule.at("alpha_bar", t)
        return self.schedule.eps_from_x_0(x, a.sqrt() / (4 - 3 * a) * x, t)


class Paints(nn.Module):
    """A decoder after which x_0_hat is the grey image plus the colours in z_bar times ``gain``."""

    def __init__(self, schedule, gain=1.0):
        super().__init__()
        self.schedule, self.gain = schedule, gain

    def forward(self, features, z_bar):
        x, t = features
        a = self.schedule.at("alpha_bar", t)
        return self.gain * a.sqrt() / (1 - a) * z_bar[:, :, None, None].expand_as(x)


def read_signs(images):
    """Three factors of two levels: the sign of each mean colour."""
    return (images.mean(dim=(2, 3)) > 0).long()


def coloured(seed=0):
    """Images of plain colours (PAIRS, 3, PX, PX), each +-0.5 or so, and their levels."""
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 2, (PAIRS, 3), generator=generator)
    colours = (2 * levels - 1) * (0.4 + 0.2 * torch.rand(PAIRS, 3, generator=generator))
    return colours[:, :, None, None].expand(-1, -1, PX, PX).contiguous(), levels


def model(frozen=KnowsNothing, gain=1.0, **subsets):
    schedule = Schedule()
    split = Subsets([1, 2, 3], **subsets)
    return DiffSiam(MeanColour(), Paints(schedule, gain), None, frozen(schedule), schedule, split).eval()


def test_each_subset_moves_the_factor_that_it_holds_and_no_other():
    images, levels = coloured()
    swaps = swap_test(model(choice="full"), images, levels, read_signs, moves=5)
    assert swaps.rows == (*(f"subset {i}" for i in (1, 2, 3)), *CONTROLS)
    np.testing.assert_array_equal(swaps.success[:3], np.eye(3))
    by_row = dict(zip(swaps.rows, swaps.success, strict=True))
    for row, expected in ((ALL, 1), (NONE, 0), (INVERTED, 1), (NOISE, 0), (ALL_AND_NOISE, 1)):
        np.testing.assert_array_equal(by_row[row], [expected] * 3, err_msg=row)
    assert (swaps.side_effect == 0).all()
    np.testing.assert_array_equal(swaps.differing, (levels != levels.roll(-1, dims=0)).sum(dim=0))
    assert [live[:3] for live in live_subsets(swaps)] == [(1, 0, 1.0), (2, 1, 1.0), (3, 2, 1.0)]


def test_a_timid_decoder_moves_a_factor_at_a_larger_guidance_scale():
    images, levels = coloured()
    whole = swap_test(model(choice="full"), images, levels, read_signs, moves=5)
    half = swap_test(model(choice="full", gain=0.5), images, levels, read_signs, moves=5, scale=2.0)
    np.testing.assert_allclose(half.images.astype(int), whole.images, atol=1)
    assert (half.success == whole.success).all()


def test_what_x_T_holds_moves_with_x_T_and_not_with_z():
    images, levels = coloured()
    swaps = swap_test(model(KnowsTheImage, gain=0.0, choice="full"), images, levels, read_signs, moves=5)
    by_row = dict(zip(swaps.rows, swaps.success, strict=True))
    for row, expected in ((INVERTED, 0), (NOISE, 1), (ALL_AND_NOISE, 1)):
        np.testing.assert_array_equal(by_row[row], [expected] * 3, err_msg=row)
    assert (swaps.effect == 0).all()
    assert live_subsets(swaps) == []


def test_all_rows_of_a_pair_start_from_the_same_noise_and_another_seed_gives_another():
    images, levels = coloured()
    holder = model(KnowsTheImage, gain=0.0, choice="full")
    first, other = (swap_test(holder, images, levels, read_signs, 5, 5, seed=seed).images for seed in (0, 1))
    from_noise, inverted = first[:5], first[5:]
    assert (from_noise == from_noise[:1]).all()
    assert (from_noise[0, 0] != from_noise[0, 1]).any()
    assert (from_noise != other[:5]).any()
    np.testing.assert_array_equal(inverted, other[5:])  # an inverted x_T knows no seed


def test_the_images_are_those_that_were_read():
    images, levels = coloured()
    swaps = swap_test(model(choice="full"), images, levels, read_signs, moves=5)
    assert swaps.images.shape == (8, PAIRS, PX, PX, 3)
    assert swaps.images.dtype == np.uint8
    found = swaps.images.mean(axis=(2, 3)) > 127.5
    np.testing.assert_array_equal(found[swaps.rows.index("none")], levels.numpy() == 1)
    np.testing.assert_array_equal(found[swaps.rows.index("all")], np.roll(levels.numpy() == 1, -1, axis=0))
    np.testing.assert_array_equal(found[1, :, 0], levels[:, 0].numpy() == 1)


def test_a_sampler_shows_the_decoder_only_the_subsets_of_the_time():
    # The last move starts at t = 199 of 1000, where subset 1 is at work: the others have been painted over.
    images, levels = coloured()
    swaps = swap_test(model(choice="time_tied"), images, levels, read_signs, moves=5)
    np.testing.assert_array_equal(swaps.success[:3, 0], [1, 0, 0])
    red, green, blue = np.moveaxis(swaps.images[:5].astype(int), -1, 0)
    assert (abs(red - 128) > 40).all()
    assert (abs(green - 128) < 8).all()
    assert (abs(blue - 128) < 8).all()


def test_batch_size_changes_nothing():
    images, levels = coloured()
    whole, parts = (swap_test(model(), images, levels, read_signs, 4, 4, size) for size in (10_000, 13))
    np.testing.assert_array_equal(whole.success, parts.success)
    np.testing.assert_allclose(whole.images.astype(int), parts.images.astype(int), atol=1)


def test_more_moves_of_inversion_bring_an_image_back_more_closely():
    images, levels = coloured()
    keeper = model(KnowsHalf, gain=0.0, choice="full")
    few, many = (swap_test(keeper, images, levels, read_signs, 3, moves) for moves in (3, 30))
    np.testing.assert_array_equal(few.images[:5], many.images[:5])  # rows from random x_T do not invert
    target = np.roll(to_uint8(images).numpy().astype(int), -1, axis=0)
    worse, better = (abs(swaps.images[-1].astype(int) - target).mean() for swaps in (few, many))
    assert better < worse / 2


def test_success_counts_pairs_that_differ_and_side_effects_pairs_that_agree():
    a, b = torch.tensor([[0, 1], [2, 1], [0, 1], [3, 1]]), torch.tensor([[1, 1], [2, 1], [2, 1], [3, 1]])
    readings = torch.tensor([[[1, 0], [5, 1], [0, 1], [3, 1]], [[1, 1], [2, 1], [2, 1], [3, 1]]])
    success, side_effect, differing = score(readings, a, b)
    np.testing.assert_array_equal(success, [[0.5, np.nan], [1.0, np.nan]])
    np.testing.assert_array_equal(side_effect, [[0.5, 0.25], [0.0, 0.0]])
    np.testing.assert_array_equal(differing, [2, 0])


def test_effects_and_side_effects_are_counted_above_the_control():
    rows = ("subset 1", "subset 2", *CONTROLS)
    success, side = np.ones((7, 3)), np.zeros((7, 3))
    success[:2] = [[0.5, 0.9, np.nan], [0.5, 0.1, np.nan]]
    side[:2] = [[0.4, 0.2, np.nan], [0.1, 0.1, 0.1]]
    success[rows.index(NONE)], side[rows.index(NONE)] = [0.3, 0.1, 0], [0.1, 0.1, 0.1]
    swaps = SwapMap(rows, success, side, np.array([5, 5, 0]), np.zeros((7, 1, 1, 1, 3), np.uint8))
    (live,) = live_subsets(swaps)
    assert live == Live(1, 1, pytest.approx(0.8), pytest.approx(0.2))
    assert [live.subset for live in live_subsets(swaps, threshold=0.2)] == [1, 2]


@pytest.mark.parametrize("choice", ["full", "time_tied"])
def test_the_causal_effect_is_what_the_subset_changes_over_what_the_frozen_model_lost(choice):
    images, _ = coloured()
    trained = model(choice=choice)
    # The frozen model guesses grey, so it lost the image itself; G paints z times s_t / sqrt(1 - abar_t).
    z = images.mean(dim=(2, 3))
    change = (z.roll(-1, dims=0) - z).square().sum(dim=0) / z.square().sum()
    t = own_times(trained.subsets)
    gain = trained.schedule.shift[t].square() / (1 - trained.schedule.alpha_bar[t])
    effect = causal_effect(trained, images, seed=0, batch_size=7)
    np.testing.assert_allclose(effect, change * gain, rtol=1e-3)


def test_the_causal_effect_shows_the_decoder_what_a_sampler_shows_it():
    images, _ = coloured()
    trained, shown = model(choice="time_tied"), []
    trained.decoder.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    causal_effect(trained, images, seed=0)
    for (_, t), z_bar in shown:
        k = trained.subsets.at_time(t)
        hidden = torch.arange(1, 4) > k[:, None]
        assert (z_bar[hidden] == 0).all()
        assert (z_bar[~hidden] != 0).all()


def test_a_subset_without_a_time_has_no_effect():
    images, _ = coloured()
    effect = causal_effect(model(choice="profile", boundaries=[400, 400]), images, seed=0)
    assert effect[1] == 0
    assert effect[0] > 0


def test_a_decoder_that_adds_nothing_has_no_effect():
    images, _ = coloured()
    np.testing.assert_array_equal(causal_effect(model(gain=0.0), images, seed=0), [0, 0, 0])


def test_own_times_lie_within_the_window_of_each_subset():
    tied = Subsets([1, 2, 3, 4], choice="profile", boundaries=[100, 200, 600])
    assert own_times(tied).tolist() == [49, 149, 399, 797]
    assert set(own_times(Subsets([1, 2])).tolist()) == {300}


def test_real_networks_are_measured_from_uint8_images_and_left_in_their_mode():
    torch.manual_seed(0)
    config = UNetConfig(base_channels=16, channel_mult=(1, 2), blocks=1, attention=(2,))
    frozen, decoder = UNet(config).eval(), Decoder(config, 16, dropout=0.5)
    for module in decoder.modules():  # zero at the start: make it do something
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    subsets = Subsets([4, 8, 12, 16], choice="time_tied")
    trained = DiffSiam(
        build_encoder("resnet10", 8, 8, 16), decoder, None, frozen, Schedule(), subsets
    ).train()
    images = torch.randint(
        0, 256, (6, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    effect = causal_effect(trained, images, seed=0)
    assert (effect > 0).all()
    assert trained.decoder.training
    assert trained.encoder.training
    swaps = swap_test(
        trained.eval(), images, torch.zeros(6, 2, dtype=torch.int64), lambda x: read_signs(x)[:, :2], 2, 2
    )
    assert swaps.images.shape == (9, 6, 8, 8, 3)
    assert np.isnan(swaps.success).all()


def test_the_mode_is_restored_after_an_error():
    module = nn.Dropout()

    def fail():
        with evaluating(module):
            assert not module.training
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert module.training
