"""Damaged and hostile files are refused in one line, or read as what they were; nothing of them is run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import published
import pytest
import torch
from published import networks
from training import ROOT, environment

from diffsiam.weights import WeightsError, read_parts
from diffsiam.weights.converting import convert

CORRUPTIONS = 500
FORMATS = sorted(published.WRITERS)
# What a flipped bit among numbers changes, nobody can notice where the format has no checksum; shapes and
# keys stay what they were, and numbers stay numbers.
WITHOUT_CHECKSUM = {"legacy", "flat_safetensors", "diffusers"}


@pytest.mark.parametrize(
    "names",
    [FORMATS[::2], pytest.param(FORMATS[1::2], marks=pytest.mark.thorough)],
    ids=["some", "others"],
)
def test_500_corruptions_of_each_format_are_refused_or_harmless(tmp_path, names):
    command = [
        sys.executable,
        str(ROOT / "tests" / "fuzz_weights.py"),
        str(tmp_path),
        str(CORRUPTIONS),
        *names,
    ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "it_ran").exists()
    for name, outcomes in json.loads(done.stdout).items():
        assert outcomes.pop("wrong") == [], name
        assert sum(outcomes.values()) == CORRUPTIONS
        assert outcomes["refused"] > CORRUPTIONS / 2, name
        assert "other numbers" not in outcomes or name in WITHOUT_CHECKSUM, name


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        read_parts(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def rezipped(source: Path, target: Path, change: dict[str, bytes], compress: bool = False) -> Path:
    """A torch archive with other records and right checksums."""
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as before, zipfile.ZipFile(target, "w", kind) as after:
        for name in before.namelist():
            after.writestr(name, change.get(name.partition("/")[2], before.read(name)))
    return target


@pytest.fixture
def flat(tmp_path) -> Path:
    return published.guided_diffusion(tmp_path / "flat.pt", networks(), networks())


def test_a_storage_that_claims_more_than_its_record_is_refused(tmp_path, flat):
    path = rezipped(flat, tmp_path / "short.pt", {"data/0": b"\0" * 4})
    assert "storage 0 has 4 bytes instead of" in refusal(path)


def test_a_compressed_archive_is_refused_unread(tmp_path, flat):
    path = rezipped(flat, tmp_path / "bomb.pt", {"data/0": b"\0" * (1 << 22)}, compress=True)
    assert "compressed records" in refusal(path)


def test_a_tensor_that_repeats_its_storage_is_refused(tmp_path, flat):
    state = torch.load(flat, weights_only=True)
    torch.save(dict(state) | {"out.2.bias": torch.zeros(1).expand(1 << 40)}, tmp_path / "expanded.pt")
    assert "reaches beyond its storage" in refusal(tmp_path / "expanded.pt")


def test_tensors_that_share_one_storage_do_not_multiply_the_file(tmp_path, flat):
    state, shared = dict(torch.load(flat, weights_only=True)), torch.zeros(1 << 18)
    torch.save(state | {f"out.{i}.extra": shared for i in range(100)}, tmp_path / "shared.pt")
    assert "larger than the file" in refusal(tmp_path / "shared.pt")


@pytest.mark.parametrize("claimed", [1 << 62, (1 << 24) + 1])
def test_a_safetensors_header_beyond_reason_is_refused_unread(tmp_path, claimed):
    (tmp_path / "huge").write_bytes(claimed.to_bytes(8, "little") + b"{" + b" " * 64)
    assert "header of" in refusal(tmp_path / "huge")


def test_nested_beyond_reason_is_refused(tmp_path):
    header = b'{"a":' * 200_000
    (tmp_path / "deep").write_bytes(len(header).to_bytes(8, "little") + header)
    refusal(tmp_path / "deep")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("[" * 100_000)
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    refusal(folder)


def test_an_architecture_of_a_billion_blocks_is_refused_before_it_is_built(tmp_path):
    folder = published.diffusers(tmp_path / "d", networks(), networks())
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"layers_per_block": 10**9}))
    assert "fewer than its stated architecture has blocks" in refusal(folder)


def test_reading_takes_no_more_memory_than_twice_the_file(tmp_path):
    """Peak of a process that reads a file of 64 MB beside one of nothing."""
    big = tmp_path / "big.pt"
    torch.save({"ema_denoise_fn": {"time_embed.0.weight": torch.zeros(1 << 24)}}, big)
    published.guided_diffusion(tmp_path / "small.pt", networks(), networks())
    code = """
import resource, sys
from pathlib import Path
from diffsiam.weights import WeightsError, read_parts
try:
    read_parts(Path(sys.argv[1]))
except WeightsError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    peaks = []
    for path in (tmp_path / "small.pt", big):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout))
    assert peaks[1] - peaks[0] < 2 * big.stat().st_size


class Hyperparameters:
    """An object of the training code, as Lightning of 2021 pickled it."""

    def __init__(self, value: object):
        self.value = value

    def __reduce__(self):
        return self.value if isinstance(self.value, tuple) else super().__reduce__()


class TestFilesThatNeedForeignClasses:
    @pytest.fixture
    def lightning(self, tmp_path):
        n, other = networks(), networks(seed=50)

        def write(parameters: object) -> Path:
            content = published.diffae_content(n, other) | {"hyper_parameters": {"conf": parameters}}
            torch.save(content, tmp_path / "last.ckpt")
            return tmp_path / "last.ckpt"

        write.unet = n.unet.state_dict()
        return write

    def test_they_are_refused_with_the_class_and_the_way_out(self, lightning):
        message = refusal(lightning(Hyperparameters(3)))
        assert "Hyperparameters" in message
        assert "--isolated" in message

    def test_isolated_conversion_takes_the_averaged_tensors_bit_by_bit(self, lightning, tmp_path):
        parts, _ = convert(lightning(Hyperparameters(3)), tmp_path / "out.safetensors", isolated=True)
        found = read_parts(tmp_path / "out.safetensors")
        assert parts.format == "diffae"
        assert found.unet.keys() == lightning.unet.keys()
        assert all(torch.equal(value, found.unet[key]) for key, value in lightning.unet.items())

    def test_isolated_conversion_runs_nothing_of_a_hostile_file(self, lightning, tmp_path):
        proof = tmp_path / "it_ran"
        source = lightning(Hyperparameters((os.mkdir, (str(proof),))))
        convert(source, tmp_path / "out", isolated=True)
        assert not proof.exists()
        pickle.loads(pickle.dumps(Hyperparameters((os.mkdir, (str(proof),)))))
        assert proof.exists()  # it is as hostile as it should be

    def test_isolated_conversion_refuses_what_holds_no_tensors(self, tmp_path):
        torch.save({"a": Hyperparameters(1)}, tmp_path / "none.pt")
        with pytest.raises(WeightsError, match="no dictionary of tensors"):
            convert(tmp_path / "none.pt", tmp_path / "out", isolated=True)
        (tmp_path / "text.pt").write_text("text")
        with pytest.raises(WeightsError, match="text.pt"):
            convert(tmp_path / "text.pt", tmp_path / "out", isolated=True)

    def test_a_pair_s_entries_survive_isolation_too(self, tmp_path):
        n = networks()
        content = published.pair_content(n, n) | {"config": Hyperparameters(2)}
        torch.save(content, tmp_path / "pair.pt")
        convert(tmp_path / "pair.pt", tmp_path / "out", isolated=True)
        assert read_parts(tmp_path / "out").decoder.keys() == n.decoder.state_dict().keys()
