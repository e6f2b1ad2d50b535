"""bench.data compares before it times, and says per source how our loader stands beside the usual one."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("nvidia.dali")
pytest.importorskip("torchvision")

from bench import data, gpu, gpu_data  # noqa: E402  (after the packages were found)
from bench.usual_loader import differences  # noqa: E402
from engine.data.draws import augmentation  # noqa: E402

SMALL = data.Settings(batch=4, threads=1, batches=2, rounds=1, device_id=None)


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "MADE", 8)
    images = data.make_images(tmp_path / "images", 8)
    return data.cases(images, 32, tmp_path, 1)


def test_every_source_is_a_row_and_gives_the_same_images_as_the_usual_loader(rows, monkeypatch):
    class InThisProcess(data.UsualLoader):
        def __init__(self, *arguments):
            super().__init__(*arguments[:-1], 0)

    monkeypatch.setattr(data, "UsualLoader", InThisProcess)
    assert {row.name.split(",")[0] for row in rows} == {
        "folder",
        "LMDB",
        "tar",
        "resident",
        "pictures of 32 px",
    }
    assert {row.recipe for row in rows} == {"blur", "crop"}
    for row in rows:
        assert max(data.compare(row, SMALL).values()) <= data.CLOSE, row.name


def test_outputs_that_differ_are_not_timed(rows, monkeypatch):
    monkeypatch.setattr(data, "compare", lambda *_: {"x_0": 0.0, "view_1": 2.5})
    monkeypatch.setattr(data, "timed", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(SystemExit, match=r"folder, blur: the outputs differ .*2\.5.* nothing was timed"):
        data.measure(rows[0], SMALL)


def test_differences_are_in_levels_and_both_ways():
    ours = {"x_0": torch.tensor([3, 250], dtype=torch.uint8)}
    assert differences(ours, {"x_0": torch.tensor([250, 3], dtype=torch.uint8)}) == {"x_0": 247.0}


def test_one_json_object_comes_last_with_a_ratio_per_source(monkeypatch, capsys):
    row = {
        "images_per_second": {"ours": 3.0, "DataLoader": 2.0},
        "cpu_ms": {"ours": 1.0, "DataLoader": 2.0},
        "data_wait": {"ours": 0.0, "DataLoader": 0.5},
        "ratio": 1.5,
    }
    made = data.Case("folder, blur", None, 32, "blur")
    monkeypatch.setattr(data, "cases", lambda *_: [made])
    monkeypatch.setattr(data, "measure", lambda *_: row)
    assert data.main(["--json"]) == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["ratio"] == {"folder, blur": 1.5}
    assert last["route"].startswith("DALI on ")


def test_the_phase_of_a_gpu_machine_says_what_it_lacks(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_data, "NEEDS", ("no_such_package",))
    report = gpu.perform("data", tmp_path, 60)
    assert report["ok"]
    assert "needs no_such_package" in gpu.show(report)


def test_the_images_that_are_made_are_photograph_like(tmp_path, rows):
    contents = rows[0].source.read(np.arange(8))
    assert 10_000 < np.mean([len(content) for content in contents]) < 100_000
    assert augmentation("auto", 128) == augmentation("blur", 128)
