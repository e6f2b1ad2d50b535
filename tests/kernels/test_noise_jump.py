"""The noise jump's kernel: the reference's values, and noise that depends on nothing but its name."""

import pytest
import torch
import triton
import triton.language as tl
from kernel_cases import (
    ALPHA_BAR,
    BF16_ULPS,
    BLOCK,
    EPSILON,
    FAR,
    LAYOUTS,
    ODD_IMAGES,
    SEED,
    assert_within_bf16_ulps,
    laid,
    per_sample,
    photos,
)

from kernels import philox
from kernels.noise_jump import op, ref
from kernels.noise_jump.op import noise_jump
from kernels.noise_jump.ref import noise_for, to_unit_range
from kernels.philox_triton import philox_words

LEVELS = [0, 999, 500]


@pytest.fixture
def names(device):
    """level, alpha_bar, seed and positions of three samples."""
    return torch.tensor(LEVELS, device=device), ALPHA_BAR.to(device), SEED, torch.tensor(FAR, device=device)


def row(names, i: int):
    level, alpha_bar, seed, positions = names
    return level[i : i + 1], alpha_bar, seed, positions[i : i + 1]


@triton.jit
def _words_kernel(seed_ptr, position_ptr, quad_ptr, out_ptr, STREAM: tl.constexpr, N: tl.constexpr):
    i = tl.arange(0, N)
    words = philox_words(tl.load(seed_ptr), tl.load(position_ptr), tl.load(quad_ptr + i), STREAM)
    for j in tl.static_range(4):
        tl.store(out_ptr + i * 4 + j, words[j].to(tl.int32, bitcast=True))


def words_of_the_kernel(seed: int, position: int, quads: list[int], stream: int, device) -> list[list[int]]:
    as_int64 = [torch.tensor(v, dtype=torch.int64, device=device) for v in (seed, position)]
    quad = torch.tensor(quads, dtype=torch.int32, device=device)
    out = torch.empty(len(quads), 4, dtype=torch.int32, device=device)
    _words_kernel[(1,)](*as_int64, quad, out, STREAM=stream, N=len(quads))
    return (out.long() & 0xFFFFFFFF).tolist()


class TestIntegers:
    @pytest.mark.parametrize(
        ("counter", "key", "answer"),
        [
            ((0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
            ((-1, -1, -1), -1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
            (
                (0x243F6A88, 0x13198A2E85A308D3, 0x03707344),
                0x299F31D0A4093822,
                "d16cfe09 94fdcceb 5001e420 24126ea1",
            ),
        ],
    )
    def test_they_are_the_published_known_answers(self, counter, key, answer, device):
        quad, position, stream = counter
        found = words_of_the_kernel(key, position, [quad], stream, device)
        assert found == [[int(word, 16) for word in answer.split()]]

    @pytest.mark.parametrize("seed", [0, 7, 2**62 + 3])
    @pytest.mark.parametrize("position", [0, 2**32 - 1, 2**32, 2**40 + 3])
    def test_they_are_the_reference_s_bits(self, seed, position, device):
        found = words_of_the_kernel(seed, position, list(range(8)), philox.STREAM_NOISE, device)
        expected = philox.words(seed, torch.tensor([position]), 32, philox.STREAM_NOISE)
        assert found == expected.view(8, 4).tolist()


class TestValues:
    @pytest.mark.parametrize("image", ODD_IMAGES, ids=str)
    @pytest.mark.parametrize("source", ["bytes", *LAYOUTS])
    @pytest.mark.parametrize("batch", [1, 3])
    def test_it_is_the_forward_process_at_each_sample_s_level(
        self, image, source, batch, names, fenced, device, monkeypatch
    ):
        monkeypatch.setattr(op, "BLOCK", BLOCK)
        x_0 = photos(batch, image).to(device)
        if source != "bytes":
            x_0 = laid(to_unit_range(x_0), source)
        level, alpha_bar, seed, positions = (
            v[:batch] if torch.is_tensor(v) and v.dim() and len(v) == 3 else v for v in names
        )
        layout = torch.contiguous_format if source == "contiguous" else torch.channels_last
        found, eps = noise_jump(
            fenced(x_0), level, alpha_bar, seed, positions, memory_format=layout, return_eps=True
        )
        a = per_sample(alpha_bar[level])
        kept, added = a.sqrt() * to_unit_range(x_0).double(), (1 - a).sqrt() * eps.double()
        assert found.is_contiguous(memory_format=layout)
        assert (eps - noise_for(seed, positions, image)).abs().max() <= 2e-6
        assert ((found - (kept + added)).abs() <= 4 * EPSILON * (kept.abs() + added.abs())).all()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_bfloat16_is_the_rounded_float64_result(self, layout, names, device):
        x_0 = photos(3, (3, 5, 7)).to(device)
        found, _ = noise_jump(x_0, *names, dtype=torch.bfloat16, memory_format=LAYOUTS[layout])
        exact, _ = ref.noise_jump(x_0, *names, dtype=torch.float64)
        assert found.dtype == torch.bfloat16
        assert found.is_contiguous(memory_format=LAYOUTS[layout])
        close = found.double().sub(exact).abs() <= 2e-6  # cancellation leaves less than the noise's own error
        assert_within_bf16_ulps(found[~close], exact[~close], BF16_ULPS)

    def test_bytes_and_their_floats_are_noised_alike(self, names, device):
        x_0 = photos(3, (3, 5, 7)).to(device)
        from_bytes, _ = noise_jump(x_0, *names)
        for layout in LAYOUTS:
            assert torch.equal(noise_jump(laid(to_unit_range(x_0), layout), *names)[0], from_bytes)

    def test_what_is_no_number_stays_where_it_was(self, names, device):
        x_0 = torch.zeros(3, 3, 5, 7, device=device)
        x_0[1, 2, 3, 4], x_0[2, 0, 0, 0] = float("nan"), float("inf")
        found, _ = noise_jump(x_0, *names)
        assert torch.equal(found.isnan(), x_0.isnan())
        assert torch.equal(found.isinf(), x_0.isinf())


class TestNoiseIsAFunctionOfItsName:
    IMAGE = (3, 5, 7)

    @pytest.mark.parametrize("block", [16, 64, 128])
    def test_whatever_the_block_size(self, block, names, device, monkeypatch):
        x_0 = photos(3, self.IMAGE).to(device)
        expected = noise_jump(x_0, *names, return_eps=True)
        monkeypatch.setattr(op, "BLOCK", block)
        monkeypatch.setattr(op, "WARPS", 1)
        found = noise_jump(x_0, *names, return_eps=True)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_in_any_batch_and_any_order(self, names, device):
        x_0 = photos(3, self.IMAGE).to(device)
        whole, _ = noise_jump(x_0, *names)
        for i in range(3):
            assert torch.equal(noise_jump(x_0[i : i + 1], *row(names, i))[0][0], whole[i])

    def test_in_either_layout(self, names, device):
        x_0 = photos(3, self.IMAGE).to(device)
        outputs = [noise_jump(x_0, *names, memory_format=layout)[0] for layout in LAYOUTS.values()]
        assert torch.equal(*outputs)

    def test_five_times_over(self, names, device):
        x_0 = photos(3, self.IMAGE).to(device)
        first, *others = [noise_jump(x_0, *names)[0] for _ in range(5)]
        assert all(torch.equal(first, other) for other in others)

    def test_with_the_seed_on_the_device(self, names, device):
        x_0 = photos(3, self.IMAGE).to(device)
        level, alpha_bar, seed, positions = names
        tensor = torch.tensor(seed - 2**64, device=device)
        assert torch.equal(
            noise_jump(x_0, level, alpha_bar, tensor, positions)[0], noise_jump(x_0, *names)[0]
        )

    def test_and_another_seed_position_or_sample_has_another(self, device):
        x_0 = torch.zeros(4, 3, 5, 7, device=device)
        level = torch.full((4,), 999, device=device)
        positions = torch.tensor([5, 6, 5 + 2**32, 5 + 2**40], device=device)
        both = [noise_jump(x_0, level, ALPHA_BAR.to(device), seed, positions)[0] for seed in (1, 1 + 2**32)]
        noise = torch.cat(both).flatten(1)
        assert torch.corrcoef(noise).fill_diagonal_(0).abs().max() < 0.5
        assert len(noise.unique()) > 0.99 * noise.numel()

    def test_and_is_kept_nowhere_unless_asked_for(self, names, device):
        assert noise_jump(photos(3, self.IMAGE).to(device), *names)[1] is None
