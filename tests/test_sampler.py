"""The sampler of edits: whatever it spares, its images are those of the plain steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_networks import TIED, images_and_z, sampler

from diffsiam.sampler import Guide, Sampler
from diffsiam.sampling import Recipe, ddim, guided, moves_down, moves_up, unguided
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.weights import load_unet
from engine.data.rooms import Rooms
from kernels.noise_jump.ref import to_unit_range

ASSETS = Path(__file__).resolve().parent.parent / "engine" / "assets"
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("spacing", ["ends", "strided"])
@pytest.mark.parametrize("coefficient", ["ddim", "train"])
@pytest.mark.parametrize(("clamp", "scale"), [(True, 1.0), (False, 1.0), (True, 2.5)])
def test_it_inverts_and_samples_as_the_plain_steps_do(awaken, spacing, coefficient, clamp, scale):
    s = sampler(awaken, recipe=Recipe(3, 4, spacing, coefficient, clamp, scale=scale))
    x_0, z = images_and_z(3)
    predict = guided(s.frozen, s.decoder, s.schedule, s.subsets, z, coefficient, scale)
    x_T = ddim(x_0, predict, moves_up(s.schedule, 3, spacing), clamp)
    torch.testing.assert_close(s.invert(x_0, z), x_T, **CLOSE)
    x = ddim(x_T, predict, moves_down(s.schedule, 4, spacing), clamp).clamp(-1, 1)
    torch.testing.assert_close(s.sample(x_T, Guide(z)), x, **CLOSE)


@pytest.mark.parametrize("mask", ["auto", "bins", "none"])
@pytest.mark.parametrize("subsets", [TIED, Subsets([2, 5, 8]), replace(TIED, mask="sequential")])
def test_what_is_computed_once_gives_what_every_step_would(awaken, subsets, mask):
    x_0, z = images_and_z(3)
    once, every = (sampler(awaken, subsets, Recipe(3, 4, mask=mask), planned=p) for p in (True, False))
    torch.testing.assert_close(once.invert(x_0, z), every.invert(x_0, z), **CLOSE)
    torch.testing.assert_close(once.sample(x_0, Guide(z)), every.sample(x_0, Guide(z)), **CLOSE)


@pytest.mark.parametrize(
    ("subsets", "mask", "hides"),
    [
        (TIED, "auto", True),
        (TIED, "bins", True),
        (TIED, "none", False),
        (Subsets([2, 5, 8]), "auto", False),
        (Subsets([2, 5, 8]), "bins", True),
    ],
)
def test_a_mask_hides_later_subsets_at_early_times(awaken, subsets, mask, hides):
    s = sampler(awaken, subsets, Recipe(2, 1, "strided", mask=mask))  # its only move down asks at t = 0
    x, z = images_and_z(2)
    other = z.clone()
    other[:, 2:] += 1
    assert torch.equal(s.sample(x, Guide(z)), s.sample(x, Guide(other))) is hides


def test_equal_bins_of_a_model_with_free_k_are_those_of_all_times(awaken):
    s = sampler(awaken, Subsets([2, 5, 8]), Recipe(mask="bins"))
    assert s.shown.at_time(torch.tensor([0, 333, 334, 666, 667, 999])).tolist() == [1, 1, 2, 2, 3, 3]


def test_inversion_is_guided_or_left_to_the_frozen_model(awaken):
    s = sampler(awaken, recipe=Recipe(3, 3, guided_inversion=False))
    x_0, z = images_and_z(2)
    alone = ddim(x_0, unguided(s.frozen), moves_up(s.schedule, 3))
    torch.testing.assert_close(s.invert(x_0, z), alone, **CLOSE)
    assert not torch.allclose(sampler(awaken).invert(x_0, z), alone)


def test_a_random_start_depends_on_the_seed_and_not_on_the_image(awaken):
    s = sampler(awaken, recipe=Recipe(x_T="random"))
    x_0, z = images_and_z(4)
    first = s.start(x_0, z, seed=1)
    assert torch.equal(first, s.start(x_0.flip(0), z, seed=1))
    assert not torch.equal(first, s.start(x_0, z, seed=2))
    assert s.passes.calls == 0
    inverting = sampler(awaken)
    assert torch.equal(inverting.start(x_0, z), inverting.invert(x_0, z))


def test_shares_blend_what_two_z_guide_to_in_one_pass_of_the_frozen_model(awaken):
    s = sampler(awaken, recipe=Recipe(2, 1, clamp=False))
    x_0, z = images_and_z(2)
    other, share = z.flip(0), torch.tensor([0.25, 1.0])
    # One move without clamping is linear in G, but for the clip of the image at its end.
    x_T = 1e-3 * s.invert(x_0, z)
    blended = s._move(x_T, (Guide(z, 1 - share), Guide(other, share)), up=False)
    ours, others = (s._move(x_T, (Guide(value),), up=False) for value in (z, other))
    torch.testing.assert_close(blended, torch.lerp(ours, others, share[:, None, None, None]), **CLOSE)
    assert torch.equal(blended[1], others[1]) or torch.allclose(blended[1], others[1], atol=1e-3)


def test_batch_size_changes_calls_and_not_images(awaken):
    x_0, z = images_and_z(5)
    whole, parts = sampler(awaken), sampler(awaken, batch_size=2)
    torch.testing.assert_close(whole.sample(x_0, Guide(z)), parts.sample(x_0, Guide(z)), **CLOSE)
    assert (whole.passes.calls, parts.passes.calls) == (4, 12)
    assert whole.passes.images == parts.passes.images == whole.passes.decoded == 20


def test_it_tells_every_pass_and_knows_their_number_before(awaken):
    told = []
    s = sampler(awaken, tell=told.append)
    x_0, z = images_and_z(3)
    s.sample(s.start(x_0, z), Guide(z))
    assert sum(told) == s.cost(inverted=3, sampled=3) == 3 * 3 + 3 * 4
    assert sampler(awaken, recipe=Recipe(3, 4, x_T="random")).cost(3, 3) == 3 * 4


def test_bfloat16_gives_nearly_the_same_images_in_float32(awaken):
    x_0, z = images_and_z(3)
    exact, rounded = (sampler(awaken, autocast=dtype) for dtype in (None, torch.bfloat16))
    a, b = (s.sample(s.invert(x_0, z), Guide(z)) for s in (exact, rounded))
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert (a - b).abs().mean() < 0.1  # unrelated images differ by 0.8


def test_no_images_cost_nothing(awaken):
    s = sampler(awaken)
    x_0, z = images_and_z(0)
    assert s.sample(x_0, Guide(z)).shape == x_0.shape
    assert s.passes.calls == 0


@pytest.fixture(scope="module")
def shipped():
    """The shipped model of 16-px rooms, without a decoder."""
    return load_unet(ASSETS / "rooms16.safetensors").eval().requires_grad_(False)


def test_inversion_and_sampling_return_a_room_the_more_precisely_the_more_steps(awaken, shipped):
    rooms = to_unit_range(torch.from_numpy(Rooms(16, seed=5).images(np.arange(4))))
    decoder = sampler(awaken).decoder  # not asked: nothing guides
    errors = []
    for moves in (10, 30, 100):
        recipe = Recipe(moves, moves, guided_inversion=False)
        s = Sampler(shipped, decoder, Schedule(), TIED, recipe, planned=False)
        back = s.sample(s.invert(rooms, torch.zeros(4, 8)))
        errors.append((back - rooms).square().mean().item())
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < 1e-3
