"""Which subsets exist, and which time trains which of them."""

from itertools import accumulate, pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffsiam.subsets import Subsets, balanced_ends, profile_boundaries, staged_ends

ALL_TIMES = torch.arange(1000)
EVEN = balanced_ends(512, 64)
SMALL = balanced_ends(8, 4)
PROPERTY = settings(deadline=None, derandomize=True, database=None)


class TestSplits:
    def test_the_balanced_split_of_512_dimensions_gives_each_of_64_subsets_eight(self):
        assert EVEN == [8 * (i + 1) for i in range(64)]

    def test_a_balanced_split_uses_every_dimension_even_where_it_does_not_divide(self):
        ends = balanced_ends(10, 4)
        assert ends == [2, 5, 7, 10]

    def test_the_staged_split_is_diti_s(self):
        sizes = [2, 2, 2, 4, 8, 8, 9, *[25] * 12, 27, *[8] * 11, 12, *[1] * 31, 19]
        assert staged_ends(64, 1000, [50, 100, 300, 500, 1000], [10, 25, 327, 100, 50]) == list(
            accumulate(sizes)
        )

    def test_a_subset_that_starts_where_a_stage_ends_belongs_to_the_next(self):
        assert Subsets([1, 2, 3], "time_tied", steps=10, jump=False).at_time(
            torch.tensor([3, 4])
        ).tolist() == [1, 2]
        assert staged_ends(3, 10, [4, 10], [2, 4]) == [2, 4, 6]

    @pytest.mark.parametrize(
        ("stages", "dims", "message"),
        [
            ([50, 1000], [3, 509], r"stage 0 \(ends at t = 50\) has 4 subsets and 3 dims"),
            ([1, 2, 1000], [8, 8, 496], "0 subsets"),
            ([50, 900], [256, 256], r"stages \[50, 900\] do not ascend to T = 1000"),
            ([500, 400, 1000], [256, 128, 128], "do not ascend"),
            ([], [], "do not ascend"),
            ([1000], [256, 256], "1 stages have 2 numbers of dims"),
        ],
    )
    def test_stages_that_cannot_hold_their_subsets_are_refused(self, stages, dims, message):
        with pytest.raises(ValueError, match=message):
            staged_ends(64, 1000, stages, dims)

    @given(data=st.data(), n=st.integers(1, 64), steps=st.integers(64, 1000))
    @PROPERTY
    def test_a_staged_split_gives_every_subset_dimensions_of_its_own_stage(self, data, n, steps):
        inner = data.draw(st.sets(st.integers(1, steps - 1), max_size=5))
        stages = [*sorted(inner), steps]
        dims = data.draw(st.lists(st.integers(1, 200), min_size=len(stages), max_size=len(stages)))
        starts = [-(-i * steps // n) for i in range(n)]
        held = [sum(first <= t < end for t in starts) for first, end in pairwise([0, *stages])]
        if not all(0 < count <= size for count, size in zip(held, dims, strict=True)):
            with pytest.raises(ValueError, match=r"has \d+ subsets and \d+ dims"):
                staged_ends(n, steps, stages, dims)
            return
        ends = staged_ends(n, steps, stages, dims)
        assert len(ends) == n
        assert all(a < b for a, b in pairwise([0, *ends]))
        assert set(accumulate(dims)) <= set(ends)

    def test_subsets_and_dimensions_name_each_other(self):
        subsets = Subsets([2, 3, 7])
        assert subsets.n == 3
        assert subsets.subset_of_dim().tolist() == [1, 1, 2, 3, 3, 3, 3]
        assert [subsets.dims(i) for i in (1, 2, 3)] == [slice(0, 2), slice(2, 3), slice(3, 7)]


class TestTimesOfSubsets:
    def test_without_the_jump_time_t_belongs_to_subset_floor_64_t_over_1000_as_in_diti(self):
        k = Subsets(EVEN, "time_tied", jump=False).at_time(ALL_TIMES)
        assert k.tolist() == [1 + 64 * t // 1000 for t in range(1000)]
        counts = torch.bincount(k)[1:]
        assert len(counts) == 64
        assert set(counts.tolist()) == {15, 16}
        firsts = [k.tolist().index(i) for i in range(1, 11)]
        assert firsts == [0, 16, 32, 47, 63, 79, 94, 110, 125, 141]

    def test_with_the_jump_the_subsets_share_the_times_that_are_drawn(self):
        subsets = Subsets(EVEN, "time_tied")
        k = subsets.at_time(ALL_TIMES)
        assert subsets.times == 936
        assert k[:936].tolist() == [1 + 64 * t // 936 for t in range(936)]
        assert set(k[:936].tolist()) == set(range(1, 65))
        assert (k[936:] == 64).all()  # a sampler also visits the times that no training step draws

    def test_a_profile_counts_the_boundaries_at_or_below_t(self):
        subsets = Subsets(SMALL, "profile", boundaries=[10, 20, 500])
        t = torch.tensor([0, 9, 10, 19, 20, 499, 500, 999])
        assert subsets.at_time(t).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]

    @pytest.mark.parametrize(
        ("choice", "tied"), [("random", False), ("full", False), ("time_tied", True), ("profile", True)]
    )
    def test_where_t_does_not_determine_k_a_sampler_may_use_all_subsets(self, choice, tied):
        subsets = Subsets(SMALL, choice, boundaries=[10, 20, 500])
        assert subsets.tied is tied
        assert tied or (subsets.at_time(ALL_TIMES) == 4).all()


class TestDraws:
    POSITIONS = torch.arange(40_000)

    def test_algorithm_1_draws_t_below_T_minus_n_and_k_from_1_to_n_all_pairs_alike(self):
        draw = Subsets(SMALL, steps=20).draw(0, self.POSITIONS)
        counts = torch.bincount(draw.t * 4 + draw.k - 1, minlength=64)
        assert len(counts) == 16 * 4
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
        assert torch.equal(draw.level, draw.t + draw.k)
        assert (draw.k.min(), draw.k.max()) == (1, 4)
        assert draw.level.max() == 19

    @pytest.mark.parametrize("choice", ["random", "time_tied", "profile", "full"])
    @pytest.mark.parametrize("jump", [True, False])
    def test_no_draw_leaves_the_schedule(self, choice, jump):
        draw = Subsets(SMALL, choice, steps=20, jump=jump, boundaries=[3, 5, 9]).draw(0, self.POSITIONS)
        assert set(draw.t.tolist()) == set(range(16 if jump else 20))
        assert set(draw.k.tolist()) == ({4} if choice == "full" else {1, 2, 3, 4})
        assert (draw.level.min(), draw.level.max()) == (1 if jump else 0, 19)

    @pytest.mark.parametrize("choice", ["time_tied", "profile"])
    @pytest.mark.parametrize("jump", [True, False])
    def test_a_tied_k_is_that_of_its_time_and_the_jump_has_its_length(self, choice, jump):
        subsets = Subsets(SMALL, choice, steps=20, jump=jump, boundaries=[3, 5, 9])
        draw = subsets.draw(0, self.POSITIONS)
        assert torch.equal(draw.k, subsets.at_time(draw.t))
        assert torch.equal(draw.level - draw.t, draw.k if jump else torch.zeros_like(draw.k))

    def test_with_the_whole_z_the_length_of_the_jump_stays_random(self):
        whole, random = (
            Subsets(SMALL, choice, steps=20).draw(0, self.POSITIONS) for choice in ("full", "random")
        )
        assert (whole.k == 4).all()
        assert torch.equal(whole.level, random.level)

    def test_a_sample_has_its_draw_in_any_batch_and_under_no_other_seed(self):
        subsets, positions = Subsets(EVEN), torch.tensor([5, 2**33, 17, 6])
        whole = subsets.draw(3, positions)
        for row, position in enumerate(positions.split(1)):
            assert [value[row] for value in whole] == [value[0] for value in subsets.draw(3, position)]
        assert not torch.equal(whole.t, subsets.draw(4, positions).t)
        assert not torch.equal(whole.k, subsets.draw(4, positions).k)


class TestMask:
    K = torch.tensor([1, 3])

    @pytest.mark.parametrize(
        ("mask", "detach", "seen", "trained"),
        [
            ("hierarchical", False, [{1}, {1, 2, 3}], [{1}, {1, 2, 3}]),
            ("hierarchical", True, [{1}, {1, 2, 3}], [{1}, {3}]),
            ("sequential", False, [{1}, {3}], [{1}, {3}]),
        ],
    )
    def test_what_the_decoder_sees_and_what_it_trains(self, mask, detach, seen, trained):
        subsets = Subsets([2, 3, 7, 9], mask=mask, detach=detach)
        z = torch.ones(2, 9, requires_grad=True)
        z_bar = subsets.mask_at(z, self.K)
        z_bar.backward(torch.ones(2, 9))
        for row, subset in product((0, 1), (1, 2, 3, 4)):
            dims = subsets.dims(subset)
            assert (z_bar[row, dims] == (subset in seen[row])).all()
            assert (z.grad[row, dims] == (subset in trained[row])).all()


class TestProfileBoundaries:
    TIMES = np.arange(0, 1000, 10)

    def test_equal_growth_of_the_log_error_gives_equal_stretches_of_time(self):
        error = 0.005 * (1 / 0.005) ** (self.TIMES / self.TIMES[-1])
        assert profile_boundaries(self.TIMES, error, 4, 1000, floor=0.005) == pytest.approx(
            [247.5, 495, 742.5], abs=0.5
        )

    def test_boundaries_lie_where_something_is_lost(self):
        error = np.interp(self.TIMES, [0, 200, 400, 990], [1e-4, 0.004, 1, 1])
        boundaries = profile_boundaries(self.TIMES, error, 8, 1000)
        assert all(200 <= boundary <= 400 for boundary in boundaries)

    def test_boundaries_ascend_even_where_all_is_lost_at_once(self):
        times = np.arange(1000)
        assert profile_boundaries(times, np.where(times < 500, 0, 1.0), 6, 1000) == [499, 500, 501, 502, 503]

    def test_what_is_lost_once_stays_lost_whatever_the_noise_of_the_measurement(self):
        noise = np.random.default_rng(0).uniform(0.7, 1.3, len(self.TIMES))
        error = np.linspace(0.01, 1, len(self.TIMES)) * noise
        assert profile_boundaries(self.TIMES, error, 8, 1000) == profile_boundaries(
            self.TIMES, np.maximum.accumulate(error), 8, 1000
        )

    def test_subsets_that_begin_late_leave_room_for_those_that_follow(self):
        error = np.where(self.TIMES < 980, 0, 1.0)
        assert profile_boundaries(self.TIMES, error, 64, 936) == list(range(936 - 63, 936))

    def test_what_is_lost_before_the_first_measurement_is_nobody_s_share(self):
        error = np.interp(self.TIMES, [0, 300, 700, 990], [0.2, 0.2, 1, 1])
        boundaries = profile_boundaries(self.TIMES, error, 8, 1000)
        assert all(300 < boundary < 700 for boundary in boundaries)

    @pytest.mark.parametrize("error", [0.0, 0.009, 0.5, 3.0, float("nan")])
    def test_an_error_that_does_not_grow_is_refused(self, error):
        with pytest.raises(ValueError, match="does not grow with the noise"):
            profile_boundaries(self.TIMES, np.full(len(self.TIMES), error), 64, 1000)

    def test_more_subsets_than_times_are_refused(self):
        with pytest.raises(ValueError, match="9 subsets cannot share 8 times"):
            profile_boundaries([0, 7], np.array([0.0, 1.0]), 9, 8)

    @given(
        error=st.lists(st.floats(0, 2, width=16), min_size=2, max_size=25),
        n=st.integers(1, 64),
        spare=st.integers(0, 200),
    )
    @PROPERTY
    def test_boundaries_ascend_strictly_inside_the_drawn_times(self, error, n, spare):
        drawn = n + spare
        times = np.linspace(0, 999, len(error)).round().astype(int)
        if min(max(error), 1) <= max(error[0], 0.01):
            with pytest.raises(ValueError, match="does not grow"):
                profile_boundaries(times, np.array(error), n, drawn)
            return
        boundaries = profile_boundaries(times, np.array(error), n, drawn)
        assert len(boundaries) == n - 1
        assert all(a < b for a, b in pairwise([0, *boundaries, drawn]))
