"""Hostile files, through every command that reads files of their kind: refused in one line, nothing run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import uvicorn
from edited_runs import VALUES, write_images
from hostile import BESIDE, DEEP, EVIL, HARM, PROOF, bomb, hostile_runs, image_sets, weights, whole_run
from reported_runs import evaluation
from served import ask, served
from test_cli import NAMES, diffsiam
from test_report_page import Page

from engine.edit.opening import open_model
from engine.explore.studio import Studio

pytestmark = [pytest.mark.faults]
REFUSALS = (2, 4, 5)
FEW = ("--moves", "1", "--inversion-moves", "1")

# Command lines by what they read: FILE stands for the hostile one, RUN for a whole run, OUT for a new place.
READS = {
    "weights": [
        "train --config CONFIG --dry-run frozen.weights=FILE",
        "convert FILE OUT",
        "convert FILE OUT --isolated",
        "plan --config CONFIG frozen.weights=FILE",
        "lost-attributes FILE --out OUT",
        "inspect-model FILE",
        "counterfactual FILE --out OUT",
        "interpolate FILE --out OUT",
        "manipulate FILE -a Smiling --out OUT",
        "measure-edits RUN --alexnet FILE --out OUT",
        "measure-edits RUN --alexnet FILE --lpips FILE --out OUT",
        "measure-edits RUN --inception FILE --out OUT",
        "explore FILE --port 0",
    ],
    "images": [
        "train --config CONFIG data.source=auto data.path=FILE run.dir=OUT",
        "inspect FILE --sheet OUT",
        "prepare FILE OUT --px 16",
        "evaluate RUN --data FILE --suite knn --out OUT",
        "lost-attributes RUN --data FILE --out OUT",
        "inspect-model RUN --data FILE",
        "counterfactual RUN --data FILE --out OUT",
        "interpolate RUN --data FILE --out OUT",
        "manipulate RUN --data FILE -a Smiling --labels LABELS --out OUT",
        "measure-edits RUN --data FILE --out OUT",
        "report RUN --labels LABELS --data FILE --out OUT",
        "explore RUN --labels LABELS --data FILE --port 0",
    ],
    "image": [
        "counterfactual RUN -i FILE -i FILE --out OUT",
        "interpolate RUN -i FILE -i FILE --out OUT",
        "manipulate RUN -i FILE -a Smiling --labels LABELS --out OUT",
        "lost-attributes RUN -i FILE --out OUT",
    ],
    "labels": [
        "manipulate RUN -a Smiling --labels FILE --data IMAGES --out OUT",
        "report RUN --labels FILE --data IMAGES --out OUT",
        "explore RUN --labels FILE --data IMAGES --port 0",
    ],
    "run": [
        "export FILE OUT",
        "evaluate FILE --out OUT",
        "replay FILE",
        "counterfactual FILE --out OUT",
        "interpolate FILE --out OUT",
        "manipulate FILE -a Smiling --out OUT",
        "lost-attributes FILE --out OUT",
        "inspect-model FILE",
        "measure-edits FILE --out OUT",
        "report FILE --explorer",
        "report FILE --labels LABELS",
        "explore FILE --port 0",
        "runs reproduce FILE --prepare",
    ],
    "what a run left": [
        "report FILE --out OUT",
        "runs list FILE",
        "runs compare FILE RUN",
        "runs prune FILE",
    ],
    "config": [
        "train --config FILE",
        "train --config FILE --dry-run",
        "plan --config FILE",
        "config show FILE",
        "verify-resume --config FILE",
    ],
    "claims": ["report RUN --claims FILE --out OUT"],
    "nothing": ["rooms", "doctor", "config explain"],
}


def name_of(line: str) -> str:
    return next(" ".join(names) for names in NAMES if tuple(line.split()[: len(names)]) == names)


def lines(kind: str) -> list:
    """Of a kind, for `make test` the first alone."""
    first, *others = READS[kind]
    return [first, *(pytest.param(line, marks=pytest.mark.thorough) for line in others)]


def test_every_command_is_among_them():
    assert {name_of(line) for kind in READS.values() for line in kind} == {" ".join(n) for n in NAMES}


@pytest.fixture(scope="module")
def place(tmp_path_factory, awaken) -> Path:
    """A folder with a whole run, labels, and a config that needs neither."""
    folder = tmp_path_factory.mktemp("hostile")
    whole_run(folder / "run", awaken)
    (folder / "config.json").write_text(json.dumps(VALUES))
    (folder / "labels.csv").write_text("image,Smiling\n" + "".join(f"{i},{i % 2}\n" for i in range(60)))
    write_images(folder / "whole", 4)
    return folder


@pytest.fixture
def call(place, tmp_path, monkeypatch):
    """Carry out a command line; nothing of what it reads runs, and no explorer begins to serve."""

    def serves(*_, **__):
        raise AssertionError("it would serve now")

    monkeypatch.setattr(uvicorn.Server, "run", serves)

    def call(line: str, file: Path):
        words = {"FILE": file, "RUN": place / "run", "OUT": tmp_path / "out"}
        words |= {"CONFIG": place / "config.json", "LABELS": place / "labels.csv"}
        words["IMAGES"] = place / "whole"
        for path in (tmp_path / "out",):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        filled = []
        for word in line.split():
            key, sign, value = word.rpartition("=")
            filled.append(f"{key}{sign}{words.get(value, value)}")
        result = diffsiam(*filled)
        told = f"diffsiam {' '.join(filled)}\n{result.stderr}"
        assert isinstance(result.exception, SystemExit | None), f"{told}{result.exception!r}"
        assert "Traceback" not in result.output, told
        assert not list(place.rglob(PROOF)), told
        assert not list(place.parent.rglob("outside*")), told
        return result

    return call


def refused(result, file: Path) -> str:
    """The one line that says why."""
    assert result.exit_code in REFUSALS, result.output
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.stderr.strip().endswith(error)
    assert len(error) < 600
    return error


@pytest.fixture(scope="module")
def hostile_weights(place):
    return weights(place / "weights")


@pytest.mark.parametrize("line", lines("weights"))
def test_weights_that_would_run_something_or_claim_too_much_are_refused(line, call, hostile_weights):
    one = ["archive.pt"] if "--isolated" in line else list(hostile_weights)  # a process each
    for name in one:
        said = refused(call(line, hostile_weights[name]), hostile_weights[name])
        assert str(hostile_weights[name]) in said
        assert not said.rstrip().endswith(tuple("0123456789")) or "bytes" in said, "a reason, not a number"


@pytest.fixture(scope="module")
def hostile_images(place):
    return image_sets(place / "images")


@pytest.mark.parametrize("line", lines("images"))
def test_sets_of_images_that_are_none_are_refused(line, call, hostile_images):
    for name, path in hostile_images.items():
        if line.startswith("explore") and name in ("bombs", "tar"):
            continue  # opened, and each image refused when it is asked for
        refused(call(line, path), path)


@pytest.mark.parametrize("line", lines("image"))
@pytest.mark.parametrize("content", ["bomb", "text", "nothing"])
def test_an_image_that_is_none_is_refused(line, content, call, tmp_path):
    file = tmp_path / "image.png"
    file.write_bytes({"bomb": bomb(), "text": EVIL.encode(), "nothing": b""}[content])
    assert str(file) in refused(call(line, file), file)


LABELS = {
    "a row of a megabyte": "image,Smiling\n" + "x" * (1 << 20) + ",1\n",
    "quotes that never end": 'image,Smiling\n"0,1\n' + "1,1\n" * 50_000,
    "a label that is code": "image,Smiling\n0,__import__('os').mkdir('it_ran')\n",
    "no text": "\0\0\0",
    "nothing": "",
}


@pytest.mark.parametrize("line", lines("labels"))
def test_labels_that_are_none_are_refused(line, call, tmp_path):
    for name, content in LABELS.items():
        file = tmp_path / "labels.csv"
        file.write_text(content)
        assert str(file) in refused(call(line, file), file), name


@pytest.fixture(scope="module")
def runs(place, awaken):
    return hostile_runs(place / "runs", awaken)


@pytest.mark.parametrize("line", lines("run"))
def test_a_run_whose_checkpoint_is_not_what_it_says_is_refused(line, call, runs):
    for path in runs.values():
        refused(call(line, path), path)


def test_training_refuses_it_too(launcher, runs):
    for name in ("a nested state", "a pickle for tensors", "files out of its folder"):
        said = launcher.run(runs[name], code=2 if name == "a pickle for tensors" else 4)
        assert "Traceback" not in said


@pytest.mark.parametrize("line", lines("what a run left"))
def test_what_a_run_left_is_listed_without_what_cannot_be_read(line, call, runs, place, tmp_path):
    for path in runs.values():
        result = call(line, path)
        if line.startswith("runs prune") and result.exit_code:
            refused(result, path)
        else:
            assert result.exit_code == 0, result.stderr
    for name, content in BESIDE.items():
        run = shutil.copytree(place / "run", tmp_path / name.replace("/", "_"))
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(content)
        result = call(line, run)
        if (name, name_of(line)) == ("config.json", "report"):
            assert "config.json" in refused(result, run)
        else:
            assert result.exit_code == 0, (name, result.stderr)


CONFIGS = {
    "nested": DEEP,
    "of YAML": "run: !!python/object/apply:os.mkdir [it_ran]",
    "a number of a million digits": '{"seed": ' + "9" * 1_000_000 + "}",
    "not a number": '{"optimizer": {"lr": NaN}}',
    "no text": "\0",
    "a list": "[]",
}


@pytest.mark.parametrize("line", lines("config"))
def test_a_config_that_is_none_is_refused(line, call, tmp_path):
    for name, content in CONFIGS.items():
        file = tmp_path / "evil.json"
        file.write_text(content)
        assert "evil.json" in refused(call(line, file), file), name


@pytest.mark.parametrize("line", lines("claims"))
def test_claims_that_are_none_are_refused(line, call, tmp_path):
    for content in (DEEP, "[]", "{}", "\0"):
        file = tmp_path / "claims.json"
        file.write_text(content)
        assert str(file) in refused(call(line, file), file)


def test_the_explorer_s_page_shows_labels_that_are_code_as_text(place, tmp_path):
    def page(label: str) -> Page:
        run = shutil.copytree(place / "run", tmp_path / ("evil" if "<" in label else "plain"))
        (run / "report").mkdir()
        factors = [label, *evaluation(4)["factors"][1:]]
        (run / "report" / "evaluation.json").write_text(json.dumps(evaluation(4, factors=factors)))
        file = tmp_path / "named.csv"
        file.write_text(f"image,{label}\n" + "".join(f"{i},{i % 2}\n" for i in range(60)))
        studio = Studio(open_model(run), tmp_path / run.name, file, None)
        with served(studio) as there:
            (tmp_path / "page.html").write_bytes(ask(there, "GET", "/")[1])
        return Page(tmp_path / "page.html")

    plain, evil = page("quilt"), page(EVIL)
    assert (evil.scripts, evil.handlers) == (plain.scripts, plain.handlers)
    assert EVIL in evil.text


def test_every_harm_is_more_than_a_wrong_sum(place, awaken, tmp_path):
    """They are refused for what they hold: with these sums the whole run is read."""
    from hostile import sealed

    run = whole_run(tmp_path / "again", awaken)
    (checkpoint,) = (run / "checkpoints").glob("step_*")
    (checkpoint / "state.json").write_text((checkpoint / "state.json").read_text() + "\n")
    sealed(checkpoint)
    assert diffsiam("export", str(run), str(tmp_path / "out")).exit_code == 0
    assert len(HARM) > 10
