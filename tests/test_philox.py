"""Random numbers are pure functions of (seed, position, stream, element), and look random."""

import numpy as np
import pytest
import torch
from scipy import stats

import kernels.philox_cpu  # noqa: F401  (registers its operation)
from kernels import philox
from kernels.backend import set_backend
from kernels.philox import normal, philox4x32, randint, uniform, uniform_np

MANY = 100_000
STREAMS = range(8)
FAR = torch.tensor([0, 1, 17, 2**32 - 1, 2**32, 2**32 + 17, 2**40 + 3, 2**62 + 5])

# Known answers published with Random123 (Salmon et al., SC 2011): counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def hex_words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def assert_uncorrelated(*columns: torch.Tensor) -> None:
    """No pair of columns correlates beyond five standard errors, neither as they are nor squared."""
    x = torch.stack(columns).double()
    for values in (x, (x - x.mean(1, keepdim=True)).square()):
        correlation = torch.corrcoef(values).fill_diagonal_(0)
        assert correlation.abs().max() < 5 / x.shape[1] ** 0.5


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_generator_gives_the_published_known_answers(counter, key, answer):
    out = philox4x32(torch.tensor(hex_words(counter)), tuple(hex_words(key)))
    assert out.tolist() == hex_words(answer)


def test_counters_of_any_shape_are_worked_on_row_by_row():
    counters = torch.tensor([hex_words(counter) for counter, _, _ in KNOWN_ANSWERS])[None]
    out = philox4x32(counters, (0, 0))
    assert out.shape == (1, 3, 4)
    assert out[0, 0].tolist() == hex_words(KNOWN_ANSWERS[0][2])


def test_the_counter_holds_element_position_and_stream_and_the_key_holds_the_seed():
    seed, stream = 0x0123456789ABCDEF, 5
    out = philox.words(seed, FAR, 11, stream)
    assert out.shape == (len(FAR), 12)
    for row, position in zip(out, FAR.tolist(), strict=True):
        for quad in range(3):
            counter = torch.tensor([quad, position % 2**32, position >> 32, stream])
            expected = philox4x32(counter, (0x89ABCDEF, 0x01234567))
            assert torch.equal(row[4 * quad : 4 * quad + 4], expected)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**63 + 11, 2**64 - 1, torch.tensor(-5)])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_the_compiled_loop_gives_the_bits_of_the_reference(seed, count):
    compiled = philox.words(seed, FAR[::2], count, 6)
    set_backend("reference")
    try:
        expected = philox.words(seed, FAR[::2], count, 6)
    finally:
        set_backend("auto")
    assert compiled.dtype == expected.dtype
    assert torch.equal(compiled, expected)


def test_the_compiled_loop_is_an_operation_of_its_own():
    positions, seed = FAR.clone(), torch.tensor(3)
    seen = torch.fx.experimental.proxy_tensor.make_fx(lambda p, s: philox.words(s, p, 5, 1))(positions, seed)
    assert [node.name for node in seen.graph.nodes if "philox" in node.name]
    torch.library.opcheck(torch.ops.diffsiam.philox_words_cpu.default, (positions, seed, 2, 1))


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("seed", [0, 3, 2**63 + 11])
def test_numpy_and_torch_give_the_same_bits(seed, count):
    ours = uniform(seed, FAR, count, philox.STREAM_VIEW_2)
    twin = uniform_np(seed, FAR.numpy(), count, philox.STREAM_VIEW_2)
    assert twin.dtype == np.float32
    assert twin.shape == (len(FAR), count)
    assert ours.numpy().tobytes() == twin.tobytes()


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_sample_has_its_numbers_in_any_batch_and_any_order(draw):
    whole = draw(9, FAR, 6, 2)
    split = torch.cat([draw(9, part, 6, 2) for part in FAR.split([1, 4, 3])])
    assert torch.equal(whole, split)
    assert torch.equal(whole.flip(0), draw(9, FAR.flip(0), 6, 2))


@pytest.mark.parametrize("draw", [uniform, normal])
def test_asking_for_more_numbers_does_not_change_the_first_ones(draw):
    many = draw(9, FAR, 23, 2)
    for count in (1, 2, 3, 5, 8):
        assert torch.equal(draw(9, FAR, count, 2), many[:, :count])


def test_positions_beyond_32_bits_have_numbers_of_their_own():
    wrapped = torch.tensor([5, 5 + 2**32, 5 + 2**33])
    assert len(uniform(0, wrapped, 1, 0).unique()) == 3
    assert len(set(uniform_np(0, wrapped.numpy(), 1, 0).flatten().tolist())) == 3


def test_both_halves_of_the_seed_count():
    position = torch.tensor([5])
    drawn = {uniform(seed, position, 1, 0).item() for seed in (1, 2, 1 + 2**32, 1 + 2**63)}
    assert len(drawn) == 4


def test_a_uniform_is_its_word_folded_at_the_sign_bit():
    words = philox.words(1, torch.arange(1000), 1, 0)[:, :1].double()
    folded = torch.where(words < 2**31, words, 2**32 - 1 - words)
    assert torch.allclose(uniform(1, torch.arange(1000), 1, 0).double(), folded / 2**31, rtol=2e-7, atol=0)


def test_the_extreme_words_map_to_zero_and_to_just_below_one(monkeypatch):
    extreme = torch.tensor([[0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000]])
    monkeypatch.setattr(philox, "words", lambda *_: extreme)
    u = uniform(0, torch.tensor([0]), 4, 0)[0]
    assert u[:2].tolist() == [0, 0]
    assert (u[2:] < 1).all()
    assert (u[2:] > 1 - 2e-7).all()


def test_no_normal_is_infinite(monkeypatch):
    monkeypatch.setattr(philox, "words", lambda *_: torch.zeros(1, 4, dtype=torch.int64))
    furthest = (-2 * np.log(1e-7)) ** 0.5  # 5.68: the first uniform is clamped at 1e-7, the angle is 0
    assert normal(0, torch.tensor([0]), 4, 0)[0].tolist() == pytest.approx([furthest, 0, furthest, 0])


def test_normals_are_cosine_and_sine_of_the_words_in_pairs():
    u = uniform(3, FAR, 4, 1).double()
    radius = (-2 * u[:, 0::2].log()).sqrt()
    expected = torch.stack(
        (radius * (2 * torch.pi * u[:, 1::2]).cos(), radius * (2 * torch.pi * u[:, 1::2]).sin()), -1
    )
    assert torch.allclose(normal(3, FAR, 4, 1).double(), expected.flatten(1), atol=2e-6)


def test_normals_have_the_moments_of_a_standard_normal():
    x = normal(0, torch.arange(MANY // 4), 4, philox.STREAM_NOISE).flatten().double()
    moments = [x.pow(order).mean().item() for order in (1, 2, 3, 4)]
    errors = [(variance / MANY) ** 0.5 for variance in (1, 2, 15, 96)]  # standard error of each sample moment
    for moment, expected, error in zip(moments, (0, 1, 0, 3), errors, strict=True):
        assert abs(moment - expected) < 4 * error


@pytest.mark.parametrize(("draw", "distribution"), [(uniform, "uniform"), (normal, "norm")])
@pytest.mark.parametrize("across", ["positions", "elements"])
def test_draws_pass_the_kolmogorov_smirnov_test(draw, distribution, across):
    positions, count = (MANY, 1) if across == "positions" else (1, MANY)
    x = draw(2, torch.arange(positions), count, philox.STREAM_NOISE).flatten().numpy()
    assert stats.kstest(x, distribution).pvalue > 1e-3


def test_integers_are_uniform_below_their_bound():
    x = randint(4, torch.arange(MANY), 10, philox.STREAM_K)
    assert stats.chisquare(torch.bincount(x, minlength=10).numpy()).pvalue > 1e-3
    assert x.max() == 9


def test_an_integer_is_the_high_half_of_word_times_bound():
    words = philox.words(4, FAR, 1, 3)[:, 0].tolist()
    assert randint(4, FAR, 936, 3).tolist() == [word * 936 // 2**32 for word in words]


def test_streams_are_uncorrelated():
    assert_uncorrelated(*(normal(0, torch.arange(MANY), 1, stream)[:, 0] for stream in STREAMS))


def test_neighbouring_positions_elements_and_seeds_are_uncorrelated():
    x = normal(0, torch.arange(MANY + 1), 8, philox.STREAM_NOISE)
    next_seed = normal(1, torch.arange(MANY), 1, philox.STREAM_NOISE)
    assert_uncorrelated(x[1:, 0], *x[:-1].unbind(1), next_seed[:, 0])
