"""diffsiam explore and the report's explorer: what they show is what the command line makes."""

import io
import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from edited_runs import write_images
from PIL import Image
from reported_runs import finished_run, render_few
from served import ask, served
from typer.testing import CliRunner

from engine.cli import app
from engine.edit.choices import read_choices
from engine.edit.opening import open_model
from engine.edit.units import union_of, unit_name, units_of
from engine.errors import UsageError
from engine.explore.jobs import Jobs
from engine.explore.studio import Exchange, Push, Studio
from engine.report import lattice
from engine.report.labels import measure_labels
from engine.report.lattice import Lattice

FEW = {"moves": 2, "inversion_moves": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory, awaken):
    return finished_run(tmp_path_factory.mktemp("runs") / "ours", awaken)


@pytest.fixture(scope="module")
def opened(run):
    return open_model(run)


@pytest.fixture
def studio(opened, tmp_path):
    return Studio(opened, tmp_path)


def wait(place, number):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        told = ask(place, "GET", f"/jobs/{number}")[1]
        if told["state"] not in ("waiting", "running"):
            return told
        time.sleep(0.05)
    raise AssertionError("the job does not end")


def carried_out(command: str, out: Path) -> Image.Image:
    """The sheet that a command line makes."""
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--out", str(out)])
    assert result.exit_code == 0, result.stderr
    return Image.open(out / "sheet.png")


@pytest.mark.parametrize(("n", "units"), [(3, 3), (8, 8), (64, 8), (13, 8)])
def test_units_are_all_subsets_in_order(n, units):
    found = units_of(n)
    assert len(found) == units
    covered = [i for unit in found for i in range(*map(int, unit.split("-")))]
    assert covered == list(range(n))
    assert unit_name("2-3") == "subset 3"
    assert unit_name("0-8") == "subsets 1 to 8"


def test_a_union_of_ranges_is_one_choice_of_all_their_dimensions(opened):
    subsets = opened.model.subsets
    both, first, last = read_choices("0-1+2-4,0-1,2-4", subsets)
    assert both.dims.equal(first.dims | last.dims)
    assert both.name == "0-1+2-4"
    assert union_of(["0-1", "1-2"], [0, 1]) == "all"
    with pytest.raises(UsageError, match="expected ranges"):
        read_choices("0-1+7-9", subsets)


@pytest.mark.parametrize(("n", "count"), [(3, 8), (4, 16), (64, 10)])
def test_few_subsets_are_made_in_every_combination_many_each_by_itself(n, count):
    choices = Lattice.of(n).choices
    assert len(choices) == len(set(choices)) == count
    assert () in choices
    assert tuple(range(min(n, 8))) in choices


def test_a_tile_of_the_report_is_the_image_that_its_command_makes(run, tmp_path, monkeypatch):
    index = json.loads(render_few(run, monkeypatch).read_text())
    sheet = np.asarray(Image.open(run / "report" / "explorer.png"))
    px, choice, scale = index["px"], index["named"].index("1-2+2-3"), index["scales"].index("3/4")
    number = index["exchanged"][0][1][choice][1][scale]  # b takes from a, x_T moved
    y, x = number // index["columns"] * px, number % index["columns"] * px
    options = [part for n in index["numbers"] for part in ("-i", str(n))] + [
        "--subsets",
        "1-2+2-3",
        "--scales",
        "3/4",
    ]
    carried_out(
        shlex.join(["diffsiam", "counterfactual", str(run), *options, "--moves=2", "--inversion-moves=2"]),
        tmp_path,
    )
    made = np.asarray(Image.open(tmp_path / "images" / "diffsiam_pair0_ba_1-2+2-3_0.75.png"))
    assert (
        np.abs(made.astype(int) - sheet[y : y + px, x : x + px]).max() <= 1
    )  # other batches round otherwise
    assert np.array(index["pushed"]).shape == (1, 2, 5)
    assert len({index["exchanged"][0][0][0][0][s] for s in range(5)}) == 1  # nothing taken, nothing moves


def test_a_run_makes_them_unasked_only_where_it_takes_minutes():
    assert lattice.is_affordable(16, torch.device("cpu"))
    assert not lattice.is_affordable(64, torch.device("cpu"))
    assert lattice.is_affordable(128, torch.device("cuda"))


def test_labels_of_a_file_are_read_from_every_subset(run, tmp_path):
    files = write_images(tmp_path / "images", 40)
    bright = [float(np.asarray(Image.open(file)).mean()) > 127.5 for file in files]
    lines = ["image,bright,<b>"] + [
        f"{f.name},{int(b)},{i % 2}" for i, (f, b) in enumerate(zip(files, bright, strict=True))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = json.loads(measure_labels(run, tmp_path / "labels.csv", tmp_path / "images").read_text())
    assert found["labels"] == ["bright", "<b>"]
    assert found["rows"] == ["subset 1", "subset 2", "subset 3", "subset 4", "all of z"]
    assert all(0 <= share <= 1 for row in found["accuracy"] for share in row)
    with pytest.raises(UsageError, match="no attributes; give --labels"):
        measure_labels(run, None)
    (run / "report" / "label_map.json").unlink()


def test_a_sheet_of_two_images_is_that_of_its_command_line(studio, tmp_path):
    a, b = studio.number(60), studio.number(61)
    total, work = studio.exchange(Exchange(a=a, b=b, units=[1, 3], scales="1/2,1", **FEW))
    moves = []
    made = work(moves.append)
    assert sum(moves) == total
    assert made.images.shape == (2, 2, 16, 16, 3)
    assert "--subsets 1-2+3-4" in made.command
    assert np.array_equal(carried_out(made.command, tmp_path / "out"), made.sheet)


def test_a_sheet_of_an_attribute_is_that_of_its_command_line(studio, tmp_path):
    total, work = studio.push(Push(a=studio.number(60), attribute="brightness", scales="-1,1", **FEW))
    moves = []
    made = work(moves.append)
    assert sum(moves) == total
    assert np.array_equal(carried_out(made.command, tmp_path / "out"), made.sheet)


def test_a_file_of_the_user_is_edited_and_named_as_the_user_knows_it(studio, tmp_path):
    (file,) = write_images(tmp_path / "mine", 1)
    kept = studio.upload("../my photo.png", file.read_bytes())
    assert studio.image(kept).pixels.shape == (16, 16, 3)
    made = studio.exchange(Exchange(a=kept, b=studio.number(60), units=[], **FEW))[1](lambda _: None)
    assert "-i 'my photo.png'" in made.command
    assert made.told[0].startswith("../my photo.png with nothing of z")
    assert all(path.parent == tmp_path for path in tmp_path.glob("*.png"))


def test_the_server_takes_images_makes_edits_and_gives_them_out(studio, tmp_path):
    (file,) = write_images(tmp_path / "mine", 1)
    with served(studio) as place:
        status, kept = ask(place, "POST", "/images", file.read_bytes(), **{"X-Name": "mine.png"})
        assert (status, kept) == (201, {"id": 0, "name": "mine.png"})
        assert ask(place, "POST", "/numbers", "61")[1]["name"] == "room 61 of seed 0"
        asked = json.dumps({"kind": "exchange", "a": 0, "b": 1, "units": [0], "scales": "1", **FEW})
        status, job = ask(place, "POST", "/jobs", asked)
        assert status == 201
        told = wait(place, job["id"])
        assert told["state"] == "done"
        assert told["done"] == told["total"]
        assert Image.open(io.BytesIO(ask(place, "GET", "/jobs/0/sheet.png")[1])).width > 100
        assert Image.open(io.BytesIO(ask(place, "GET", "/jobs/0/1/0.png")[1])).size == (16, 16)
        assert ask(place, "GET", "/jobs/0/2/0.png")[0] == 400
        assert ask(place, "GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "told"),
    [
        ("/images", "no image", "notes.txt cannot be read as an image"),
        ("/numbers", "-1", "from 0 on"),
        ("/numbers", "{", "no JSON"),
        ("/jobs", '{"kind": "exchange", "a": 9, "b": 9, "units": []}', "not here any more"),
        ("/jobs", '{"kind": "exchange", "a": 0, "b": 0, "units": [9]}', "there are 4 rows"),
        ("/jobs", '{"kind": "exchange", "a": 0, "b": 0, "units": [], "scales": "2"}', "not between 0 and 1"),
        ("/jobs", '{"kind": "exchange", "a": 0, "b": 0, "units": [], "moves": 0}', "greater than or equal"),
        ("/jobs", '{"kind": "push", "a": 0, "attribute": "<i>"}', "attribute <i>: there are quilt"),
        ("/jobs", '{"kind": "paint"}', "exchange or push"),
        ("/jobs/77", None, "not here any more"),
    ],
)
def test_a_mistake_is_told_in_one_line(studio, path, body, told):
    studio.number(60)
    with served(studio) as place:
        status, answer = ask(place, "POST" if body else "GET", path, body, **{"X-Name": "notes.txt"})
    assert status == 400
    assert told in answer["error"]
    assert "\n" not in answer["error"]


def test_pages_of_other_sites_and_other_names_of_this_machine_are_refused(studio):
    with served(studio) as place:
        assert ask(place, "POST", "/numbers", "60", Origin="http://evil.example")[0] == 403
        assert ask(place, "GET", "/", Host="evil.example")[0] == 400
        assert ask(place, "POST", "/numbers", "60", Origin=f"http://{place}")[0] == 201
    assert len(studio.kept) == 1


def test_a_job_can_be_stopped_and_one_that_fails_says_why():
    jobs = Jobs()

    def endless(tell):
        while True:
            tell(1)
            time.sleep(0.001)

    def broken(tell):
        raise ZeroDivisionError("of all things")

    first, second = jobs.start(10, endless), jobs.start(1, broken)
    while not first.done:
        time.sleep(0.001)
    assert first.state == "running"
    assert second.state == "waiting"
    assert first.seconds_left is not None
    first.stop = True
    while second.state != "failed":
        time.sleep(0.001)
    assert first.state == "stopped"
    assert second.error == "ZeroDivisionError: of all things"
    jobs.close()


def test_explore_of_nothing_is_told_in_one_line(tmp_path):
    result = CliRunner().invoke(app, ["explore", str(tmp_path / "nowhere"), "--port", "0"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
