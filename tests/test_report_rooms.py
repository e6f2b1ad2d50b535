"""The report of a run on Rooms, on models and an oracle of which the answer is known."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from known_models import KnowsNothing
from PIL import Image
from torch import nn

from diffsiam.decoder import Decoder
from diffsiam.encoder import build_encoder
from diffsiam.evaluation.swap import CONTROLS, Live
from diffsiam.objective import DiffSiam
from diffsiam.sampling import to_uint8
from diffsiam.schedule import Schedule
from diffsiam.subsets import Subsets
from diffsiam.unet import UNet, UNetConfig
from engine.config_file import config_hash, from_dict
from engine.data.rooms import LEVELS, VERSION, Rooms
from engine.report import grids, rooms, verdict
from engine.report.verdict import Arm
from engine.sheet import FRAME
from kernels.noise_jump.ref import noise_jump

torch.set_num_threads(1)
PX = 16


class Nearest(nn.Module):
    """An oracle that knows some rooms: it reads the factors of the one that looks most like the image."""

    def __init__(self, known: Rooms):
        super().__init__()
        indices = np.arange(len(known))
        images = torch.from_numpy(known.images(indices)).permute(0, 3, 1, 2)
        self.images = (images / 127.5 - 1).flatten(1)
        self.levels = torch.from_numpy(known.factors(indices))

    def read(self, images):
        return self.levels[torch.cdist(images.flatten(1), self.images).argmin(dim=1)]


class Pixels(nn.Module):
    """z = the image at half its size, the upper half in subset 1 and the lower half in subset 2."""

    def __init__(self):
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return nn.functional.avg_pool2d(x, 2).permute(0, 2, 3, 1).flatten(1)


class Paints(nn.Module):
    """A decoder after which x_0_hat is the image that z_bar holds."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, features, z_bar):
        x, t = features
        a = self.schedule.at("alpha_bar", t)
        image = z_bar.unflatten(1, (PX // 2, PX // 2, 3)).permute(0, 3, 1, 2)
        return a.sqrt() / (1 - a) * nn.functional.interpolate(image, scale_factor=2)


@pytest.fixture(scope="module")
def config():
    values = {
        "data": {"source": "rooms", "px": PX, "count": 64},
        "frozen": {"weights": "somewhere.safetensors"},
        "encoder": {"arch": "resnet10", "width": 8, "dim": 32},
        "subsets": {"n": 2, "choice": "full"},
        "jump": {"steps": "none"},
        "simsiam": {"weight": 0.0},
        "train": {"steps": 10},
        "seed": 7,
    }
    return from_dict(values)


@pytest.fixture(scope="module")
def held_out(config):
    return Rooms(PX, config.seed, config.data.count).held_out(140)


@pytest.fixture(scope="module", autouse=True)
def small(held_out):
    """A report that takes a second, and an oracle that knows its rooms."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"PROBE_TRAIN": 100, "PROBE_TEST": 40, "LOSS_ROOMS": 40, "PROFILE_ROOMS": 12}
        for name, value in sizes.items():
            patch.setattr(rooms, name, value)
        patch.setattr(rooms, "load_oracle", lambda px: Nearest(held_out))
        yield


def painting():
    schedule = Schedule()
    subsets = Subsets([96, 192], choice="full", jump=False)
    return DiffSiam(Pixels(), Paints(schedule), None, KnowsNothing(schedule), schedule, subsets).eval()


@pytest.fixture(scope="module")
def reported(config, tmp_path_factory):
    """What ``after`` returns, prints and writes of a model that paints z: record, lines, directory."""
    run_dir, printed = tmp_path_factory.mktemp("run"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        record = rooms.after(painting(), run_dir, config, pairs=10, moves=3)
    return record, printed.getvalue().splitlines(), run_dir / "report"


def test_a_model_that_paints_z_moves_every_factor_with_all_of_z(reported):
    record, lines, _ = reported
    run = record["arms"]["this run"]
    assert run["moved_by_all"] == 12
    assert run["loss_reduction"] > 0.75  # a half-size image is not the whole
    assert lines[0] == f"Rooms: {record['verdict']}"
    cells = {line.split()[0]: line.split() for line in lines if line.split()}
    assert cells["none"].count(".00") == 12
    assert cells["all"].count("1.00") == 12
    assert any("not available" in line for line in lines) == (record["arms"]["full z (PDAE)"] is None)


def test_the_record_on_disk_is_strict_json_and_names_the_run(reported, config):
    record, _, report = reported
    text = (report / "evaluation.json").read_text()
    stored = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert stored["config_hash"] == config_hash(config)
    assert (stored["rooms"], stored["px"]) == (VERSION, PX)
    assert stored["verdict"] == record["verdict"]
    assert np.shape(stored["causal"]["success"]) == (2 + len(CONTROLS), 12)
    assert stored["causal"]["rows"] == ["subset 1", "subset 2", *CONTROLS]
    baseline, origin = verdict.read_baseline(PX, VERSION, report / "evaluation.json")
    assert baseline == Arm(**record["arms"]["this run"])
    assert config_hash(config)[:12] in origin


def test_the_counterfactual_sheet_shows_the_originals_framed(reported, held_out):
    sheet = np.asarray(Image.open(reported[2] / "counterfactuals.png").convert("RGB"))
    (a,) = held_out.images(np.array([130]))  # the first of the last ten
    assert _occurs(sheet, a.repeat(4, axis=0).repeat(4, axis=1))
    assert (sheet == FRAME).all(axis=-1).any()


def _occurs(canvas, tile):
    ys, xs = np.nonzero((canvas == tile[0, 0]).all(-1))
    return any(
        np.array_equal(canvas[y : y + len(tile), x : x + len(tile)], tile)
        for y, x in zip(ys, xs, strict=True)
    )


def test_without_a_decoder_only_the_probe_is_reported_and_the_bar_is_missed(config, tmp_path, capsys):
    model = DiffSiam(build_encoder("resnet10", PX, 8, 32), None, None, None, Schedule(), Subsets([16, 32]))
    record = rooms.after(model.eval(), tmp_path, config)
    assert record["causal"] is None
    assert record["arms"]["this run"]["moved_by_all"] is None
    assert capsys.readouterr().out.startswith("Rooms: misses the bar: ")
    assert not (tmp_path / "report" / "counterfactuals.png").exists()


def test_the_random_encoder_is_the_one_that_the_run_began_with(config):
    state = torch.get_rng_state()
    first = rooms._untrained(config, torch.device("cpu")).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(config.seed)
    begun = build_encoder("resnet10", PX, 8, 32).state_dict()
    assert all(torch.equal(first[name], value) for name, value in begun.items())


def test_a_frozen_model_that_knows_nothing_has_lost_every_factor_from_the_start(
    tmp_path, monkeypatch, capsys
):
    known = Rooms(PX, rooms.PROFILE_SEED_OF_ROOMS, 12)
    monkeypatch.setattr(rooms, "load_oracle", lambda px: Nearest(known))
    profile = rooms.before(KnowsNothing(Schedule()), Schedule(), PX, tmp_path)
    assert (profile.clean == 1).all()
    assert (profile.error > 0.99).all()
    most_common = [np.bincount(column).max() / 12 for column in known.factors(np.arange(12)).T]
    assert (profile.accuracy <= np.array(most_common)).all()
    assert (profile.lost == 0).all()
    assert "half lost at" in capsys.readouterr().out
    stored = json.loads((tmp_path / "report" / "profile.json").read_text())
    assert np.shape(stored["accuracy"]) == (len(profile.times), 12)
    assert (tmp_path / "report" / "profile.png").is_file()


def arm(probe=0.9, moved=5, distinct=2):
    return Arm(0.5, probe, moved, distinct)


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        (arm(), []),
        (arm(probe=0.59), ["mean probe"]),
        (arm(moved=3), ["factors moved by swapping all"]),
        (arm(distinct=1), ["different factors moved by single subsets"]),
        (Arm(None, 0.5, None, None), ["mean probe", "factors moved", "different factors"]),
    ],
)
def test_the_verdict_names_every_part_of_the_bar_that_is_missed(run, missed):
    parts = verdict.bar(run, Arm(None, 0.5, None, None))
    text = verdict.sentence(parts)
    assert [part.passes for part in parts].count(False) == len(missed)
    assert text.startswith("misses the bar: " if missed else "passes the bar: ")
    assert all(name in text for name in missed)


def test_subsets_that_spoil_other_factors_do_not_count():
    live = [Live(1, 0, 0.9, 0.1), Live(2, 0, 0.8, 0.0), Live(3, 4, 0.5, 0.3), Live(4, 5, 0.5, 0.25)]
    assert verdict.distinct_factors(live) == 2


def test_a_baseline_of_another_size_or_version_is_not_compared_with(tmp_path):
    assert verdict.read_baseline(16, VERSION, tmp_path / "none.json")[0] is None
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps({"px": 32, "rooms": VERSION}))
    baseline, reason = verdict.read_baseline(16, VERSION, path)
    assert baseline is None
    assert "not available for 16 px" in reason


def test_the_comparison_has_a_dash_for_what_does_not_exist():
    arms = {"this run": arm(0.912, 5, 2), "random encoder": Arm(None, 0.5, None, None), "full z (PDAE)": None}
    columns, rows = verdict.comparison(arms)
    assert columns == ["", "this run", "random encoder", "full z (PDAE)"]
    assert [row[1:] for row in rows] == [
        ["50.0%", "-", "-"],
        ["0.912", "0.500", "-"],
        ["5", "-", "-"],
        ["2", "-", "-"],
    ]


def test_levels_and_names_belong_to_the_same_factors():
    assert len(rooms.NAMES) == len(LEVELS) == 12


def tiny():
    torch.manual_seed(0)
    config = UNetConfig(base_channels=16, channel_mult=(1, 2), blocks=1, attention=(2,))
    return config, UNet(config).eval()


@pytest.mark.parametrize("told", ["t", "t_plus_k"])
def test_the_reconstruction_grid_shows_each_time_as_noise_frozen_guess_and_compensated_guess(told):
    config, frozen = tiny()
    decoder = Decoder(config, 8)
    nn.init.constant_(decoder.shift_out[2].bias, 0.3)
    subsets = Subsets([4, 8], choice="time_tied")
    model = DiffSiam(
        build_encoder("resnet10", PX, 4, 8), decoder, None, frozen, Schedule(), subsets, time_told=told
    ).train()
    x_0 = torch.from_numpy(Rooms(PX, 0, 3).images(np.arange(3)))
    noised, u, guided = grids._at_time(model, x_0, torch.zeros(3, 8), 300, seed=1)
    assert noised.shape == u.shape == guided.shape == (3, PX, PX, 3)
    level = torch.full((3,), 301)  # t + k: subset 1 is at work at t = 300
    x_level, _ = noise_jump(x_0, level, model.schedule.alpha_bar, 1, torch.arange(3))
    assert torch.equal(noised, to_uint8(x_level))
    gain = model.schedule.strength[301 if told == "t_plus_k" else 300] * 0.3 * 127.5
    inside = (u > 20) & (u < 150)
    assert (guided.float() - u.float())[inside].mean().item() == pytest.approx(float(gain), abs=1.0)
    first, again = (grids.reconstruction_grid(model, x_0, [100, 300], seed) for seed in (1, 1))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() != grids.reconstruction_grid(model, x_0, [100, 300], 2).tobytes()
    assert model.decoder.training


def test_the_sample_grid_depends_on_the_seed_alone():
    _, unet = tiny()
    first, again, other = (grids.sample_grid(unet, Schedule(), PX, 5, seed, moves=2) for seed in (0, 0, 1))
    assert first.tobytes() == again.tobytes() != other.tobytes()
    assert first.width > 3 * 64
