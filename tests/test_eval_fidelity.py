"""MSE, SSIM, LPIPS and FID beside independent computations, and the files that the last two need."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import linalg, ndimage
from torch import nn

from diffsiam.evaluation.fidelity import Lpips, frechet_distance, mse, ssim
from engine.edit import perceptual
from engine.edit.fidelity import fidelity
from engine.errors import UsageError


def two_sets(px=16):
    generator = torch.Generator().manual_seed(0)
    x = (0.4 * torch.randn(3, 3, px, px, generator=generator)).clamp(-1, 1)
    return x, (x + 0.2 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)


def test_mse_counts_pixels_from_0_to_1():
    assert mse(torch.ones(1, 3, 4, 4), -torch.ones(1, 3, 4, 4)).item() == 1.0


def test_ssim_is_wang_s():
    x, y = two_sets()

    def blur(a):
        # truncate: 5 pixels on each side, as the window of 11
        return ndimage.gaussian_filter(a, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]

    for n in range(3):
        maps = []
        for c in range(3):
            a, b = ((part[n, c].double().numpy() + 1) / 2 for part in (x, y))
            ma, mb = blur(a), blur(b)
            va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
            maps.append((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
        assert ssim(x, y)[n].item() == pytest.approx(np.mean(maps), abs=1e-6)
    assert ssim(x, x).tolist() == pytest.approx([1.0] * 3)


def test_ssim_of_images_smaller_than_its_window_is_refused():
    with pytest.raises(ValueError, match="11 px or more"):
        ssim(*two_sets(8))


def alexnet_and_heads():
    """AlexNet's five convolutions, made narrow, and heads that fit."""
    widths, generator = (3, 4, 6, 5, 4, 4), torch.Generator().manual_seed(0)
    sizes, trunk, heads = (11, 5, 3, 3, 3), {}, {}
    for n, place in enumerate((0, 3, 6, 8, 10)):
        shape = (widths[n + 1], widths[n], sizes[n], sizes[n])
        trunk[f"features.{place}.weight"] = torch.randn(shape, generator=generator) / 5
        trunk[f"features.{place}.bias"] = torch.randn(widths[n + 1], generator=generator) / 5
        heads[f"lin{n}.model.1.weight"] = torch.rand(1, widths[n + 1], 1, 1, generator=generator)
    return trunk, heads


def test_lpips_is_the_published_distance():
    trunk, heads = alexnet_and_heads()
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 6, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(6, 5, 3, 1, 1), nn.ReLU(), nn.Conv2d(5, 4, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU(),
    )  # fmt: skip
    layers.load_state_dict({name.removeprefix("features."): value for name, value in trunk.items()})
    x, y = two_sets(48)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    a, b = ((part - shift[:, None, None]) / scale[:, None, None] for part in (x, y))
    expected, head = 0, 0
    with torch.no_grad():
        for place, layer in enumerate(layers):
            a, b = layer(a), layer(b)
            if place in (1, 4, 7, 9, 11):
                difference = (F.normalize(a, dim=1) - F.normalize(b, dim=1)).square()
                weight = heads[f"lin{head}.model.1.weight"][0]
                expected, head = expected + (difference * weight).sum(1).mean((1, 2)), head + 1
    torch.testing.assert_close(Lpips(trunk, heads)(x, y), expected, rtol=1e-4, atol=1e-5)
    assert Lpips(trunk, heads)(x, x).tolist() == [0.0] * 3


def test_lpips_of_small_images_is_refused():
    with pytest.raises(ValueError, match="32 px or more"):
        Lpips(*alexnet_and_heads())(*two_sets(16))


def test_the_frechet_distance_is_the_formula_with_a_matrix_square_root():
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(300, 6)), 1.5 * generator.normal(size=(200, 6)) @ np.diag(range(1, 7)) + 2
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_a_measure_without_its_weights_says_what_it_needs(monkeypatch):
    for name in perceptual.FILES:
        monkeypatch.delenv(name, raising=False)
    found = fidelity(*two_sets())
    assert isinstance(found["MSE"], float)
    assert isinstance(found["SSIM"], float)
    assert "DIFFSIAM_ALEXNET=alexnet-owt-7be5be79.pth" in found["LPIPS"]
    assert "DIFFSIAM_INCEPTION=inception-2015-12-05.pt" in found["FID"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small stand-ins of the published files, which count as them."""
    trunk, heads = alexnet_and_heads()

    class Features(nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool) -> torch.Tensor:
            return x.float().mean(dim=(2, 3))

    paths = {name: tmp_path / f"{name}.pt" for name in perceptual.FILES}
    torch.save(trunk, paths[perceptual.TRUNK])
    torch.save(heads, paths[perceptual.HEADS])
    torch.jit.script(Features()).save(str(paths[perceptual.INCEPTION]))
    digests = {n: ("it", hashlib.sha256(p.read_bytes()).hexdigest()) for n, p in paths.items()}
    monkeypatch.setattr(perceptual, "FILES", digests)
    for name, path in paths.items():
        monkeypatch.setenv(name, str(path))
    return paths


def test_with_their_weights_all_are_measured(files):
    x, y = two_sets(48)
    found = fidelity(x, y)
    assert found["LPIPS"] == pytest.approx(float(Lpips(*alexnet_and_heads())(x, y).mean()))
    assert found["FID"] > 0
    assert found["FID's images"] == 3


def test_a_file_of_another_sha256_is_refused_before_it_is_read(files):
    files[perceptual.TRUNK].write_bytes(b"something else")
    with pytest.raises(UsageError, match="DIFFSIAM_ALEXNET: .* is not it: its sha256"):
        fidelity(*two_sets())


def test_a_file_that_is_not_there_and_half_of_lpips_are_errors(files, monkeypatch):
    monkeypatch.setenv(perceptual.HEADS, "")
    with pytest.raises(UsageError, match="LPIPS needs two files"):
        fidelity(*two_sets())
    files[perceptual.INCEPTION].unlink()
    with pytest.raises(UsageError, match="does not exist"):
        perceptual.load_inception()


def test_lpips_of_small_images_is_absent_with_a_reason(files):
    assert "16 px are smaller" in fidelity(*two_sets())["LPIPS"]
