"""Every published format is recognised by what it holds, read strictly, and comes out again unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import published
import pytest
import torch
from published import ENCODER, UNET, Networks, networks, prefixed
from torch import Tensor

from diffsiam.encoder import EncoderConfig, ResNet
from diffsiam.unet import UNet
from diffsiam.weights import Assumed, WeightsError, load_unet, read_parts
from diffsiam.weights.converting import convert

FORMATS = {
    "pdae_model": "pdae diffusion model",
    "pdae_pair": "pdae pair",
    "diti": "diti",
    "diffae": "diffae",
    "guided_diffusion": "guided-diffusion",
    "legacy": "guided-diffusion",
    "flat_safetensors": "guided-diffusion",
    "native": "native",
    "simsiam": "simsiam",
    "diffusers": "diffusers",
    "exported": "exported model",
}


@pytest.fixture(scope="module")
def nets() -> Networks:
    return networks()


@pytest.fixture(scope="module")
def others() -> Networks:
    """The live weights beside the averages."""
    return networks(seed=50)


@pytest.fixture
def write(tmp_path, nets, others):
    return lambda name: published.WRITERS[name](tmp_path / "weights", nets, others)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_is_recognised_by_its_content_whatever_its_name(write, name):
    found = read_parts(write(name))
    assert found.format == FORMATS[name]
    assert found.format in found.describe()


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("simsiam", "diffusers")])
def test_the_averaged_diffusion_model_comes_out_bit_by_bit(write, nets, name):
    unet = load_unet(write(name))
    assert unet.config == UNET
    assert same(unet.state_dict(), nets.unet.state_dict())


@pytest.mark.parametrize("name", ["pdae_pair", "diti", "exported"])
def test_a_trained_pair_gives_decoder_and_encoder_too(write, nets, name):
    found = read_parts(write(name))
    assert same(found.decoder, nets.decoder.state_dict())
    assert same(found.encoder, nets.encoder.state_dict())
    assert (found.encoder_config.arch, found.encoder_config.width, found.dim) == ("resnet10", 4, 32)


def test_diti_s_simsiam_head_comes_under_our_names(write, nets):
    assert same(read_parts(write("diti")).simsiam, nets.head.state_dict())


def test_the_head_of_another_method_of_diti_is_left_out(tmp_path, nets, others):
    content = published.pair_content(nets, others)
    content["ssl_model"] = {"module.projector.net.0.weight": torch.zeros(2, 2)}
    torch.save(content, tmp_path / "simclr.pt")
    assert read_parts(tmp_path / "simclr.pt").simsiam is None


@pytest.mark.parametrize("px", [64, 128])
def test_pdae_s_own_encoder_tells_its_resolution(tmp_path, px):
    n = networks(encoder=EncoderConfig("pdae", px, dim=16))
    found = read_parts(published.pdae_pair(tmp_path / "pair.pt", n, n))
    assert found.encoder_config == EncoderConfig("pdae", px, 64, 16)
    assert found.contract.px == px
    assert same(found.encoder, n.encoder.state_dict())


def test_a_latent_model_s_pair_has_no_averages_and_says_so(tmp_path, nets, others):
    content = published.pair_content(nets, others)
    kept = {name: content[f"ema_{name}"] for name in ("encoder", "decoder")}
    torch.save(kept | {"latent_denoise_fn": {"layers.0.weight": torch.zeros(2, 2)}}, tmp_path / "latent.pt")
    found = read_parts(tmp_path / "latent.pt")
    assert same(found.decoder, nets.decoder.state_dict())
    assert "without a moving average" in found.describe()


def test_official_simsiam_encoders_take_imagenet_s_pixels(write):
    found = read_parts(write("simsiam"))
    assert found.encoder_config == EncoderConfig("resnet10", None, 4, 32, "imagenet")
    assert found.contract.mean == (0.485, 0.456, 0.406)
    assert not found.contract.is_of_diffusion
    assert found.unet is None
    with pytest.raises(WeightsError, match="holds no diffusion model"):
        load_unet(found.path)


def test_imagenet_s_stem_is_torchvision_s(awaken):
    torchvision = pytest.importorskip("torchvision")
    plain = awaken(torchvision.models.resnet18()).eval()
    plain.fc = torch.nn.Identity()
    ours = ResNet("resnet18", stem="imagenet").eval()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_are_taken_off(tmp_path, nets, wrapper):
    torch.save(prefixed(dict(nets.unet.state_dict()), wrapper), tmp_path / "wrapped.pt")
    assert same(load_unet(tmp_path / "wrapped.pt").state_dict(), nets.unet.state_dict())


def test_wrappers_inside_are_taken_off_and_the_counter_of_an_average_is_no_weight(tmp_path, nets):
    average = torch.optim.swa_utils.AveragedModel(nets.unet)
    average.module.middle_block = torch.compile(average.module.middle_block)
    state = average.state_dict()
    assert "n_averaged" in state
    assert any("._orig_mod." in key for key in state)
    torch.save(state, tmp_path / "average.pt")
    assert same(load_unet(tmp_path / "average.pt").state_dict(), nets.unet.state_dict())


def test_one_key_under_two_wrappers_is_refused(tmp_path, nets):
    state = dict(nets.unet.state_dict())
    torch.save(state | {"module.out.2.bias": state["out.2.bias"]}, tmp_path / "twice.pt")
    with pytest.raises(WeightsError, match="key out.2.bias is there twice"):
        read_parts(tmp_path / "twice.pt")


def test_a_learned_variance_is_kept_and_only_the_mean_s_channels_are_used(tmp_path):
    n = networks(replace(UNET, learn_sigma=True))
    unet = load_unet(published.guided_diffusion(tmp_path / "sigma.pt", n, n))
    assert unet.config.learn_sigma
    with torch.no_grad():
        assert unet.eval()(torch.randn(1, 3, 8, 8), torch.tensor([4])).shape == (1, 3, 8, 8)
    assert all(not key.startswith("shift_") for key in unet.state_dict())
    assert n.decoder.state_dict()["shift_out.2.weight"].shape[0] == 3


def test_improved_diffusion_s_added_time_and_convolutions_are_found_in_the_tensors(tmp_path):
    config = replace(UNET, time="add", resampling="conv")
    n = networks(config)
    unet = load_unet(published.guided_diffusion(tmp_path / "improved.pt", n, n))
    assert unet.config == config
    assert same(unet.state_dict(), n.unet.state_dict())


class TestThePair:
    """A frozen model loaded into the pair leaves exactly the four trainable groups missing."""

    def refused(self, path: Path, unet: dict, nets: Networks) -> str:
        content = published.pair_content(nets, nets)
        torch.save(content | {"ema_decoder": unet}, path)
        with pytest.raises(WeightsError) as refusal:
            read_parts(path)
        return str(refusal.value)

    def test_the_diffusion_model_alone_misses_the_four_groups_and_nothing_else(self, write, nets):
        found = read_parts(write("pdae_model"))
        assert found.decoder is None
        whole = {*nets.unet.state_dict(), *nets.decoder.state_dict()}
        missing = {key.split(".")[0] for key in whole - found.unet.keys()}
        assert missing == {"label_emb", "shift_middle_block", "shift_output_blocks", "shift_out"}
        assert found.unet.keys() <= whole

    @pytest.mark.parametrize(
        "group", ["label_emb.", "shift_middle_block.", "shift_output_blocks.", "shift_out."]
    )
    def test_a_pair_that_lacks_one_group_is_refused(self, tmp_path, nets, group):
        state = nets.states()
        pair = {k: v for k, v in (state["unet"] | state["decoder"]).items() if not k.startswith(group)}
        assert group in self.refused(tmp_path / "pair.pt", pair, nets)

    def test_a_pair_that_lacks_one_tensor_is_refused_by_its_name(self, tmp_path, nets):
        state = nets.states()
        pair = state["unet"] | state["decoder"]
        del pair["shift_middle_block.0.emb_z_layers.1.weight"]
        assert "shift_middle_block.0.emb_z_layers.1.weight" in self.refused(tmp_path / "pair.pt", pair, nets)

    def test_a_decoder_without_any_group_is_no_pair(self, tmp_path, nets):
        message = self.refused(tmp_path / "pair.pt", nets.states()["unet"], nets)
        assert "no gradient estimator" in message

    def test_an_unexpected_tensor_is_refused_by_its_name(self, tmp_path, nets):
        state = nets.states()
        pair = state["unet"] | state["decoder"] | {"shift_out.3.bias": torch.zeros(3)}
        assert "shift_out.3.bias is unexpected" in self.refused(tmp_path / "pair.pt", pair, nets)

    def test_an_encoder_of_another_width_than_label_emb_is_refused(self, tmp_path, nets):
        content = published.pair_content(nets, nets)
        other = published.awake(replace(ENCODER, dim=16).build())
        content["ema_encoder"] = prefixed(dict(other.state_dict()), "encoder.")
        torch.save(content, tmp_path / "pair.pt")
        with pytest.raises(WeightsError, match="z of different lengths"):
            read_parts(tmp_path / "pair.pt")


class TestConversion:
    @pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("simsiam", "diffusers")])
    @pytest.mark.parametrize("to", ["native", "pdae"])
    def test_a_round_trip_changes_no_bit(self, write, tmp_path, nets, name, to):
        parts, _ = convert(write(name), tmp_path / "converted", to)
        back = read_parts(tmp_path / "converted")
        assert same(back.unet, nets.unet.state_dict())
        assert back.config == parts.config == UNET
        for part in ("decoder", "encoder"):
            before, after = getattr(parts, part), getattr(back, part)
            assert (before is None) == (after is None)
            assert before is None or same(before, after)

    def test_diti_s_head_survives_pdae_s_format(self, write, tmp_path, nets):
        convert(write("diti"), tmp_path / "again", "pdae")
        assert same(read_parts(tmp_path / "again").simsiam, nets.head.state_dict())

    def test_what_is_written_for_pdae_is_what_pdae_reads(self, write, tmp_path, nets):
        convert(write("exported"), tmp_path / "pair.pt", "pdae")
        content = torch.load(tmp_path / "pair.pt", weights_only=True)
        states = nets.states()
        assert same(content["ema_decoder"], states["unet"] | states["decoder"])
        assert same(content["ema_encoder"], prefixed(states["encoder"], "encoder."))

    def test_simsiam_s_encoder_becomes_a_folder_that_keeps_its_pixels(self, write, tmp_path):
        parts, _ = convert(write("simsiam"), tmp_path / "folder")
        back = read_parts(tmp_path / "folder")
        assert same(back.encoder, parts.encoder)
        assert back.contract == parts.contract
        assert back.encoder_config.stem == "imagenet"

    def test_ddpm_s_design_is_refused_for_pdae(self, write, tmp_path):
        with pytest.raises(WeightsError, match="PDAE has scale-shift"):
            convert(write("diffusers"), tmp_path / "no.pt", "pdae")
        assert not (tmp_path / "no.pt").exists()

    def test_norms_of_different_sizes_are_refused_for_diffusers(self, write, tmp_path):
        with pytest.raises(WeightsError, match="one number of groups"):
            convert(write("pdae_model"), tmp_path / "no", "diffusers")
        assert not (tmp_path / "no").exists()

    def test_nothing_is_overwritten(self, write, tmp_path):
        (tmp_path / "there").write_text("mine")
        with pytest.raises(WeightsError, match="exists already"):
            convert(write("native"), tmp_path / "there")
        assert (tmp_path / "there").read_text() == "mine"

    def test_an_unknown_target_is_answered_with_the_known_ones(self, write, tmp_path):
        with pytest.raises(WeightsError, match="native, pdae, diffusers"):
            convert(write("native"), tmp_path / "x", "onnx")


class TestWhatTensorsCannotTell:
    def test_is_given_for_foreign_files(self, write):
        path = write("guided_diffusion")
        assert read_parts(path, Assumed(heads=4)).config == replace(UNET, heads=4)
        given = Assumed(head_channels=4, new_attention_order=True, dropout=0.1)
        expected = replace(UNET, head_channels=4, new_attention_order=True, dropout=0.1)
        assert read_parts(path, given).config == expected

    def test_is_recorded_in_our_own_and_a_contradiction_is_refused(self, write, tmp_path):
        convert(write("guided_diffusion"), tmp_path / "native", assumed=Assumed(heads=4))
        assert read_parts(tmp_path / "native").config.heads == 4
        assert read_parts(tmp_path / "native", Assumed(heads=4, dropout=0.2)).config.dropout == 0.2
        with pytest.raises(WeightsError, match="records heads = 4, 2 is asked for"):
            read_parts(tmp_path / "native", Assumed(heads=2))

    def test_is_in_diffusers_config(self, write):
        with pytest.raises(WeightsError, match="heads = 1, 2 is asked for"):
            read_parts(write("diffusers"), Assumed(heads=2))


class TestDiffAE:
    def test_its_autoencoders_are_refused_as_such(self, tmp_path, nets, others):
        content = published.diffae_content(nets, others)
        content["state_dict"]["ema_model.input_blocks.1.0.cond_emb_layers.1.weight"] = torch.zeros(2, 2)
        torch.save(content, tmp_path / "autoenc.ckpt")
        with pytest.raises(WeightsError, match="autoencoder of DiffAE"):
            read_parts(tmp_path / "autoenc.ckpt")

    def test_a_key_of_neither_the_model_nor_its_average_is_named(self, tmp_path, nets, others):
        content = published.diffae_content(nets, others)
        content["state_dict"]["criterion.weight"] = torch.zeros(2)
        torch.save(content, tmp_path / "odd.ckpt")
        with pytest.raises(WeightsError, match="criterion.weight is unexpected"):
            read_parts(tmp_path / "odd.ckpt")

    def test_without_an_average_the_live_weights_are_taken_and_it_is_said(self, tmp_path, nets, others):
        content = published.diffae_content(nets, others)
        state = {k: v for k, v in content["state_dict"].items() if not k.startswith("ema_model.")}
        torch.save(content | {"state_dict": state}, tmp_path / "live.ckpt")
        found = read_parts(tmp_path / "live.ckpt")
        assert same(found.unet, others.unet.state_dict())
        assert "without a moving average" in found.remark


def test_a_class_conditional_model_is_refused_as_such(tmp_path, nets):
    state = dict(nets.unet.state_dict()) | {"label_emb.weight": torch.zeros(10, 32)}
    torch.save(state, tmp_path / "classes.pt")
    with pytest.raises(WeightsError, match="conditioned on classes"):
        read_parts(tmp_path / "classes.pt")


def test_a_loaded_model_is_its_own_and_training_it_leaves_the_file_alone(write):
    path = write("native")
    unet: UNet = load_unet(path)
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(1)
    assert path.read_bytes() == before
