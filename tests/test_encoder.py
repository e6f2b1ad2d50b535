"""Encoders have the published tensors and functions, and features depend on nothing but the image."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import resnet

from diffsiam.attention import AttentionBlock
from diffsiam.encoder import PDAEEncoder, ResNet, build_encoder, encode_images

PLAIN = {
    "resnet10": (resnet.BasicBlock, [1, 1, 1, 1], 512),
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2], 512),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3], 2048),
}


def torchvision_resnet(arch: str, dim: int) -> nn.Module:
    """torchvision's network with the CIFAR stem, and a linear layer where the pooled width is not d."""
    block, depths, width = PLAIN[arch]
    plain = torchvision.models.ResNet(block, depths)
    plain.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    plain.maxpool = nn.Identity()
    plain.fc = nn.Identity() if width == dim else nn.Linear(width, dim)
    return plain


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("arch", "px", "parameters"),
    [
        ("resnet10", 32, 4_898_112),
        ("resnet18", 32, 11_168_832),
        ("resnet50", 32, 23_500_352 + 2048 * 512 + 512),
        ("pdae", 64, 1_487_104),
        ("pdae", 128, 3_914_240),
    ],
)
def test_the_published_encoders_have_their_published_sizes(arch, px, parameters):
    with torch.device("meta"):
        assert size(build_encoder(arch, px)) == parameters


@pytest.mark.parametrize(
    ("arch", "dim"), [("resnet10", 512), ("resnet10", 24), ("resnet18", 512), ("resnet50", 32)]
)
def test_a_resnet_is_torchvision_s_with_the_cifar_stem(arch, dim):
    plain = torchvision_resnet(arch, dim)
    with torch.device("meta"):
        ours = ResNet(arch, dim=dim)
    ours.load_state_dict({key: value.clone() for key, value in plain.state_dict().items()}, assign=True)
    x = torch.randn(3, 3, 16, 16)
    for training in (True, False):
        with torch.no_grad():
            found, expected = ours.train(training)(x), plain.train(training)(x)
        assert found.shape == (3, dim)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_resnet10_has_the_published_keys():
    with torch.device("meta"):
        keys = ResNet("resnet10").state_dict().keys()
    modules = {key.rsplit(".", 1)[0] for key in keys}
    block = {"conv1", "bn1", "conv2", "bn2"}
    assert modules == {
        "conv1",
        "bn1",
        *(f"layer{stage}.0.{part}" for stage in (1, 2, 3, 4) for part in block),
        *(f"layer{stage}.0.downsample.{part}" for stage in (2, 3, 4) for part in (0, 1)),
    }


def test_a_narrow_resnet_has_stages_of_its_own_widths():
    encoder = ResNet("resnet10", width=4, dim=10)
    widths = [encoder.get_submodule(f"layer{stage}.0.conv1").out_channels for stage in (1, 2, 3, 4)]
    assert widths == [4, 8, 16, 32]
    assert encoder(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("arch", ["resnet10", "resnet50"])
def test_the_residual_branches_of_a_new_resnet_are_silent(arch):
    encoder = ResNet(arch, width=4, dim=32)
    last = "bn2" if arch == "resnet10" else "bn3"
    norms = {
        name: m for name, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d) and "layer" in name
    }
    silent = {name for name, norm in norms.items() if not norm.weight.any()}
    assert silent == {name for name in norms if name.endswith(last)}


def test_convolutions_start_with_the_variance_of_their_fan_out():
    weight = ResNet("resnet10").layer2[0].conv1.weight  # 64 -> 128 channels, 3 x 3
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


class TestPDAEEncoder:
    # By index in the published sequence: convolutions and their widths, norms, attention block, linear layer.
    LAYERS = {
        64: ({0: 64, 3: 128, 7: 128, 10: 128}, (1, 5, 8, 11), 4, 14),
        128: ({0: 64, 3: 128, 6: 256, 10: 256, 13: 256}, (1, 4, 8, 11, 14), 7, 17),
    }

    @pytest.mark.parametrize("px", [64, 128])
    def test_its_layers_stand_where_published(self, px):
        convolutions, norms, attention, linear = self.LAYERS[px]
        with torch.device("meta"):
            state = PDAEEncoder(px).state_dict()
        named = [
            *convolutions,
            *norms,
            linear,
            *(f"{attention}.{part}" for part in ("norm", "qkv", "proj_out")),
        ]
        assert set(state) == {f"{name}.{parameter}" for name in named for parameter in ("weight", "bias")}
        assert {i: state[f"{i}.weight"].shape[0] for i in convolutions} == convolutions
        assert state[f"{linear}.weight"].shape == (512, convolutions[max(convolutions)] * 4 * 4)

    @pytest.mark.parametrize("px", [64, 128])
    def test_its_attention_has_four_heads_and_looks_at_16_px(self, px):
        encoder, seen = PDAEEncoder(px, dim=8), []
        (attention,) = (module for module in encoder if isinstance(module, AttentionBlock))
        attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[2:]))
        encoder(torch.randn(1, 3, px, px))
        assert attention.heads == 4
        assert seen == [(16, 16)]

    def test_its_features_do_not_depend_on_the_batch(self):
        encoder, x = PDAEEncoder(64, dim=8).train(), torch.randn(3, 3, 64, 64)
        assert torch.allclose(encoder(x), torch.cat([encoder(part) for part in x.split(1)]), atol=1e-5)

    def test_another_resolution_is_refused(self):
        with pytest.raises(ValueError, match="64 and 128 px, not 32"):
            PDAEEncoder(32)


class TestEncodeImages:
    @pytest.fixture
    def encoder(self, awaken):
        encoder = awaken(ResNet("resnet10", width=4, dim=6))
        encoder(torch.randn(8, 3, 8, 8))  # batch norm statistics that are not the initial ones
        return encoder

    def test_features_do_not_depend_on_the_batch_size(self, encoder):
        images = torch.randn(7, 3, 8, 8)
        z = encode_images(encoder, images)
        assert z.shape == (7, 6)
        assert torch.allclose(encode_images(encoder, images, batch_size=3), z, atol=1e-6)
        assert torch.allclose(encode_images(encoder, images[2:3]), z[2:3], atol=1e-6)

    @pytest.mark.parametrize("training", [True, False])
    def test_it_leaves_the_encoder_as_it_was(self, encoder, training):
        encoder.train(training)
        before = {key: value.clone() for key, value in encoder.state_dict().items()}
        z = encode_images(encoder, torch.randn(4, 3, 8, 8))
        assert encoder.training is training
        assert not z.requires_grad
        assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())

    def test_features_are_single_precision_whatever_the_encoder_is(self, encoder):
        assert encode_images(encoder.double(), torch.randn(2, 3, 8, 8).double()).dtype == torch.float32


@pytest.mark.parametrize(("arch", "px"), [("resnet10", 16), ("pdae", 64)])
def test_normalised_features_vary_by_one_in_a_batch_and_are_each_image_s_own_afterwards(arch, px):
    torch.manual_seed(0)
    encoder = build_encoder(arch, px, 8, 24, norm="batch")
    x = torch.rand(16, 3, px, px) * 2 - 1
    z = encoder(x)
    assert torch.allclose(z.mean(dim=0), torch.zeros(24), atol=1e-5)
    assert torch.allclose(z.std(dim=0, correction=0), torch.ones(24), atol=0.05)
    encoder.eval()
    with torch.no_grad():
        assert torch.allclose(encoder(x)[:1], encoder(x[:1]), atol=1e-5)


def test_the_norm_of_the_features_adds_no_parameter():
    names = [
        {n for n, _ in build_encoder("resnet10", 16, 8, 24, norm).named_parameters()}
        for norm in ("none", "batch")
    ]
    assert names[0] == names[1]
