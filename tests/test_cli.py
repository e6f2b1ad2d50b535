"""The ``diffsiam`` command."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from engine.cli import app
from engine.config import Config
from engine.config_explain import explain, leaves
from engine.data.rooms import FACTORS, LEVELS, Rooms, render
from engine.errors import UsageError
from engine.examples import EXAMPLES
from engine.rooms_sheet import factor_row

ROOT = Path(__file__).resolve().parent.parent
QUICKSTART = str(ROOT / "configs" / "quickstart.json")


def diffsiam(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_help_names_every_command():
    result = diffsiam("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in ("train", "rooms", "config"))


# Not pydantic, which typer itself takes to describe an option.
HEAVY = {"torch", "numpy", "rich", "deepspeed", "PIL", "nvidia", "tensorboard"}


def commands(group: Any = None, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its name in parts, groups left out."""
    group = get_command(app) if group is None else group
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*names, name))
        else:
            yield (*names, name), command


NAMES = [names for names, _ in commands()]


def test_help_of_every_command_is_answered_without_a_heavy_module():
    code = f"""
import sys
from engine.cli import app
for names in {[(), ("config",), *NAMES]!r}:
    try:
        app([*names, "--help"])
    except SystemExit as end:
        assert not end.code
print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stderr.strip() == "[]"
    assert result.stdout.count("Usage:") == len(NAMES) + 2


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
def test_help_ends_with_examples_and_is_plain(names):
    result = diffsiam(*names, "--help")
    assert "Examples:" in result.stdout
    assert f"diffsiam {' '.join(names)}" in result.stdout
    assert result.stdout.isascii()


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_every_example_is_a_command_line_that_the_command_takes(line):
    """Read, not run; a file of the repository that it names exists, and so do the keys it overrides."""
    name, *words = shlex.split(line)
    assert name == "diffsiam"
    (names, command), *none = [(n, c) for n, c in commands() if tuple(words[: len(n)]) == n]
    assert not none
    assert line in EXAMPLES[" ".join(names)]
    parameters = command.make_context(" ".join(names), words[len(names) :]).params
    assert all((ROOT / word).exists() for word in words if word.startswith("configs/"))
    assert all(word.partition("=")[0] in leaves() for word in parameters.get("overrides") or ())


def complete(words: str) -> list[str]:
    """What bash offers at the end of a line."""
    env = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = CliRunner().invoke(
        app, [], prog_name="diffsiam", env={**env, "_DIFFSIAM_COMPLETE": "complete_bash"}
    )
    return result.stdout.split()


def test_the_shell_completes_commands_and_keys_of_the_config():
    assert complete("diffsiam coun") == ["counterfactual"]
    assert complete("diffsiam config show configs/quickstart.json optimizer.l") == ["optimizer.lr="]
    assert complete("diffsiam config explain subsets.ch") == ["subsets.choice"]


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
