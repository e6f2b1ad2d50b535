"""Whole runs on stored images: where they lie changes nothing that is learned; models say what they saw."""

import json
import tarfile

import pytest
from image_sets import celeba, diffae_lmdb, encoded, picture
from launching import TOY
from training import differing, write_config

from diffsiam.weights import read_parts

pytest.importorskip("nvidia.dali")

STEPS = 3
RUN = (f"train.steps={STEPS}", f"log.save_every={STEPS}")


def losses(run) -> list[dict]:
    """All that is logged but times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = ("second", "wait", "seconds", "memory", "time")
    return [{key: value for key, value in line.items() if not any(t in key for t in timed)} for line in lines]


def test_a_folder_a_database_and_a_tar_train_to_the_same_weights(launcher, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    images = [encoded(picture(i, 20 + i % 7, 30 - i % 5), quality=95) for i in range(10)]
    for i, image in enumerate(images):
        (folder / f"{i:03d}.jpg").write_bytes(image)
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, arcname=file.name)
    paths = [folder, diffae_lmdb(tmp_path / "lmdb", images), tmp_path / "set.tar"]
    runs = [tmp_path / f"run_{path.name}" for path in paths]
    for path, run in zip(paths, runs, strict=True):
        options = ("data.source=auto", f"data.path={path}", "data.resident=off", *RUN)
        kind = {"set.tar": "tar"}.get(path.name, path.name)
        said = " ".join(launcher.run(run, *options).split())  # long paths wrap
        assert f"data.source=auto found {kind}" in said
    for run in runs[1:]:
        assert differing(runs[0], run, STEPS) == []
        assert losses(run) == losses(runs[0])
    assert len(losses(runs[0])) == STEPS


def test_a_diffusion_model_says_what_it_saw_of_each_image(launcher, tmp_path):
    faces = celeba(tmp_path / "faces")
    values = {key: TOY[key] for key in ("data", "train", "optimizer", "log")}
    values |= {"task": "diffusion", "frozen": {k: v for k, v in TOY["frozen"].items() if k != "weights"}}
    config = write_config(tmp_path / "diffusion.json", values)
    options = ("data.source=auto", f"data.path={faces}", "train.steps=1")
    said = launcher.run(tmp_path / "run", *options, config=config)
    assert "to 16 px" in said
    contract = read_parts(tmp_path / "run" / "unet.safetensors").contract
    assert contract.crop == "128 x 128 pixels from row 57, column 25, resized"
    said = launcher.run(tmp_path / "rooms", "train.steps=1", config=config)
    assert said.count("16 px") == 1
    assert read_parts(tmp_path / "rooms" / "unet.safetensors").contract.crop == "drawn at this size"
