"""diffusers' UNet2DModel: what it computes, our U-Net computes from its files; and it goes back unchanged."""

from __future__ import annotations

import json

import published
import pytest
import torch
from published import DDPM, Networks, awake, networks
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsiam.decoder import Decoder
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import Assumed, ImageContract, WeightsError, load_unet, read_parts
from diffsiam.weights.converting import convert
from diffsiam.weights.formats.diffusers_unet import config_from, config_to

diffusers = pytest.importorskip("diffusers")

CIFAR = {  # google/ddpm-cifar10-32, at an eighth of its width
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
DESIGNS = {
    "ddpm-cifar10-32": CIFAR,
    "several heads, padding, a learned variance, one block": {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
        "out_channels": 6,
        "layers_per_block": 1,
    },
    "guided diffusion's design": {
        "down_block_types": (
            "ResnetDownsampleBlock2D",
            "AttnDownBlock2D",
            "ResnetDownsampleBlock2D",
            "DownBlock2D",
        ),
        "up_block_types": ("ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 8,
    },
}
TIMES = torch.tensor([3, 900])


def model(design: dict, **more: object) -> torch.nn.Module:
    sizes = {"sample_size": 32, "block_out_channels": (16, 32, 32, 32), "norm_num_groups": 8}
    return awake(diffusers.UNet2DModel(**{**sizes, **design, **more}))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def nets() -> Networks:
    return networks()


@pytest.fixture
def write(tmp_path, nets):
    return lambda name: published.WRITERS[name](tmp_path / "weights", nets, nets)


@pytest.mark.parametrize("name", DESIGNS)
def test_our_u_net_computes_what_diffusers_computes_to_1e_5_in_fp32(tmp_path, name):
    theirs = model(DESIGNS[name])
    theirs.save_pretrained(tmp_path)
    ours, x = load_unet(tmp_path).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = theirs(x, TIMES).sample[:, :3], ours(x, TIMES)
    assert expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", DESIGNS)
def test_what_we_write_diffusers_loads_bit_by_bit(tmp_path, name):
    theirs = model(DESIGNS[name])
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "ours", "diffusers")
    again = diffusers.UNet2DModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False)
    assert same(theirs.state_dict(), again.state_dict())


@pytest.mark.parametrize("heads", [1, 4])
def test_a_guided_diffusion_model_computes_the_same_inside_diffusers(tmp_path, heads):
    config = UNetConfig(16, (1, 2, 2), blocks=1, attention=(2,), heads=heads, groups=8)
    ours, x = awake(UNet(config)), torch.randn(2, 3, 16, 16)
    torch.save(ours.state_dict(), tmp_path / "guided.pt")
    assumed = Assumed(heads=heads)
    parts = read_parts(tmp_path / "guided.pt", assumed)
    assert parts.config.groups is None  # 16 channels in four groups of four: tensors cannot tell eight
    published.save_unet(ours, tmp_path / "native.safetensors", contract=ImageContract(px=16))
    convert(tmp_path / "native.safetensors", tmp_path / "theirs", "diffusers")
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path / "theirs", low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(x, TIMES).sample, ours(x, TIMES), rtol=1e-5, atol=1e-5)


def test_google_s_ddpm_cifar10_32_has_its_size_and_a_config_that_comes_back():
    stated = CIFAR | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32}
    config = config_from(json.loads(json.dumps(stated)))
    with torch.device("meta"):
        theirs, ours = diffusers.UNet2DModel(sample_size=32, **stated), UNet(config)
    assert (
        sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == 35_746_307
    )
    assert config_from(json.loads(json.dumps(config_to(config, 32)))) == config


def test_the_trainable_decoder_stands_on_it(tmp_path):
    model(CIFAR).save_pretrained(tmp_path)
    frozen = load_unet(tmp_path).eval()
    decoder = Decoder(frozen.config, 16)
    decoder.start_from(frozen)
    x, z = torch.randn(2, 3, 32, 32), torch.randn(2, 16, requires_grad=True)
    with torch.no_grad():
        features = frozen.encode(x, TIMES)
    assert (decoder(features, z) == 0).all()
    awake(decoder)
    g = decoder(features, z)
    g.square().sum().backward()
    assert g.shape == x.shape
    assert z.grad.any()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in decoder.parameters())


def test_two_heads_over_widths_that_differ_are_refused_for_diffusers(tmp_path):
    config = UNetConfig(16, (1, 2, 4), blocks=1, attention=(2,), heads=2, groups=8)
    published.save_unet(awake(UNet(config)), tmp_path / "native")
    with pytest.raises(WeightsError, match="fixes the width of a head"):
        convert(tmp_path / "native", tmp_path / "no", "diffusers")


def test_the_folder_tells_architecture_resolution_and_schedule(write):
    found = read_parts(write("diffusers"))
    assert found.config == DDPM
    assert found.contract == ImageContract(px=16, steps=1000, beta_start=1e-4, beta_end=0.02)


def test_the_file_inside_finds_its_description_beside_it_and_is_refused_without(write):
    folder = write("diffusers")
    file = folder / "diffusion_pytorch_model.safetensors"
    assert load_unet(file).config == DDPM
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="give the folder"):
        load_unet(file)


def test_a_pipeline_s_folder_and_torch_s_format_are_read_too(write, tmp_path):
    folder = write("diffusers")
    expected = load_unet(folder).state_dict()
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    (folder / "scheduler_config.json").unlink()
    unet = folder.rename(pipeline / "unet")
    (pipeline / "model_index.json").write_text("{}")
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(published.SCHEDULER))
    file = unet / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), unet / "diffusion_pytorch_model.bin")
    file.unlink()
    assert same(load_unet(pipeline).state_dict(), expected)
    assert read_parts(pipeline).contract.steps == 1000


def test_attention_under_its_old_names_is_the_same(write):
    folder = write("diffusers")
    expected, file = load_unet(folder).state_dict(), folder / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    save_file(state, file)
    assert same(load_unet(folder).state_dict(), expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("center_input_sample", True),
        ("time_embedding_type", "fourier"),
        ("act_fn", "gelu"),
        ("num_class_embeds", 10),
        ("mid_block_type", None),
        ("in_channels", 1),
        ("down_block_types", ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"]),
        ("down_block_types", ["SkipDownBlock2D", "AttnDownBlock2D", "DownBlock2D"]),
        ("block_out_channels", [8, 12, 16]),
    ],
)
def test_what_our_u_net_has_not_is_refused_by_name(write, key, value):
    folder = write("diffusers")
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {key: value}))
    with pytest.raises(WeightsError, match=r"config.json|widths"):
        read_parts(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("beta_schedule", "squaredcos_cap_v2"), ("prediction_type", "v_prediction")]
)
def test_another_kind_of_noise_is_refused(tmp_path, nets, key, value):
    folder = published.diffusers(tmp_path / "d", nets, nets, published.SCHEDULER | {key: value})
    with pytest.raises(WeightsError, match=key):
        read_parts(folder)


def test_diffusers_comes_back_as_it_was_and_native_keeps_everything(write, tmp_path):
    folder = write("diffusers")
    convert(folder, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "again", "diffusers")
    first, native, again = (read_parts(p) for p in (folder, tmp_path / "native", tmp_path / "again"))
    assert first.config == native.config == again.config
    assert first.contract == native.contract == again.contract
    assert same(first.unet, native.unet)
    assert same(first.unet, again.unet)
