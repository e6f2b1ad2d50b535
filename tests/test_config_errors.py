"""Mistakes in a config: one line that says where, which key, what is wrong, and the nearest valid key."""

from __future__ import annotations

import subprocess
import sys

import pytest
from config_files import ROOMS, ROOT, refusal, write

from engine.config_errors import key_lines
from engine.config_file import load


@pytest.mark.parametrize("override", ["train.steps", "=5", "--train.steps=5", "train..steps=5"])
def test_an_override_that_is_not_key_value_is_refused(override, tmp_path):
    assert "not key=value" in refusal(write(tmp_path, ROOMS), override)


def test_a_misspelt_key_is_reported_with_file_line_and_nearest_key(tmp_path):
    path = write(tmp_path, ROOMS | {"subsets": {"n": 8, "choise": "full"}})
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "choise" in text)
    message = refusal(path)
    assert message.startswith(f"{path}:{line}: subsets.choise")
    assert message.endswith("subsets.choice")


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("batch_size=4", "train.batch_size"),
        ("train.stpes=4", "train.steps"),
        ("scedule.steps=4", "schedule.steps"),
        ("steps=4", "schedule.steps or jump.steps or train.steps"),
        ("grad_klip=4", "optimizer.grad_clip"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("model.width=3", "encoder.width"),
        ("subset.n=4", "subsets.n"),
    ],
)
def test_a_misspelt_override_is_reported_with_the_nearest_key(override, near, tmp_path):
    path = write(tmp_path, ROOMS)
    message = refusal(path, override)
    assert str(path) in message
    assert f"override {override}" in message
    assert message.endswith(f"the nearest is {near}")


def test_a_key_like_no_other_is_answered_with_the_keys_there_are(tmp_path):
    assert "jump.steps, jump.time" in refusal(write(tmp_path, ROOMS), "jump.zzzz=1")
    assert "there are task, method, seed" in refusal(write(tmp_path, ROOMS), "zzzz.qqqq=1")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=many", 'expected a whole number, got "many"'),
        ("train.steps=1e3", "expected a whole number, got 1000.0; write 1000"),
        ("optimizer.lr=fast", 'expected a number, got "fast"'),
        ("optimizer.lr=0", "expected a value greater than 0, got 0"),
        ("optimizer.lr=NaN", "expected a finite number, got NaN"),
        ("data.flip=1", "expected true or false, got 1"),
        ("run.dir=5", "expected a string, got 5; write run.dir='\"5\"' for the text"),
        ("optimizer.betas=0.9", "expected a list [...], got 0.9"),
        ("optimizer.betas=[0.9]", "optimizer.betas.1: field required, got [0.9]"),
        ("train=5", "expected a section {...}, got 5"),
        ("subsets.choice=tiem_tied", "the nearest is time_tied"),
        ("method=ditti", "the nearest is diti"),
        ("parallel.zero=true", "expected 'auto', 0, 1, 2 or 3, got true"),
        ("parallel.zero=false", "expected 'auto', 0, 1, 2 or 3, got false"),
        ("parallel.zero=1.0", "expected 'auto', 0, 1, 2 or 3, got 1.0"),
        ("parallel.zero=4", "expected 'auto', 0, 1, 2 or 3, got 4"),
        ("log.keep=1", "expected a value greater than or equal to 2, got 1"),
    ],
)
def test_a_wrong_value_is_reported_with_what_is_expected_and_what_was_given(override, expected, tmp_path):
    message = refusal(write(tmp_path, ROOMS), override)
    assert override.partition("=")[0] in message
    assert expected in message


def test_a_wrong_value_in_a_file_is_reported_with_its_line(tmp_path):
    path = write(tmp_path, {"seed": 1, "train": {"steps": "5"}})
    assert refusal(path).startswith(f"{path}:4: train.steps: expected a whole number")


def test_further_problems_are_counted(tmp_path):
    message = refusal(write(tmp_path, ROOMS), "train.steps=0", "log.evry=1", "data.flip=2")
    assert "log.evry" in message
    assert message.endswith("(and 2 more)")


def test_lines_of_keys_are_found_in_nested_sections_and_past_braces_in_strings():
    text = '{\n "a": {"b": "}{:",\n  "c": [1, {"x": 2}]},\n "d": 1\n}'
    lines = key_lines(text)
    assert {key: lines[key] for key in ("a", "a.b", "a.c", "d")} == {"a": 2, "a.b": 2, "a.c": 3, "d": 4}


def test_a_missing_file_is_answered_with_the_configs_there_are(tmp_path):
    message = refusal(tmp_path / "bedrom.json")
    assert "no such config file" in message
    assert str(ROOT / "configs" / "bedroom.json") in message
    other = write(tmp_path, ROOMS)
    assert str(other) in refusal(tmp_path / "trail.json")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"seed": 1,\n "train": {"steps" 3}}', ":2:20: invalid JSON"),
        ("[1]", "a JSON object"),
        ('{"seed": 1, "seed": 2}', '"seed" appears twice'),
        ("", "invalid JSON"),
    ],
)
def test_text_that_is_no_config_is_refused_with_its_place(text, expected, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    message = refusal(path)
    assert str(path) in message
    assert expected in message


def test_missing_images_and_weights_are_reported_together_with_commands():
    message = refusal(ROOT / "configs" / "bedroom.json")
    assert "images and a diffusion model" in message
    for part in (
        "data.path=DIR",
        "frozen.weights=FILE",
        "bedroom128 checkpoint.pt",
        "bedroom_dm.json",
        "frozen.weights=random",
        "configs/quickstart.json",
    ):
        assert part in message


def test_only_what_is_missing_is_reported(tmp_path):
    path = ROOT / "configs" / "bedroom.json"
    assert "data.path=DIR (" not in refusal(path, f"data.path={tmp_path}")
    assert "frozen.weights" not in refusal(path, "frozen.weights=random")
    assert "frozen.weights" not in refusal(path, "method=simsiam")
    assert "frozen.weights" not in refusal(ROOT / "configs" / "bedroom_dm.json")


@pytest.mark.parametrize("key", ["data.path", "frozen.weights"])
def test_a_path_that_does_not_exist_is_reported(key, tmp_path):
    path = ROOT / "configs" / "bedroom.json"
    places = {"data.path": str(tmp_path), "frozen.weights": "random"} | {key: str(tmp_path / "nowhere")}
    message = refusal(path, *(f"{name}={place}" for name, place in places.items()))
    assert f"{key}: {tmp_path / 'nowhere'} does not exist" in message


def test_a_shipped_model_that_does_not_exist_is_reported_with_the_nearest(tmp_path, monkeypatch):
    monkeypatch.setattr("engine.config_file.ASSETS", tmp_path)
    (tmp_path / "rooms16.safetensors").touch()
    path = ROOT / "configs" / "quickstart.json"
    assert load(path).frozen.weights == "builtin:rooms16"
    assert "there is builtin:rooms16" in refusal(path, "frozen.weights=builtin:rooms61")


def test_a_mistake_is_reported_without_importing_torch_or_deepspeed():
    code = (
        "import sys\n"
        "from engine.config_file import load\n"
        "from engine.errors import UsageError\n"
        "try:\n    load('configs/quickstart.json', ['train.stpes=1'])\n"
        "except UsageError as error:\n    print(error)\n"
        "print([name for name in ('torch', 'deepspeed', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    message, imported = done.stdout.splitlines()
    assert "train.steps" in message
    assert imported == "[]"
