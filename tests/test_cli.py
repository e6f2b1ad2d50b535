"""The ``diffsiam`` command."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from engine.cli import app, factor_row
from engine.config import Config
from engine.config_explain import explain
from engine.data.rooms import FACTORS, LEVELS, Rooms, render
from engine.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.json")


def diffsiam(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_names_every_command():
    result = diffsiam("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in ("train", "rooms", "config"))


def test_help_takes_less_than_half_a_second_of_processor_time_and_never_imports_torch():
    heavy = "{'torch', 'pydantic', 'deepspeed', 'numpy'}"
    code = f"""
import sys
from engine.cli import app
try:
    app(["--help"])
except SystemExit as end:
    assert not end.code
print(sorted({heavy} & set(sys.modules)), file=sys.stderr)
"""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert result.stderr.strip() == "[]"
    assert min(taken) < 0.5


def test_config_show_prints_the_effective_config_with_overrides():
    result = diffsiam("config", "show", QUICKSTART, "train.batch_size=32", "method=literal")
    values = json.loads(result.stdout)
    assert values["train"]["batch_size"] == 32
    assert values["subsets"]["choice"] == "random"
    assert values["subsets"]["detach"] is False
    assert set(values) == set(Config.model_fields)


@pytest.mark.parametrize("override", ["seed=0", "data.path=/nowhere", "frozen.weights=/nowhere.pt"])
def test_config_show_needs_neither_images_nor_weights(override):
    result = diffsiam("config", "show", str(ROOT / "configs" / "bedroom.json"), override)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["data"]["px"] == 128


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("config", "show", QUICKSTART, "tran.steps=3"), "train.steps"),
        (("config", "show", "missing.json"), "no such config file"),
        (("config", "explain", "lr"), "optimizer.lr"),
        (("rooms", "--px", "8"), "16 to 128"),
        (("train", "--config", QUICKSTART, "train.steps=many"), "train.steps"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_code_2(arguments, hint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = diffsiam(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert hint in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_train_is_the_training_entry_with_the_same_arguments(monkeypatch):
    import engine.train

    seen = []
    monkeypatch.setattr(engine.train, "main", lambda arguments: seen.append(arguments) or 4)
    result = diffsiam("train", "--config", "c.json", "seed=1", "--dry-run", "train.steps=2")
    assert seen == [["--config", "c.json", "seed=1", "train.steps=2", "--dry-run"]]
    assert result.exit_code == 4


def test_explain_covers_every_key_of_the_schema():
    top = explain()
    assert [entry.key for entry in top] == list(Config.model_fields)
    for entry in top:
        if entry.type == "section":
            model = Config.model_fields[entry.key].annotation
            keys = [inner.key for inner in explain(entry.key)]
            assert keys == [entry.key, *(f"{entry.key}.{name}" for name in model.model_fields)]


@pytest.mark.parametrize(
    ("key", "kind", "default"),
    [
        ("subsets.choice", '"random" | "time_tied" | "profile" | "full"', '"random"'),
        ("optimizer.betas", "[number >= 0 and < 1, number >= 0 and < 1]", "[0.9, 0.999]"),
        ("frozen.base_channels", "integer > 0 and a multiple of 4 | null", "null"),
        ("parallel.zero", '"auto" | 0 | 1 | 2 | 3', '"auto"'),
        ("data.flip", "boolean", "true"),
    ],
)
def test_explain_gives_type_default_and_description(key, kind, default):
    (entry,) = explain(key)
    assert (entry.type, entry.default) == (kind, default)
    assert len(entry.description) > 10


def test_explain_of_an_unknown_key_names_the_nearest():
    with pytest.raises(UsageError, match="subsets.choice"):
        explain("subsets.choise")


def test_explain_prints_key_section_and_list():
    assert "thesis Alg. 1" in diffsiam("config", "explain", "subsets.choice").stdout
    assert "optimizer.grad_clip" in diffsiam("config", "explain", "optimizer").stdout
    assert "subsets" in diffsiam("config", "explain").stdout


def test_rooms_lists_every_factor_and_writes_the_sheet(tmp_path):
    out = tmp_path / "deep" / "sheet.png"
    result = diffsiam("rooms", "--px", "16", "--out", str(out), "--seed", "3")
    assert result.exit_code == 0
    assert all(factor.name in result.stdout for factor in FACTORS)
    assert str(out) in result.stdout.replace("\n", "")
    with Image.open(out) as image:
        assert image.height > 14 * 64
        assert image.width > 6 * 64


def test_a_factor_row_holds_the_room_itself_and_differs_in_that_factor_only():
    room = Rooms(16, seed=1).factors(np.array([0]))[0]
    for index in (0, 10):
        row = factor_row(room, index, 16, int(LEVELS.max()))
        assert (row[room[index]] == render(room[None], 16)[0]).all()
        changed = room.copy()
        changed[index] = (room[index] + 1) % LEVELS[index]
        assert (row[changed[index]] == render(changed[None], 16)[0]).all()
        assert (row[LEVELS[index] :] == 255).all()
