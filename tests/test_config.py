"""Configs: presets load, layers win in their order, and every mistake is one line that names the key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from engine.config import Config
from engine.config_checks import micro_batch
from engine.config_errors import key_lines
from engine.config_file import METHODS, cautions, compatible, config_hash, dump, from_dict, load
from engine.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
PRESETS = sorted((ROOT / "configs").glob("*.json"))
ROOMS = {"data": {"source": "rooms", "px": 16}, "loss": {"weight": 0}}  # needs neither images nor weights


def write(folder: Path, values: dict[str, Any], name: str = "trial") -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return path


def rooms(folder: Path, *overrides: str) -> Config:
    return load(write(folder, ROOMS), overrides)


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def inputs(path: Path, folder: Path) -> list[str]:
    """Overrides that supply what a preset asks for."""
    values = json.loads(path.read_text())
    supplied = [f"data.path={folder}"] if values["data"]["source"] == "folder" else []
    if values.get("task") != "diffusion" and "weights" not in values["frozen"]:
        supplied.append("frozen.weights=random")
    return supplied


def staged(stages: str, dims: str) -> list[str]:
    return ["subsets.split=staged", f"subsets.stages={stages}", f"subsets.dims_per_stage={dims}"]


def boundaries(values: str) -> list[str]:
    return ["subsets.choice=profile", "subsets.n=4", f"subsets.boundaries={values}"]


def is_laid_over(switches: dict[str, Any], values: dict[str, Any]) -> bool:
    return all(values[section] | keys == values[section] for section, keys in switches.items())


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_loads_and_names_its_sources(path: Path, tmp_path: Path):
    config = load(path, inputs(path, tmp_path))
    assert config.notes
    assert config.run.dir == f"runs/{path.stem}"


@pytest.mark.parametrize(
    ("name", "steps", "px", "method"),
    [
        ("cifar10", 400_000, 32, "literal"),
        ("celeba64", 290_000, 64, "diffsiam"),
        ("ffhq128", 500_000, 128, "diffsiam"),
        ("bedroom", 540_000, 128, "diffsiam"),
    ],
)
def test_presets_have_the_length_resolution_and_batch_of_the_thesis(name, steps, px, method, tmp_path):
    path = ROOT / "configs" / f"{name}.json"
    config = load(path, inputs(path, tmp_path))
    assert (config.train.steps, config.data.px, config.method) == (steps, px, method)
    assert (config.train.batch_size, config.subsets.n, config.encoder.dim) == (128, 64, 512)
    assert config.encoder.arch == "resnet10"


@pytest.mark.parametrize("name", ["cifar10", "celeba64", "ffhq128", "bedroom"])
def test_a_preset_and_its_pretraining_preset_describe_the_same_diffusion_model(name, tmp_path):
    paths = [ROOT / "configs" / f"{stem}.json" for stem in (name, f"{name}_dm")]
    used, made = (load(path, inputs(path, tmp_path)) for path in paths)
    assert used.frozen.model_copy(update={"weights": None}) == made.frozen
    assert (used.schedule, used.data.px) == (made.schedule, made.data.px)


def test_defaults_are_the_literal_method():
    assert Config().method == "literal"
    assert is_laid_over(METHODS["literal"], Config().to_dict())


@pytest.mark.parametrize("method", METHODS)
def test_a_method_sets_its_switches(method, tmp_path):
    config = load(
        write(tmp_path, {"data": {"source": "rooms", "px": 16}, "method": method}),
        [
            "frozen.base_channels=32",
            "frozen.channel_mult=[1]",
            "frozen.blocks=1",
            "frozen.attention=[]",
            "frozen.weights=random",
        ],
    )
    assert config.method == method
    assert is_laid_over(METHODS[method], config.to_dict())


def test_keys_of_a_file_overrule_the_method_it_names(tmp_path):
    own = {"subsets": {"detach": False}, "simsiam": {"weight": 0.5}}
    path = write(tmp_path, ROOMS | {"method": "diti"} | own)
    config = load(path)
    assert (config.subsets.choice, config.jump.steps) == ("time_tied", "none")
    assert (config.subsets.detach, config.simsiam.weight) == (False, 0.5)


def test_a_method_on_the_command_line_overrules_the_file(tmp_path):
    own = {"subsets": {"n": 8, "choice": "profile", "detach": True}}
    path = write(tmp_path, ROOMS | {"method": "diffsiam"} | own)
    config = load(path, ["method=simsiam"])
    assert (config.method, config.subsets.choice, config.subsets.detach) == ("simsiam", "full", False)
    assert config.subsets.n == 8


def test_overrides_overrule_the_method_on_the_command_line_in_any_order(tmp_path):
    for overrides in (["method=diti", "simsiam.weight=2"], ["simsiam.weight=2", "method=diti"]):
        config = rooms(tmp_path, "loss.weight=0", *overrides)
        assert (config.simsiam.weight, config.subsets.choice) == (2.0, "time_tied")


def test_override_values_are_json_or_else_text(tmp_path):
    config = rooms(
        tmp_path,
        "train.steps=7",
        "data.flip=false",
        "optimizer.betas=[0.5, 0.9]",
        "optimizer.grad_clip=null",
        "subsets.choice=time_tied",
        'run.dir="7"',
        "optimizer.lr=1e-3",
        'log={"every": 3}',
        "train.steps=8",
    )
    assert (config.train.steps, config.data.flip, config.optimizer.betas) == (8, False, (0.5, 0.9))
    assert (config.optimizer.grad_clip, config.optimizer.lr, config.run.dir) == (None, 1e-3, "7")
    assert (config.subsets.choice, config.log.every, config.log.keep) == ("time_tied", 3, 2)


@pytest.mark.parametrize("override", ["train.steps", "=5", "--train.steps=5", "train..steps=5"])
def test_an_override_that_is_not_key_value_is_refused(override, tmp_path):
    assert "not key=value" in refusal(write(tmp_path, ROOMS), override)


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rooms(tmp_path, "run.dir=~/runs").run.dir == f"{tmp_path}/runs"


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


def test_an_untrained_diffusion_model_is_asked_for_by_name_and_cautioned_about(tmp_path):
    path = ROOT / "configs" / "bedroom.json"
    config = load(path, [f"data.path={tmp_path}", "frozen.weights=random"])
    assert "UNTRAINED" in cautions(config)[0]
    assert cautions(load(path, [f"data.path={tmp_path}", "method=simsiam"])) == []


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["subsets.n=7"], "must divide encoder.dim = 512"),
        (["subsets.n=512", "schedule.steps=512"], "must be below schedule.steps = 512"),
        (["train.batch_size=10", "train.accumulation=4"], "must divide train.batch_size = 10"),
        (["schedule.beta_start=0.5"], "exceeds schedule.beta_end = 0.02"),
        (["frozen.channel_mult=[1,2,2,2,2,2]"], "use a multiple of 32"),
        (["frozen.channel_mult=[1,2]", "frozen.attention=[4]"], "never downsamples by 4"),
        (
            ["frozen.channel_mult=[1,2]", "frozen.base_channels=32", "frozen.heads=3"],
            "does not divide the 64",
        ),
        (["simsiam.weight=0"], "nothing to train"),
        (["data.path=/tmp"], "data.source=folder"),
        (["data.px=8"], "draws 16 to 128 px"),
        (["data.source=folder", "report.factors=true"], "set report.factors=false"),
        (["encoder.arch=pdae"], "exists for data.px = 64 and 128"),
        (["subsets.choice=full", "subsets.detach=true"], "only the last would be trained"),
        (["subsets.choice=full", "subsets.mask=sequential"], "only the last would be trained"),
        (["subsets.mask=sequential", "subsets.detach=true"], "nothing before it to detach"),
        (["subsets.choice=profile"], "set subsets.choice=full"),
        (boundaries("[10,20]"), "needs 3"),
        (boundaries("[10,30,20]"), "must ascend strictly"),
        (boundaries("[0,20,30]"), "must ascend strictly"),
        (boundaries("[10,20,1000]"), "must ascend strictly"),
        (["subsets.split=staged"], "needs subsets.stages and subsets.dims_per_stage"),
        (staged("[9,1000]", "[512]"), "has 1 entries for 2"),
        (staged("[500,900]", "[256,256]"), "must ascend and end at schedule.steps = 1000"),
        (staged("[500,400,1000]", "[256,128,128]"), "must ascend and end at schedule.steps = 1000"),
        (staged("[500,1000]", "[256,255]"), "adds up to 511"),
        (staged("[500,1000]", "[500,12]"), "12 entries of z for 32 subsets"),
        (staged("[5,10,1000]", "[4,4,504]"), "4 entries of z for 0 subsets"),
        (["task=diffusion"], "needs its shape: set frozen.base_channels"),
        (["task=diffusion", "frozen.weights=random"], "leave it null"),
        (["task=diffusion", "frozen.learn_sigma=true"], "not trained by Eq. 3.4"),
        (["loss.weight=1", "frozen.weights=random"], "needs its shape: set frozen.base_channels"),
    ],
    ids=str,
)
def test_an_impossible_combination_is_refused(overrides, reason, tmp_path):
    assert reason in refusal(write(tmp_path, ROOMS), *overrides)


def test_the_unequal_split_of_diti_is_possible(tmp_path):
    config = rooms(tmp_path, *staged("[50,100,300,500,1000]", "[10,25,327,100,50]"))
    assert sum(config.subsets.dims_per_stage or ()) == config.encoder.dim


def test_the_global_batch_is_shared_by_ranks_and_accumulation_steps(tmp_path):
    config = rooms(tmp_path, "train.batch_size=48", "train.accumulation=2")
    assert [micro_batch(config, world) for world in (1, 2, 8)] == [24, 12, 3]
    with pytest.raises(UsageError, match=r"train\.batch_size=40 or train\.batch_size=50"):
        micro_batch(config, 5)


def test_a_dumped_config_loads_unchanged(tmp_path):
    config = rooms(tmp_path, "method=simsiam", "optimizer.betas=[0.5,0.9]", "seed=3")
    path = tmp_path / "config.json"
    path.write_text(dump(config))
    assert load(path) == config
    assert from_dict(config.to_dict()) == config


def test_a_recorded_config_is_read_without_its_data_and_weights():
    values = Config().to_dict() | {"data": {"source": "folder", "path": "/gone"}}
    assert from_dict(values).data.path == "/gone"
    with pytest.raises(UsageError, match="recorded config: train.stpes"):
        from_dict({"train": {"stpes": 1}})


def test_the_hash_ignores_what_does_not_change_the_result(tmp_path):
    config = rooms(tmp_path)
    same = rooms(tmp_path, "run.dir=/elsewhere", "log.every=7", "data.threads=9", 'notes=["x"]')
    assert config_hash(config) == config_hash(same)
    for override in ("seed=1", "train.steps=9", "optimizer.lr=0.5", "subsets.n=8", "data.flip=false"):
        assert config_hash(config) != config_hash(rooms(tmp_path, override)), override


def test_the_hash_depends_on_effective_values_and_not_on_how_they_were_written(tmp_path):
    plain = load(write(tmp_path, ROOMS), ["subsets.choice=time_tied", "subsets.detach=true"])
    named = load(write(tmp_path, ROOMS, "other"), ["method=diffsiam", "loss.weight=0"])
    assert config_hash(plain) == config_hash(named)


def test_resuming_allows_another_length_and_rate_and_refuses_another_model(tmp_path):
    old = rooms(tmp_path).to_dict()
    new = rooms(tmp_path, "train.steps=9", "optimizer.lr=0.5", "subsets.n=8", "train.batch_size=4")
    differences = compatible(old, new)
    assert differences.refused == ("subsets.n: 64 -> 8", "train.batch_size: 128 -> 4")
    assert differences.allowed == ("optimizer.lr: 0.0001 -> 0.5", "train.steps: 500000 -> 9")


@pytest.mark.parametrize(
    "override",
    [
        "data.px=32",
        "encoder.dim=256",
        "encoder.arch=resnet18",
        "seed=2",
        "optimizer.name=sgd",
        "schedule.steps=500",
    ],
)
def test_resuming_refuses_what_shapes_tensors_or_draws(override, tmp_path):
    differences = compatible(rooms(tmp_path).to_dict(), rooms(tmp_path, override))
    assert [line.split(":")[0] for line in differences.refused] == [override.split("=")[0]]


def test_resuming_takes_a_key_that_the_record_lacks_as_its_default(tmp_path):
    config = rooms(tmp_path)
    old = config.to_dict()
    del old["parallel"], old["subsets"]["mask"]
    assert compatible(old, config) == compatible(config.to_dict(), config)
    old["subsets"]["gone"] = 1
    assert compatible(old, config).refused == ("subsets.gone: 1 -> absent",)


def test_a_config_cannot_be_changed(tmp_path):
    config = rooms(tmp_path)
    with pytest.raises(ValidationError):
        config.subsets.n = 3
    with pytest.raises(ValidationError):
        config.seed = 3


def test_every_key_is_described():
    def undescribed(model: type[BaseModel]) -> list[str]:
        names = []
        for name, field in model.model_fields.items():
            section = field.annotation
            if isinstance(section, type) and issubclass(section, BaseModel):
                assert section.__doc__
                names += undescribed(section)
            elif not field.description:
                names.append(f"{model.__name__}.{name}")
        return names

    assert undescribed(Config) == []


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
