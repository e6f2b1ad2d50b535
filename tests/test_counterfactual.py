"""Algorithm 2, line by line, its controls, and interpolation."""

import math

import pytest
import torch
from small_networks import TIED, images_and_z, sampler

from diffsiam.counterfactual import (
    Inverted,
    counterfactual_jobs,
    counterfactuals,
    interpolate,
    lerp,
    of_subsets,
    random_dims,
    slerp,
)
from diffsiam.sampler import Guide
from diffsiam.sampling import Recipe

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
# Sums of a batch are rounded otherwise than those of one image, by some processors more than by others, and
# all moves of a way down magnify it; a line left out changes an image by tenths.
MOVED = {"rtol": 1e-4, "atol": 1e-3}
SCALES = [0.25, 0.5, 0.75, 1.0]


@pytest.fixture
def s(awaken):
    return sampler(awaken)


@pytest.fixture
def images(s):
    x_0, z = images_and_z(4)
    return Inverted(x_0, z, s.invert(x_0, z))


class TestLines:
    def test_lerp_moves_the_chosen_dimensions_and_leaves_the_others(self):
        z, other = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[5.0, 6.0, 7.0]])
        dims = torch.tensor([True, False, True])
        for scale, expected in ((0.0, [1, 2, 3]), (0.25, [2, 2, 4]), (1.0, [5, 2, 7])):
            assert lerp(z, other, dims, torch.tensor([scale])).tolist() == [expected]

    def test_a_subset_is_its_own_dimensions(self):
        assert of_subsets("", TIED, [2]).dims.tolist() == [False] * 2 + [True] * 3 + [False] * 3
        assert of_subsets("", TIED, [1, 3]).dims.sum() == 5
        assert not of_subsets("", TIED, []).dims.any()
        assert of_subsets("", TIED, [1, 2, 3]).dims.all()

    def test_slerp_goes_along_the_arc(self):
        a, b = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        half = slerp(a, b, torch.tensor([0.5]))
        torch.testing.assert_close(half, torch.tensor([[3.0, 2.0]]) * math.sqrt(0.5))
        assert torch.equal(slerp(a, b, torch.tensor([0.0])), a)
        torch.testing.assert_close(slerp(a, b, torch.tensor([1.0])), b)

    def test_slerp_takes_the_angle_over_the_whole_tensor_of_each_image(self):
        a, b, scale = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.tensor([0.3, 0.8])
        for i in range(2):
            x, y, k = a[i].flatten(), b[i].flatten(), scale[i]
            theta = torch.acos(x @ y / (x.norm() * y.norm()))
            expected = (torch.sin((1 - k) * theta) * x + torch.sin(k * theta) * y) / torch.sin(theta)
            torch.testing.assert_close(slerp(a, b, scale)[i].flatten(), expected, **CLOSE)

    def test_slerp_keeps_the_length_of_noise_where_lerp_shrinks_it(self):
        a, b = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
        half = torch.tensor([0.5])
        assert slerp(a, b, half).std() == pytest.approx(1, abs=0.05)
        assert torch.lerp(a, b, 0.5).std() < 0.75

    @pytest.mark.parametrize("factor", [1.0, 2.0, -1.0])
    def test_slerp_of_parallel_images_is_the_straight_line(self, factor):
        a = torch.randn(1, 3, 4, 4)
        found = slerp(a, factor * a, torch.tensor([0.25]))
        torch.testing.assert_close(found, torch.lerp(a, factor * a, 0.25), **CLOSE)


class TestAlgorithm2:
    @pytest.mark.parametrize("moves_x_T", [True, False])
    def test_each_image_is_what_the_printed_lines_give(self, s, images, moves_x_T):
        choices = [of_subsets("", TIED, [1], moves_x_T), of_subsets("", TIED, [2, 3], moves_x_T)]
        found = counterfactuals(s, images, [(0, 1), (2, 3)], choices, SCALES)
        assert found.shape == (2, 2, 2, 4, 3, 8, 8)
        for p, direction, c, k in ((0, 0, 0, 1), (0, 1, 1, 2), (1, 0, 1, 3), (1, 1, 0, 0)):
            a, b = ((0, 1), (2, 3))[p][:: -1 if direction else 1]
            scale = torch.tensor([SCALES[k]])
            z = images.z[[a]].clone()
            dims = choices[c].dims
            z[:, dims] = (1 - scale) * z[:, dims] + scale * images.z[[b]][:, dims]
            x_T = slerp(images.x_T[[a]], images.x_T[[b]], scale) if moves_x_T else images.x_T[[a]]
            expected = s.sample(x_T, Guide(z))[0]
            torch.testing.assert_close(found[p, direction, c, k], expected, **MOVED)

    def test_scale_0_is_the_reconstruction(self, s, images):
        found = counterfactuals(s, images, [(0, 1)], [of_subsets("", TIED, [1])], [0.0])
        torch.testing.assert_close(found[0, :, 0, 0], s.sample(images.x_T[:2], Guide(images.z[:2])), **CLOSE)

    def test_taking_nothing_with_x_T_fixed_is_the_reconstruction_at_every_scale(self, s, images):
        found = counterfactuals(s, images, [(0, 1)], [of_subsets("", TIED, [], False)], SCALES)
        expected = s.sample(images.x_T[:2], Guide(images.z[:2]))[:, None].expand(-1, 4, -1, -1, -1)
        torch.testing.assert_close(found[0, :, 0], expected, **CLOSE)

    def test_taking_nothing_but_x_T_still_changes_the_image(self, s, images):
        moving, fixed = (
            counterfactuals(s, images, [(0, 1)], [of_subsets("", TIED, [], moves)], [1.0])
            for moves in (True, False)
        )
        assert not torch.allclose(moving, fixed, atol=1e-2)

    def test_taking_all_at_scale_1_gives_the_other_image(self, s, images):
        found = counterfactuals(s, images, [(0, 1)], [of_subsets("", TIED, [1, 2, 3])], [1.0])
        expected = s.sample(images.x_T[[1, 0]], Guide(images.z[[1, 0]]))
        torch.testing.assert_close(found[0, :, 0, 0], expected, **CLOSE)

    def test_the_random_control_has_as_many_dimensions_and_depends_on_its_seed(self):
        first, again, other = (random_dims("", 48, 16, seed).dims for seed in (1, 1, 2))
        assert first.sum() == other.sum() == 16
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestPasses:
    def test_a_figure_is_one_batch_without_an_image_that_is_another_s(self, s, images):
        before = s.passes.images, s.passes.calls
        choices = [of_subsets("", TIED, [i]) for i in (1, 2, 3)] + [of_subsets("", TIED, [])]
        counterfactuals(s, images, [(0, 1)], choices, [0.0, *SCALES])
        edits = 2 * (1 + 4 * 4)  # scale 0 is the same image for every S
        assert s.passes.images - before[0] == edits * len(s.down)
        assert s.passes.calls - before[1] == len(s.down)

    def test_both_directions_of_all_are_one_and_its_ends_are_the_reconstructions(self):
        everything = [of_subsets("", TIED, [1, 2, 3])]
        needed, place = counterfactual_jobs([(0, 1)], everything, [0.0, 1 / 3, 2 / 3, 1.0]).needed()
        assert len(needed) == 4
        assert place[:4].tolist() == place[4:].flip(0).tolist()

    def test_with_x_T_fixed_both_directions_of_all_differ(self):
        everything = [of_subsets("", TIED, [1, 2, 3], False)]
        assert len(counterfactual_jobs([(0, 1)], everything, [0.0, 0.5, 1.0]).needed()[0]) == 6

    def test_equal_choices_are_made_once(self):
        twice = [of_subsets("a", TIED, [1]), of_subsets("b", TIED, [1])]
        assert len(counterfactual_jobs([(0, 1)], twice, SCALES).needed()[0]) == 8


class TestInterpolation:
    def test_it_is_algorithm_2_with_all_subsets_in_one_direction(self, s, images):
        found = interpolate(s, images, [(0, 1), (2, 3)], [0.0, 0.5, 1.0])
        assert found.shape == (2, 3, 3, 8, 8)
        everything = [of_subsets("", TIED, [1, 2, 3])]
        expected = counterfactuals(s, images, [(0, 1), (2, 3)], everything, [0.0, 0.5, 1.0])[:, 0, 0]
        torch.testing.assert_close(found, expected, **CLOSE)

    def test_a_trajectory_blends_the_guidance_of_both_z_at_every_step(self, awaken):
        s = sampler(awaken, recipe=Recipe(2, 1))
        x_0, z = images_and_z(2)
        images = Inverted(x_0, z, 1e-3 * s.invert(x_0, z))
        found = interpolate(s, images, [(0, 1)], [0.25], trajectory=True)[0]
        x_T, share = slerp(images.x_T[:1], images.x_T[1:], torch.tensor([0.25])), torch.tensor([0.25])
        expected = s.sample(x_T, Guide(z[:1], 1 - share), Guide(z[1:], share))
        torch.testing.assert_close(found, expected, **CLOSE)

    def test_a_trajectory_ends_where_the_interpolation_does_and_differs_between(self, s, images):
        scales = [0.0, 0.5, 1.0]
        full, trajectory = (interpolate(s, images, [(0, 1)], scales, trajectory=t)[0] for t in (False, True))
        torch.testing.assert_close(full[[0, 2]], trajectory[[0, 2]], **CLOSE)
        assert not torch.allclose(full[1], trajectory[1], atol=1e-3)

    def test_a_trajectory_runs_g_twice_and_the_frozen_model_once(self, s, images):
        before, decoded = s.passes.images, s.passes.decoded
        interpolate(s, images, [(0, 1)], [0.5], trajectory=True)
        assert s.passes.images - before == 4
        assert s.passes.decoded - decoded == 8

    def test_x_T_may_stay_the_first_image_s(self, s, images):
        found = interpolate(s, images, [(0, 1)], [1.0], moves_x_T=False)[0]
        torch.testing.assert_close(found, s.sample(images.x_T[:1], Guide(images.z[1:2])), **CLOSE)
