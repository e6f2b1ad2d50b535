"""Configs: presets load, layers win in their order, and a recorded one says whether a run may go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from config_files import ROOMS, ROOT, inputs, rooms, write
from pydantic import BaseModel, ValidationError

from engine.config import Config
from engine.config_file import METHODS, cautions, compatible, config_hash, dump, from_dict, load
from engine.errors import UsageError

PRESETS = sorted((ROOT / "configs").glob("*.json"))


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


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert rooms(tmp_path, "run.dir=~/runs").run.dir == f"{tmp_path}/runs"


def test_an_untrained_diffusion_model_is_asked_for_by_name_and_cautioned_about(tmp_path):
    path = ROOT / "configs" / "bedroom.json"
    config = load(path, [f"data.path={tmp_path}", "frozen.weights=random"])
    assert "UNTRAINED" in cautions(config)[0]
    assert cautions(load(path, [f"data.path={tmp_path}", "method=simsiam"])) == []


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
