"""The noise of whole batches at 128 px: the reference's integers, its normals, and its images."""

import pytest
import torch
import triton
import triton.language as tl
from cuda_cases import (
    ALPHA_BAR,
    BATCH,
    DTYPES,
    LAYOUTS,
    PX,
    SEED,
    laid,
    levels,
    per_sample,
    photos,
    positions,
)

from kernels import philox
from kernels.noise_jump.op import noise_jump
from kernels.noise_jump.ref import noise_for, to_unit_range
from kernels.philox_triton import philox_words

ELEMENTS = 3 * PX * PX
ULP = 2.0**-24  # half a unit in the last place of 1 in float32


@triton.jit
def _words_kernel(seed_ptr, position_ptr, out_ptr, quads, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    sample = tl.program_id(1)
    quad = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = philox_words(tl.load(seed_ptr), tl.load(position_ptr + sample), quad, STREAM)
    for j in tl.static_range(4):
        place = out_ptr + (sample * quads + quad) * 4 + j
        tl.store(place, words[j].to(tl.int32, bitcast=True), mask=quad < quads)


@pytest.fixture
def names():
    """level, alpha_bar, seed and positions of a batch."""
    return levels(), ALPHA_BAR.cuda(), SEED, positions()


def test_every_integer_of_a_batch_is_the_reference_s():
    quads = ELEMENTS // 4
    out = torch.empty(4, quads * 4, dtype=torch.int32, device="cuda")
    some = positions(4)
    _words_kernel[(triton.cdiv(quads, 256), 4)](
        philox.seed_tensor(SEED, some.device), some, out, quads, STREAM=philox.STREAM_NOISE, BLOCK=256
    )
    expected = philox.words(SEED, some.cpu(), ELEMENTS, philox.STREAM_NOISE)
    assert torch.equal(out.cpu().long() & 0xFFFFFFFF, expected)


def test_every_normal_of_a_batch_is_the_reference_s_to_two_millionths(names):
    _, eps = noise_jump(photos(), *names, return_eps=True)
    assert (eps.cpu() - noise_for(SEED, names[3].cpu(), (3, PX, PX))).abs().max() <= 2e-6


@pytest.mark.parametrize("source", ["bytes", *LAYOUTS])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_any_source_and_layout_come_out_at_their_levels(source, layout, dtype, names):
    level, alpha_bar, _, _ = names
    x_0 = photos()
    given = x_0 if source == "bytes" else laid(to_unit_range(x_0), source)
    form = {"dtype": DTYPES[dtype], "memory_format": LAYOUTS[layout]}
    found, eps = noise_jump(given, *names, **form, return_eps=True)
    a = per_sample(alpha_bar[level])
    kept, added = a.sqrt() * to_unit_range(x_0).double(), (1 - a).sqrt() * eps.double()
    rounding = 0 if dtype == "fp32" else 2.0**-8 * (kept + added).abs()
    assert found.dtype == DTYPES[dtype]
    assert found.is_contiguous(memory_format=LAYOUTS[layout])
    assert ((found - (kept + added)).abs() <= 4 * ULP * (kept.abs() + added.abs()) + rounding).all()


def test_the_same_image_comes_out_of_any_layout(names):
    x_0 = photos()
    outputs = [noise_jump(x_0, *names, memory_format=layout)[0] for layout in LAYOUTS.values()]
    assert torch.equal(*outputs)
    assert torch.equal(noise_jump(laid(to_unit_range(x_0), "contiguous"), *names)[0], outputs[0])


@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_same_noise_comes_to_a_sample_in_any_split_of_the_batch(size, names):
    x_0 = photos()
    level, alpha_bar, seed, places = names
    whole, _ = noise_jump(x_0, *names)
    parts = [
        noise_jump(x_0[i : i + size], level[i : i + size], alpha_bar, seed, places[i : i + size])[0]
        for i in range(0, BATCH, size)
    ]
    assert torch.equal(torch.cat(parts), whole)
    backwards, _ = noise_jump(x_0.flip(0), level.flip(0), alpha_bar, seed, places.flip(0))
    assert torch.equal(backwards.flip(0), whole)


def test_five_runs_are_one(names):
    x_0 = photos()
    first, *others = [noise_jump(x_0, *names)[0] for _ in range(5)]
    assert all(torch.equal(other, first) for other in others)


def test_noise_is_normal_and_neighbours_are_strangers(names):
    _, eps = noise_jump(photos(), *names, return_eps=True)
    flat = eps.flatten(1).double()
    n = flat.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((flat**power).mean().item() - moment) < 5 * (variance / n) ** 0.5
    correlation = torch.corrcoef(flat).fill_diagonal_(0)
    assert correlation.abs().max() < 6 / ELEMENTS**0.5
