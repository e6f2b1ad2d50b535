"""What an operation cannot take it refuses, saying what was wrong."""

import pytest
import torch
from kernel_cases import ALPHA_BAR, SHIFT, WEIGHT

from kernels import backend, tensors
from kernels.adagn_silu.op import adagn_silu
from kernels.noise_jump.op import noise_jump
from kernels.recon_loss.op import recon_loss
from kernels.subset_mask.op import subset_mask

PHOTOS = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
IMAGES = torch.zeros(2, 3, 4, 5)
INDEX = torch.tensor([1, 2])
SPLIT = torch.tensor([1, 1, 2])
FEATURES = torch.zeros(2, 3)
SPREAD = torch.zeros(2, 3, 4, 10)[..., ::2]  # neither contiguous nor channels_last


@pytest.fixture(autouse=True)
def kernels_that_would_run_here(monkeypatch):
    """Arguments are judged before any kernel starts, so tensors of the CPU do on a GPU machine too."""
    monkeypatch.setattr(backend, "INTERPRETED", True)


def jump(x_0=PHOTOS, level=INDEX, alpha_bar=ALPHA_BAR, seed=7, positions=INDEX, **options):
    return noise_jump(x_0, level, alpha_bar, seed, positions, **options)


def mask(z=FEATURES, k=INDEX, subset_of=SPLIT, **options):
    return subset_mask(z, k, subset_of, **options)


def loss(x_0=PHOTOS, eps_theta=IMAGES, g=IMAGES, level=INDEX, alpha_bar=ALPHA_BAR, shift=SHIFT, **options):
    return recon_loss(x_0, eps_theta, g, level, INDEX, alpha_bar, shift, WEIGHT, 7, INDEX, **options)


def norm(x=None, groups=1, weight=None, bias=None, **options):
    x = IMAGES.contiguous(memory_format=torch.channels_last) if x is None else x
    weight, bias = torch.ones(3) if weight is None else weight, torch.zeros(3) if bias is None else bias
    return adagn_silu(x, groups, weight, bias, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jump(x_0=IMAGES[0]), "x_0 must have 4 dimensions"),
        (lambda: jump(x_0=IMAGES.half()), "x_0 must be uint8, float32 or bfloat16"),
        (lambda: jump(x_0=PHOTOS.transpose(1, 2)), "uint8 x_0 must be contiguous"),
        (lambda: jump(x_0=SPREAD), "x_0 must be contiguous or channels_last"),
        (lambda: jump(level=INDEX.int()), r"level must be \(2,\) int64"),
        (lambda: jump(positions=torch.arange(3)), r"positions must be \(2,\) int64"),
        (lambda: jump(positions=torch.arange(4)[::2]), "contiguous"),
        (lambda: jump(alpha_bar=ALPHA_BAR[None]), "alpha_bar must be"),
        (lambda: jump(dtype=torch.float16), "dtype must be float32 or bfloat16"),
        (lambda: jump(memory_format=torch.preserve_format), "memory_format must be"),
        (lambda: jump(seed=torch.tensor(7.0)), "seed must be an int or a 0-d int64"),
        (lambda: jump(level=INDEX.to("meta")), "level is on meta, the others are on"),
        (lambda: mask(z=IMAGES), r"z must be \(B, d\)"),
        (lambda: mask(z=torch.zeros(3, 2).T), "z must be .* contiguous"),
        (lambda: mask(z=torch.zeros(2, 3, dtype=torch.int64)), "z must be .* float"),
        (lambda: mask(k=torch.tensor([1])), r"k must be \(2,\)"),
        (lambda: mask(subset_of=SPLIT[:2]), r"subset_of must be \(3,\)"),
        (lambda: mask(subset_of=SPLIT.to("meta")), "subset_of is on meta"),
        (lambda: mask(mode="both"), "'hierarchical' or 'sequential', got 'both'"),
        (lambda: loss(g=IMAGES[:1]), "eps_theta is .* g is"),
        (lambda: loss(x_0=PHOTOS[:, :3]), r"x_0 must be \(2, 4, 5, 3\)"),
        (lambda: loss(g=IMAGES.half()), "g must be float32, bfloat16 or float64"),
        (lambda: loss(g=SPREAD), "g must be contiguous or channels_last"),
        (lambda: loss(x_0=SPREAD), "x_0 must be contiguous or channels_last"),
        (lambda: loss(eps_theta=torch.zeros(2, 3, 8, 5)[:, :, ::2]), "evenly spaced pixels"),
        (lambda: loss(level=INDEX[:1]), r"level must be \(2,\)"),
        (lambda: loss(shift=SHIFT.half()), "shift must be"),
        (lambda: loss(shift=SHIFT.to("meta")), "shift is on meta"),
        (lambda: norm(x=IMAGES[0]), r"x must be \(B, C, H, W\)"),
        (lambda: norm(x=IMAGES), "x must be channels_last"),
        (lambda: norm(x=IMAGES.half().contiguous(memory_format=torch.channels_last)), "x must be float32"),
        (lambda: norm(groups=2), "2 groups do not divide 3 channels"),
        (lambda: norm(weight=torch.ones(4)), r"weight must be \(3,\)"),
        (lambda: norm(bias=torch.ones(6)[::2]), "bias must be contiguous"),
        (lambda: norm(time=torch.zeros(2, 3)), r"time must be \(2, 6\)"),
        (lambda: norm(z=torch.zeros(6, 2).T), "z must be contiguous"),
        (lambda: norm(z=torch.zeros(2, 6, device="meta")), "z is on meta"),
    ],
)
def test_it_says_what_was_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_sample_beyond_32_bit_offsets_is_refused():
    with pytest.raises(ValueError, match=r"2\^31 elements"):
        tensors.require_dense("op", "x", torch.empty(1, 2, 2**15, 2**15, device="meta"))


class TestBackend:
    CPU, CUDA = torch.device("cpu"), torch.device("cuda")

    @pytest.mark.parametrize(
        ("asked", "device", "interpreted", "installed", "expected"),
        [
            ("auto", CUDA, False, True, "triton"),
            ("auto", CUDA, False, False, "reference"),
            ("auto", CPU, False, True, "reference"),
            ("auto", CPU, True, True, "reference"),
            ("triton", CUDA, False, True, "triton"),
            ("triton", CPU, True, True, "triton"),
            ("reference", CUDA, False, True, "reference"),
            ("triton", torch.device("meta"), False, True, "reference"),
        ],
    )
    def test_it_is_the_one_that_was_asked_for(
        self, asked, device, interpreted, installed, expected, monkeypatch
    ):
        monkeypatch.setattr(backend, "INTERPRETED", interpreted)
        monkeypatch.setattr(backend, "_INSTALLED", installed)
        backend.set_backend(asked)
        name, reason = backend.chosen(device)
        assert name == expected
        assert reason

    @pytest.mark.parametrize(("interpreted", "installed"), [(False, True), (True, False)])
    def test_triton_where_it_cannot_run_is_an_error(self, interpreted, installed, monkeypatch):
        monkeypatch.setattr(backend, "INTERPRETED", interpreted)
        monkeypatch.setattr(backend, "_INSTALLED", installed)
        with pytest.raises(ValueError, match="kernels.backend=triton: "):
            backend.chosen(self.CPU)

    def test_an_unknown_name_is_refused(self):
        with pytest.raises(ValueError, match="auto, triton, reference, got 'cuda'"):
            backend.set_backend("cuda")

    def test_a_layout_that_a_kernel_does_not_take_goes_to_the_reference_only_under_auto(self, monkeypatch):
        x = torch.zeros(1)
        monkeypatch.setattr(backend, "chosen", lambda device: ("triton", ""))
        assert backend.use_triton(x, suits=False)
        backend.set_backend("auto")
        assert not backend.use_triton(x, suits=False)
        assert backend.use_triton(x)
