"""The commands that edit images: their files, their figures, and how they refuse."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from edited_runs import make_run, write_images
from PIL import Image
from typer.testing import CliRunner

from diffsiam.probmask import EXACT
from diffsiam.sampling import to_uint8
from engine.cli import app
from engine.data.rooms import Rooms
from engine.edit.opening import open_model
from engine.edit.pictures import pictures
from engine.export import export_run
from engine.sheet import FRAME

FEW = ("--moves", "2", "--inversion-moves", "2")


@pytest.fixture(scope="module")
def run(tmp_path_factory, awaken):
    return make_run(tmp_path_factory.mktemp("runs") / "ours", awaken)


@pytest.fixture(scope="module")
def pdae(tmp_path_factory, awaken):
    return make_run(tmp_path_factory.mktemp("runs") / "pdae", awaken, method="pdae")


def diffsiam(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments):
    result = diffsiam(*arguments)
    assert result.exit_code == 0, result.stderr or result.exception
    return result.stdout


def record(folder):
    return json.loads((folder / "edit.json").read_text())


def framed(folder):
    """Number of framed images on the sheet, from the frames' area."""
    sheet = np.asarray(Image.open(folder / "sheet.png"))
    return round((sheet == FRAME).all(-1).sum() / (70 * 70 - 64 * 64))


class TestCounterfactual:
    def test_two_models_on_two_pairs_are_one_figure_with_every_image_beside_it(self, run, pdae, tmp_path):
        out = tmp_path / "out"
        printed = done("counterfactual", pdae, run, "--subsets", "0-1,1-3", *FEW, "--seed", 7, "--out", out)
        told = record(out)
        assert "room 60 of seed 0" in printed
        assert str(out) in printed.replace("\n", "")
        assert told["originals"] == [f"room {i} of seed 0" for i in (60, 61, 62, 63)]
        edits = [image for image in told["images"] if "scale" in image]
        assert len(edits) == 2 * 2 * 2 * 2 * 4  # models, pairs, directions, subsets, scales
        assert {e["model"] for e in edits} == {"pdae", "diffsiam"}
        assert {e["subset"] for e in edits} == {"0-1", "1-3"}
        assert {e["scale"] for e in edits} == {0.25, 0.5, 0.75, 1.0}
        for image in told["images"]:
            assert Image.open(out / image["file"]).size == (16, 16)
        assert len({image["file"] for image in told["images"]}) == len(list((out / "images").iterdir()))
        assert told["recipe"]["moves"] == 2
        assert told["seed"] == 7
        assert [model["step"] for model in told["models"]] == [3, 3]
        assert framed(out) == 2 * 2 * 2 * 2  # subsets, models, pairs, both originals
        typed = shlex.split(told["typed"])
        assert typed[:4] == ["diffsiam", "counterfactual", str(pdae), str(run)]
        assert typed[-2:] == ["--out", str(out)]

    def test_the_upper_row_starts_with_one_original_and_the_lower_row_ends_with_the_other(
        self, run, tmp_path
    ):
        out = tmp_path / "out"
        done("counterfactual", run, "--subsets", "0-1", "-i", 3, "-i", 4, *FEW, "--out", out)
        sheet = np.asarray(Image.open(out / "sheet.png"))
        rooms = Rooms(16, 0, 60).images(np.array([3, 4])).repeat(4, axis=1).repeat(4, axis=2)
        corners = []
        for room in rooms:
            ys, xs = np.nonzero((sheet == room[0, 0]).all(-1))
            corners.append(
                next((y, x) for y, x in zip(ys, xs, strict=True)
                     if np.array_equal(sheet[y : y + 64, x : x + 64], room))
            )  # fmt: skip
        (top, left), (bottom, right) = corners
        assert top < bottom
        assert left + 4 * 64 < right

    def test_passes_are_those_of_distinct_edits(self, run, tmp_path):
        out = tmp_path / "out"
        done("counterfactual", run, "--subsets", "0-1,1-2", "--pairs", 1, *FEW, "--out", out)
        assert record(out)["passes"] == [{"calls": 4, "images": 2 * 2 + 2 * 2 * 4 * 2, "decoded": 36}]

    def test_controls_add_none_all_random_dimensions_and_a_fixed_x_T(self, run, tmp_path):
        out = tmp_path / "out"
        arguments = ("--subsets", "0-1,1-2", "--pairs", 1, "--scales", "1", "--controls", "--moves", 1)
        done("counterfactual", run, *arguments, "--inversion-moves", 1, "--out", out)
        names = {image["subset"] for image in record(out)["images"] if "subset" in image}
        random = {f"random 2 of 8 (as {name})" for name in ("0-1", "1-2")}
        assert names == {"0-1", "1-2", "none", "all", "0-1, x_T fixed", "1-2, x_T fixed"} | random

    def test_files_are_edited_too_and_a_second_run_replaces_the_first(self, run, tmp_path):
        paths, out = write_images(tmp_path / "in", 2), tmp_path / "out"
        for subsets in ("0-1,1-2", "0-4"):
            images = [part for path in paths for part in ("--image", path)]
            done("counterfactual", run, *images, "--subsets", subsets, *FEW, "--out", out)
        assert record(out)["originals"] == [str(path) for path in paths]
        assert len(list((out / "images").iterdir())) == 2 + 2 * 4

    def test_an_export_is_edited_like_its_run(self, run, tmp_path):
        export_run(run, tmp_path / "export")
        for name, source in (("a", run), ("b", tmp_path / "export")):
            done("counterfactual", source, "--pairs", 1, *FEW, "--out", tmp_path / name)
        a, b = (np.asarray(Image.open(tmp_path / name / "sheet.png")) for name in "ab")
        assert np.array_equal(a, b)

    def test_by_default_it_is_written_into_the_run(self, awaken, tmp_path):
        run = make_run(tmp_path / "run", awaken)
        done("counterfactual", run, "--pairs", 1, "--subsets", "0-1", "--moves", 1, "--inversion-moves", 1)
        assert (run / "edits" / "counterfactual" / "sheet.png").is_file()


class TestInterpolate:
    def test_each_pair_is_a_row_between_its_originals(self, run, tmp_path):
        out = tmp_path / "out"
        done("interpolate", run, "--scales", "0,1/2,1", *FEW, "--out", out)
        assert [i["scale"] for i in record(out)["images"] if "scale" in i] == [0, 0.5, 1] * 2
        assert framed(out) == 4

    def test_the_trajectory_is_recorded_and_runs_g_twice(self, run, tmp_path):
        out = tmp_path / "out"
        done("interpolate", run, "--trajectory", "--scales", "1/2", "--pairs", 1, *FEW, "--out", out)
        told = record(out)
        assert told["trajectory"] is True
        assert told["passes"] == [{"calls": 4, "images": 6, "decoded": 8}]


class TestManipulate:
    def test_each_image_is_the_centre_of_its_row_for_every_model(self, run, pdae, tmp_path):
        out = tmp_path / "out"
        done("manipulate", pdae, run, "-a", "brightness", "-a", "wall=navy", "--count", 2, *FEW, "--out", out)
        told = record(out)
        edits = [image for image in told["images"] if "attribute" in image]
        assert len(edits) == 2 * 2 * 2 * 4
        assert {e["attribute"] for e in edits} == {"brightness", "wall=navy"}
        assert framed(out) == 2 * 2 * 2
        assert told["learned_from"] == 60
        scales = told["classifiers"][0]["thesis_scales"]
        assert scales == pytest.approx([s * 8**0.5 for s in (-1, -0.5, 0.5, 1)])

    def test_probmask_keeps_as_many_dimensions_as_asked(self, run, tmp_path):
        out = tmp_path / "out"
        arguments = ("--dims", 2, "--count", 1, "--unit", "thesis", "--scales", "1", *FEW)
        done("manipulate", run, "-a", "brightness", *arguments, "--out", out)
        learned = record(out)["classifiers"][0]
        assert len(learned["attributes"]["brightness"]["dims"]) == 2
        assert learned["thesis_scales"] == [1.0]

    def test_labels_come_from_a_csv(self, awaken, tmp_path):
        write_images(tmp_path / "in", 12)
        labels = tmp_path / "labels.csv"
        labels.write_text("file,striped,round\n" + "".join(f"{i:03}.png,{i % 2},0\n" for i in range(12)))
        data = {"source": "folder", "path": str(tmp_path / "in"), "px": 16}
        run, out = make_run(tmp_path / "run", awaken, data=data), tmp_path / "out"
        done("manipulate", run, "--labels", labels, "--count", 1, *FEW, "--out", out)
        assert list(record(out)["classifiers"][0]["attributes"]) == ["striped"]
        result = diffsiam("manipulate", run, "--labels", labels, "-a", "round", *FEW, "--out", out)
        assert result.exit_code == 2
        assert "all 12 samples are negative" in result.stderr


class TestLostAttributes:
    def test_every_image_has_a_row_of_x_t_and_one_of_x_0_hat(self, tmp_path):
        out = tmp_path / "out"
        done("lost-attributes", "builtin:rooms16", "--count", 2, "--times", "0,500", "--out", out)
        told = [(i["kind"], i["t"]) for i in record(out)["images"]]
        assert told == [(kind, t) for t in (0, 500) for _ in range(2) for kind in ("x_t", "x_0_hat")]
        errors = {i["t"]: i["mse"] for i in record(out)["images"] if "mse" in i}
        assert errors[0] < 1e-3 < errors[500]
        assert framed(out) == 4

    def test_a_run_shows_its_own_diffusion_model(self, run, tmp_path):
        done("lost-attributes", run, "--count", 1, "--times", "100", "--out", tmp_path / "out")
        assert record(tmp_path / "out")["originals"] == ["room 60 of seed 0"]

    def test_the_curve_of_a_model_grows_and_names_when_factors_go(self, tmp_path):
        out = tmp_path / "out"
        printed = done("inspect-model", "builtin:rooms16", "--count", 8, "--out", out)
        told = record(out)
        assert told["relative_error"][0] < 0.01
        assert told["relative_error"][10] > 10 * told["relative_error"][1]
        assert len(told["lost_at"]) == 12
        assert "brightness" in printed
        assert (out / "sheet.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("counterfactual", "RUN", "--subsets", "3-9"), "expected ranges like 0-2 within 0-4"),
        (("counterfactual", "RUN", "--subsets", "x"), '"all" or "none"'),
        (("counterfactual", "RUN", "--scales", "1/0"), "numbers like 0.5 or 1/4"),
        (("counterfactual", "RUN", "--scales", "1.5"), "not between 0 and 1"),
        (("counterfactual", "RUN", "-i", "1"), "every two make a pair"),
        (("counterfactual", "RUN", "-i", "nothere.png", "-i", "other.png"), "neither a file nor a number"),
        (("counterfactual", "RUN", "--moves", "2000"), "choose 1 to 1000"),
        (("counterfactual", "nowhere"), "no such run or file"),
        (("counterfactual", "RUN", "--data", "nowhere"), "do not exist"),
        (("manipulate", "RUN", "-a", "brigtness"), "the nearest is brightness"),
        (("manipulate", "RUN", "-a", "wall=green"), "cream, ochre"),
        (("manipulate", "RUN", "--dims", "9"), "a number from 1 to 8"),
        (("manipulate", "RUN", "--labels", "nowhere.csv"), "names files, but these images are drawn"),
        (("lost-attributes", "builtin:rooms16", "--times", "1000"), "times are 0 to 999"),
        (("inspect-model", "nowhere"), "no such run or file"),
        (("measure-edits", "RUN", "--subsets", "0-2,1-3"), "overlap"),
    ],
)
def test_a_usage_error_is_one_line_and_leaves_nothing_behind(run, arguments, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = [run if argument == "RUN" else argument for argument in arguments]
    result = diffsiam(*given, "--out", "out")
    assert result.exit_code == 2, result.stdout
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert hint in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_files_is_never_written_into(run, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    result = diffsiam("counterfactual", run, *FEW, "--out", tmp_path)
    assert result.exit_code == 2
    assert "holds other files" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_numbers_beyond_the_training_set_are_rooms_it_never_saw(run):
    shown = pictures(open_model(run), ["5", "1000"], None, 0)
    assert shown.names == ["room 5 of seed 0", "room 1000 of seed 0"]
    assert np.array_equal(shown.images.numpy(), Rooms(16, 0, 2000).images(np.array([5, 1000])))


def test_networks_are_the_averages_of_the_newest_checkpoint(run):
    opened = open_model(run)
    images = torch.from_numpy(Rooms(16, 0, 60).images(np.arange(2)))
    x_0, z = opened.enter(images)
    assert torch.equal(to_uint8(x_0), images)
    assert torch.allclose(z, opened.model.encode(images), atol=1e-5)
    assert opened.name == "diffsiam"


def test_measured_edits_name_their_rows_and_their_absent_measures(run, pdae, tmp_path, monkeypatch):
    import engine.edit.numbers as numbers
    import engine.edit.pushes as pushes

    monkeypatch.setattr(numbers, "PROBED", 1000)
    monkeypatch.setattr(numbers, "PROBE_TRAIN", 700)
    monkeypatch.setattr(pushes, "TRAIN", 700)
    monkeypatch.setattr(pushes, "SCALES", (0.5, 1.0))
    monkeypatch.setattr(pushes, "SHARES", (4,))
    monkeypatch.setattr(pushes, "RECIPE", replace(EXACT, iterations=10))
    few = ("--pairs", 2, "--pushed", 1, "--moves", 1, "--inversion-moves", 1, "--subsets", "0-2,2-4")
    printed = done("measure-edits", run, *few, "--out", tmp_path / "out")
    result = record(tmp_path / "out")["results"]["diffsiam"]
    rows = {row["name"]: row for row in result["rows"]}
    assert sorted(rows["0-2"]["assigned"] + rows["2-4"]["assigned"]) == sorted(numbers.NAMES)
    assert rows["none, x_T fixed"]["success_any"] == 0
    assert rows["none, x_T fixed"]["side_effect"] == 0
    assert {push["name"] for push in result["pushes"]} == {"all dimensions", "d / 4", "d / 4 at random"}
    assert result["artefacts"]["originals"] < 1e-4
    assert set(result["retained"]) == {"own z, own x_T", "own z, random x_T", "the other's z, own x_T"}
    assert "LPIPS: not measured: set DIFFSIAM_ALEXNET" in printed


def test_of_a_model_of_other_images_the_reconstruction_is_measured(awaken, tmp_path):
    write_images(tmp_path / "in", 4)
    run = make_run(
        tmp_path / "run", awaken, data={"source": "folder", "path": str(tmp_path / "in"), "px": 16}
    )
    printed = done("measure-edits", run, "--pairs", 2, *FEW, "--out", tmp_path / "out")
    assert "the reconstruction is all that is measured" in printed
    result = record(tmp_path / "out")["results"]["diffsiam"]
    assert set(result) == {"reconstruction"}
    assert 0 < result["reconstruction"]["inferred x_T"]["MSE"] < 1


def test_weights_given_on_the_command_line_are_compared_before_anything_is_made(tmp_path):
    wrong = tmp_path / "alex.pth"
    wrong.write_bytes(b"no network")
    result = diffsiam("measure-edits", "nowhere", "--inception", wrong, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "is not inception-2015-12-05.pt" in result.stderr
