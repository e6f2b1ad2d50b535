"""Weights files: their tensors tell the architecture, wrong ones are named, hostile ones run nothing."""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import (
    WeightsError,
    first_mismatch,
    infer_config,
    load_unet,
    read_parts,
    save_unet,
    sha256_of,
)

TINY = UNetConfig(8, (1, 2, 3), blocks=1, attention=(2,))
ARCHITECTURES = {
    "diffae-128": UNetConfig(128, (1, 1, 2, 3, 4), blocks=2, attention=(8,)),
    "pdae-64": UNetConfig(64, (1, 2, 4, 8), blocks=2, attention=(4,)),
    "diffae-64": UNetConfig(64, (1, 2, 4, 8), blocks=2, attention=(4,), embedding=512),
    "cifar": UNetConfig(128, (1, 2, 2, 2), blocks=2, attention=(2,)),
    "three-blocks": UNetConfig(32, (1, 2, 3), blocks=3, attention=(2, 4), learn_sigma=True),
    "three-blocks-without-attention": UNetConfig(32, (2, 1), blocks=3, attention=()),
    "everywhere": UNetConfig(32, (1, 2), blocks=1, attention=(1, 2)),
}


@pytest.fixture
def unet(awaken) -> UNet:
    return awaken(UNet(TINY))


@pytest.fixture
def file(tmp_path, unet) -> Path:
    save_unet(unet, tmp_path / "unet.safetensors")
    return tmp_path / "unet.safetensors"


def write(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def same(a: UNet, b: UNet) -> bool:
    return first_mismatch(a.state_dict(), b.state_dict()) is None and all(
        torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items()
    )


class TestTheArchitecture:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_it_is_found_in_the_tensors(self, name):
        with torch.device("meta"):
            state = UNet(ARCHITECTURES[name]).state_dict()
        assert infer_config(state) == ARCHITECTURES[name]

    def test_heads_and_dropout_leave_no_trace_and_are_given(self, unet, file):
        assert infer_config(unet.state_dict(), heads=4, dropout=0.1) == replace(TINY, heads=4, dropout=0.1)
        torch.save(unet.state_dict(), file)
        loaded = load_unet(file, heads=4, dropout=0.1)
        assert (loaded.config.heads, loaded.config.dropout) == (4, 0.1)

    def test_another_kind_of_model_is_refused(self):
        with pytest.raises(WeightsError, match="not a guided-diffusion U-Net"):
            infer_config({"conv1.weight": torch.zeros(1)})

    def test_a_way_down_without_its_way_up_is_refused(self, unet):
        state = {
            key: value for key, value in unet.state_dict().items() if not key.startswith("output_blocks.5.")
        }
        with pytest.raises(WeightsError, match="6 input blocks, 5 output blocks"):
            infer_config(state)


class TestFilesThatLoad:
    def test_our_own_give_every_bit_back(self, unet, file):
        loaded = load_unet(file)
        assert same(loaded, unet)
        assert loaded.config == TINY

    def test_half_precision_ones_load_as_single_precision(self, tmp_path, unet):
        save_unet(unet, tmp_path / "half.safetensors", torch.bfloat16)
        state = load_unet(tmp_path / "half.safetensors").state_dict()
        for key, value in unet.state_dict().items():
            assert torch.equal(state[key], value.bfloat16().float())

    def test_a_bare_state_dict_does(self, tmp_path, unet):
        assert same(load_unet(write(tmp_path / "guided_diffusion.pt", unet.state_dict())), unet)

    def test_of_pdae_s_pretrained_model_the_moving_average_is_taken(self, tmp_path, unet, awaken):
        raw = awaken(UNet(TINY), seed=1).state_dict()
        content = {
            "denoise_fn": raw,
            "ema_denoise_fn": unet.state_dict(),
            "optimizer": {"state": {}},
            "step": 7,
        }
        assert same(load_unet(write(tmp_path / "checkpoint.pt", content)), unet)

    def test_the_loaded_model_computes_the_same(self, unet, file):
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
        with torch.no_grad():
            assert torch.equal(load_unet(file).eval()(x, t), unet.eval()(x, t))


class TestFilesThatDoNotFit:
    def refusal(self, path: Path, state: dict) -> str:
        """The message with which a file holding ``state`` is refused."""
        with pytest.raises(WeightsError) as refused:
            load_unet(write(path, state))
        return str(refused.value)

    def test_the_first_missing_key_is_named(self, tmp_path, unet):
        state = unet.state_dict()
        del state["middle_block.0.out_layers.0.bias"], state["out.0.bias"]
        message = self.refusal(tmp_path / "short.pt", state)
        assert message == f"{tmp_path / 'short.pt'}: key middle_block.0.out_layers.0.bias (24,) is missing"

    def test_the_first_key_of_another_shape_is_named_with_both_shapes(self, tmp_path, unet):
        state = unet.state_dict() | {"out.2.bias": torch.zeros(4)}
        message = self.refusal(tmp_path / "wide.pt", state)
        assert message.endswith("key out.2.bias has shape (4,), expected (3,)")

    def test_a_key_too_many_is_named(self, tmp_path, unet):
        state = unet.state_dict() | {"out.3.bias": torch.zeros(3)}
        assert self.refusal(tmp_path / "more.pt", state).endswith("key out.3.bias is unexpected")

    def test_state_dicts_that_fit_have_no_mismatch(self, unet):
        assert first_mismatch(unet.state_dict(), UNet(TINY).state_dict()) is None

    @pytest.mark.parametrize(
        "content", [{}, {"encoder": {"w": torch.zeros(3)}, "step": 1}, {"w": torch.zeros(3)}, {"step": 1}]
    )
    def test_what_is_no_flat_state_dict_is_said_to_be_none(self, tmp_path, content):
        assert "holds no flat state dict" in self.refusal(tmp_path / "other.pt", content)


class TestFilesThatCannotBeRead:
    def refusal(self, path: Path) -> str:
        with pytest.raises(WeightsError) as refused:
            read_parts(path)
        message = str(refused.value)
        assert message.startswith(f"{path}: ")
        assert "\n" not in message
        return message

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    @pytest.mark.parametrize("protocol", [2, 4])
    def test_a_hostile_pickle_is_refused_and_runs_nothing(self, tmp_path, protocol):
        proof = tmp_path / "it_ran"

        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(proof),)

        plain, zipped = tmp_path / "plain.pt", tmp_path / "zipped.pt"
        plain.write_bytes(pickle.dumps({"time_embed.0.weight": Hostile()}, protocol))
        torch.save({"time_embed.0.weight": Hostile()}, zipped, pickle_protocol=protocol)
        for path in (plain, zipped):
            assert "refused, it is not plain tensors" in self.refusal(path)
        assert not proof.exists()
        pickle.loads(plain.read_bytes())  # the file is as hostile as it should be
        assert proof.exists()

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
    @pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
    def test_a_truncated_file_is_one_clear_error(self, tmp_path, unet, file, suffix, kept):
        whole = file if suffix == ".safetensors" else write(tmp_path / "whole.pt", unet.state_dict())
        content = whole.read_bytes()
        part = tmp_path / f"part{suffix}"
        part.write_bytes(content[: int(kept * len(content))])
        message = self.refusal(part)
        assert "cannot be read as weights" in message or "not plain tensors" in message

    def test_a_missing_file_is_said_to_be_missing(self, tmp_path):
        assert self.refusal(tmp_path / "none.pt").endswith("no such file")

    def test_a_text_file_is_refused(self, tmp_path):
        (tmp_path / "notes.pt").write_text("these are not weights")
        self.refusal(tmp_path / "notes.pt")


def test_the_digest_of_a_file_is_its_sha256(file):
    assert sha256_of(file) == hashlib.sha256(file.read_bytes()).hexdigest()
