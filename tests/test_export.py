"""What ``diffsiam export`` writes, ``diffsiam.load`` gives back: the averaged networks of a run in use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from published import UNET, awake, networks
from training import TINY, finish, start, tensors, write_config
from typer.testing import CliRunner

import diffsiam
from diffsiam.evaluation.profile import eval_noise
from diffsiam.sampling import guided, sample
from diffsiam.unet import UNet, UNetConfig
from diffsiam.weights import ImageContract, WeightsError, save_unet, sha256_of
from engine.cli import app
from engine.data.rooms import Rooms
from engine.errors import UsageError
from engine.export import export_run
from engine.model_card import measured

ARCHITECTURE = UNetConfig(16, (1, 2), blocks=1, attention=(2,))


@pytest.fixture(scope="module", params=["none", "batch"])
def run(request, tmp_path_factory) -> Path:
    """A finished run of two steps on a frozen model in a file, without and with normalised features."""
    directory = tmp_path_factory.mktemp("runs")
    contract = ImageContract(px=16, steps=1000, beta_start=1e-4, beta_end=0.02)
    save_unet(awake(UNet(ARCHITECTURE)), directory / "unet.safetensors", contract=contract)
    encoder = TINY["encoder"] | {"norm": request.param}
    frozen = {"weights": str(directory / "unet.safetensors")}
    config = write_config(directory / "tiny.json", TINY | {"encoder": encoder, "frozen": frozen})
    finish(start(["--config", str(config), f"run.dir={directory / 'run'}", "train.steps=2"]))
    return directory / "run"


@pytest.fixture(scope="module")
def folder(run) -> Path:
    export_run(run, run.parent / "exported")
    return run.parent / "exported"


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return Rooms(16, 3, 4).images(np.arange(4))


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_networks_are_the_run_s_averages_bit_by_bit(run, folder):
    model, saved = diffsiam.load(folder), tensors(run, 2)
    for name in ("encoder", "decoder"):
        for key, value in getattr(model, name).state_dict().items():
            assert torch.equal(value, saved[f"ema:{name}.{key}"]), key
    assert model.frozen.config == ARCHITECTURE


def test_it_encodes_images_of_either_library_in_any_batch(folder, images):
    model = diffsiam.load(folder)
    z = model.encode(images)
    assert z.shape == (4, 64)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    assert torch.allclose(model.encode(torch.from_numpy(images), batch_size=1), z, atol=1e-5)


def test_its_subsets_are_the_run_s_and_cut_z(folder, images):
    model = diffsiam.load(folder)
    assert (model.subsets.n, model.subsets.choice, model.subsets.detach, model.subsets.jump) == (
        8,
        "time_tied",
        True,
        True,
    )
    z = model.encode(images)
    assert torch.equal(model.subset(z, 2), z[:, 8:16])


def test_it_reconstructs_by_inversion_and_an_edited_z_changes_the_image(folder, images):
    model = diffsiam.load(folder)
    back = model.reconstruct(images, moves=4)
    assert back.shape == images.shape
    assert back.dtype == torch.uint8
    assert not torch.equal(model.reconstruct(images, z=-3000 * model.encode(images), moves=4), back)


def test_tensors_are_as_readable_as_any_other_file(run, folder):
    (checkpoint,) = (run / "checkpoints").iterdir()
    for directory in (folder, checkpoint):
        modes = {file.stat().st_mode for file in directory.iterdir()}
        assert len(modes) == 1, directory


def test_an_image_s_own_noise_gives_it_back_better_than_foreign_noise(folder, images):
    model = diffsiam.load(folder)
    near = (model.reconstruct(images, moves=20).float() - torch.from_numpy(images)).abs().mean()
    predict = guided(model.frozen, model.decoder, model.schedule, model.subsets, model.encode(images))
    from_noise = sample(eval_noise(0, torch.arange(4), 16, 16), predict, model.schedule, 20)
    far = (from_noise.permute(0, 2, 3, 1) * 127.5 + 127.5 - torch.from_numpy(images)).abs().mean()
    assert near < far


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "uint8"),
        (np.zeros((1, 3, 16, 16), np.uint8), "px, px, 3"),
        (np.zeros((1, 32, 32, 3), np.uint8), "16 x 16 pixels"),
    ],
)
def test_images_that_break_the_contract_are_refused(folder, wrong, said):
    with pytest.raises(ValueError, match=said):
        diffsiam.load(folder).encode(wrong)


def test_the_card_and_the_description_say_where_it_comes_from(run, folder):
    described = json.loads((folder / "model.json").read_text())
    sha256 = sha256_of(run.parent / "unet.safetensors")
    assert described["frozen"]["sha256"] == sha256
    assert described["provenance"]["step"] == 2
    assert described["provenance"]["config"]["encoder"]["width"] == 8
    card = (folder / "README.md").read_text()
    for word in (
        sha256,
        "resnet10, d = 64",
        "8 of z",
        "rooms, 16 px",
        "method diffsiam, 2 steps",
        "torch 2.",
    ):
        assert word in card
    assert "{" not in card


def test_the_lines_of_the_card_load_it_and_encode(folder, images, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (lines,) = re.findall("```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) == 3
    names = {"images": images}
    exec(lines, names)
    assert names["z"].shape == (4, 64)


def test_the_card_says_what_was_measured_and_where_nothing_was(run, folder, tmp_path):
    assert "Nothing was measured" in (folder / "README.md").read_text()
    arms = {"this run": {"mean_probe": 0.65, "moved_by_all": 4}, "random encoder": {"mean_probe": 0.48}}
    for name in ("report", "evaluation"):
        (tmp_path / name).mkdir()
    (tmp_path / "report" / "evaluation.json").write_text(json.dumps({"arms": arms}))
    (tmp_path / "evaluation" / "tables.md").write_text("| a table |\n")
    text = measured(tmp_path)
    assert "| mean linear probe of the factors | 0.650 | 0.480 |" in text
    assert "| factors moved by swapping all of z | 4 |  |" in text
    assert text.endswith("| a table |")


def test_a_run_records_its_diffusion_model_with_architecture_and_contract(run):
    state = json.loads((run / "checkpoints" / "step_00000002" / "state.json").read_text())
    weights = state["weights"]
    assert weights["file"].endswith("unet.safetensors")
    assert weights["format"] == "native"
    assert weights["architecture"]["channel_mult"] == [1, 2]
    assert weights["contract"]["px"] == 16


def test_any_changed_bit_of_any_file_is_noticed(folder, tmp_path):
    for name in ("model.json", "encoder.safetensors", "decoder.safetensors", "unet.safetensors"):
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        content = bytearray((copy / name).read_bytes())
        content[-20] ^= 1
        (copy / name).write_bytes(bytes(content))
        with pytest.raises(WeightsError, match=str(copy)):
            diffsiam.load(copy)


class TestWithoutTheDiffusionModel:
    @pytest.fixture(scope="class")
    def slim(self, run) -> Path:
        export_run(run, run.parent / "slim", with_frozen=False)
        return run.parent / "slim"

    def test_it_encodes_the_same_and_says_what_is_missing(self, slim, folder, images):
        model = diffsiam.load(slim)
        assert torch.equal(model.encode(images), diffsiam.load(folder).encode(images))
        assert not (slim / "unet.safetensors").exists()
        with pytest.raises(ValueError, match="frozen=FILE"):
            model.reconstruct(images)

    def test_it_takes_the_diffusion_model_it_was_trained_with_and_no_other(
        self, slim, run, folder, images, tmp_path
    ):
        model = diffsiam.load(slim, frozen=run.parent / "unet.safetensors")
        whole = diffsiam.load(folder)
        assert torch.equal(model.reconstruct(images, moves=3), whole.reconstruct(images, moves=3))
        save_unet(awake(UNet(ARCHITECTURE), seed=9), tmp_path / "other.safetensors")
        with pytest.raises(WeightsError, match="is not the diffusion model"):
            diffsiam.load(slim, frozen=tmp_path / "other.safetensors")


def test_the_exported_folder_starts_another_run_as_its_diffusion_model(folder, run, tmp_path):
    same = json.loads((run.parent / "tiny.json").read_text())
    config = write_config(tmp_path / "tiny.json", same | {"frozen": {"weights": str(folder)}})
    goes_on = ["encoder.init=weights", "decoder.init=weights"]
    finish(
        start(
            [
                "--config",
                str(config),
                f"run.dir={tmp_path / 'run'}",
                "train.steps=1",
                "optimizer.lr=1e-9",
                *goes_on,
            ]
        )
    )
    before, after = tensors(run, 2), tensors(tmp_path / "run", 1)
    for key in ("ema:encoder.conv1.weight", "ema:decoder.label_emb.weight"):
        assert torch.allclose(before[key], after[key], atol=1e-6)


def test_a_run_does_not_go_on_with_another_diffusion_model(run, tmp_path):
    save_unet(awake(UNet(ARCHITECTURE), seed=9), tmp_path / "other.safetensors")
    arguments = ["--config", str(run.parent / "tiny.json"), f"run.dir={run}", "train.steps=3"]
    process = start([*arguments, f"frozen.weights={tmp_path / 'other.safetensors'}"])
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert "is not the diffusion model this run was trained with" in output


class TestTheCommand:
    def test_export_says_what_it_wrote(self, run, tmp_path):
        result = invoke("export", run, tmp_path / "out", "--without-frozen")
        assert result.exit_code == 0, result.output
        assert "decoder.safetensors, encoder.safetensors" in result.output.replace("\n", " ")

    def test_what_cannot_be_exported_is_one_line(self, run, folder, tmp_path):
        for arguments, said in (
            (("export", tmp_path, tmp_path / "x"), "no checkpoint"),
            (("export", run, folder), "exists already"),
        ):
            result = invoke(*arguments)
            assert result.exit_code == 2
            assert said in result.stderr
            assert result.stderr.count("\n") == 1

    def test_convert_says_what_it_read_and_wrote(self, folder, tmp_path):
        result = invoke("convert", folder, tmp_path / "pair.pt", "--to", "pdae")
        assert result.exit_code == 0, result.output
        assert "trained pair" in result.stdout
        result = invoke("convert", tmp_path / "pair.pt", tmp_path / "again", "--subsets", "8")
        assert result.exit_code == 0, result.output
        assert diffsiam.load(tmp_path / "again").subsets.choice == "time_tied"

    def test_convert_s_refusals_are_one_line(self, tmp_path):
        (tmp_path / "text.pt").write_text("not weights")
        result = invoke("convert", tmp_path / "text.pt", tmp_path / "out")
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: convert: {tmp_path / 'text.pt'}: ")
        assert result.stderr.count("\n") == 1


class TestPublishedPairs:
    def test_diffsiam_load_takes_a_checkpoint_of_pdae_as_it_is(self, tmp_path, images):
        n = networks()
        path = published.pdae_pair(tmp_path / "checkpoint.pt", n, n)
        model = diffsiam.load(path)
        assert model.subsets.choice == "full"
        with torch.no_grad():
            x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
            assert torch.allclose(model.encode(images), n.encoder(x), atol=1e-5)
        assert model.reconstruct(images, moves=2).shape == images.shape

    def test_simsiam_s_encoder_gets_imagenet_s_pixels(self, tmp_path, images):
        path = published.simsiam(tmp_path / "checkpoint_0099.pth.tar", networks(), networks())
        model = diffsiam.load(path)
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
        with torch.no_grad():
            assert torch.allclose(model.encode(images), model.encoder(x), atol=1e-5)
        with pytest.raises(ValueError, match="no decoder"):
            model.reconstruct(images)

    def test_a_diffusion_model_alone_is_no_model_to_load(self, tmp_path):
        path = published.native(tmp_path / "unet", networks(UNET), networks())
        with pytest.raises(WeightsError, match="holds no encoder"):
            diffsiam.load(path)


class TestOnnx:
    @pytest.mark.parametrize("arch", ["resnet10", "pdae"])
    def test_onnxruntime_computes_the_encoder_from_bytes(self, tmp_path, arch):
        onnxruntime = pytest.importorskip("onnxruntime")
        from diffsiam.encoder import EncoderConfig
        from diffsiam.onnx_encoder import export_onnx

        n = networks(encoder=EncoderConfig(arch, 64, 8, 16))
        model = diffsiam.load(published.pdae_pair(tmp_path / "pair.pt", n, n))
        assert export_onnx(model, tmp_path / "encoder.onnx", px=64) < 1e-4
        session = onnxruntime.InferenceSession(
            str(tmp_path / "encoder.onnx"), providers=["CPUExecutionProvider"]
        )
        images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
        (z,) = session.run(["z"], {"images": images})
        assert z.shape == (5, 16)
        assert np.allclose(z, model.encode(images).numpy(), rtol=1e-3, atol=1e-4)

    def test_the_command_writes_it_beside_the_networks(self, run, tmp_path):
        pytest.importorskip("onnxruntime")
        result = invoke("export", run, tmp_path / "out", "--onnx")
        assert result.exit_code == 0, result.output
        assert "differs from torch by" in result.output.replace("\n", " ")
        assert (tmp_path / "out" / "encoder.onnx").is_file()

    def test_a_file_that_computes_something_else_is_not_left_behind(self, folder, tmp_path, monkeypatch):
        pytest.importorskip("onnxruntime")
        from diffsiam import onnx_encoder

        monkeypatch.setattr(onnx_encoder, "TOLERANCE", -1.0)
        with pytest.raises(onnx_encoder.ParityError):
            onnx_encoder.export_onnx(diffsiam.load(folder), tmp_path / "encoder.onnx")
        assert not (tmp_path / "encoder.onnx").exists()


def test_a_pretraining_run_points_at_its_own_export(tmp_path, monkeypatch):
    from engine import checkpoint

    values = {
        "task": "diffusion",
        "data": TINY["data"],
        "frozen": {k: v for k, v in TINY["frozen"].items() if k != "weights"},
    }
    checkpoint.save(tmp_path, 1, {"ema": {"w": torch.zeros(1)}}, {"config": values}, "c0ffee")
    with pytest.raises(UsageError, match="unet.safetensors is its export"):
        export_run(tmp_path, tmp_path / "out")
