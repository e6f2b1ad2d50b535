"""The claims experiment: its models, tasks, intervals and rules, and that it goes on where it stopped."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bench.claims import advice
from bench.claims.bootstrap import bootstrap, sign_test
from bench.claims.causal import order as order_moved
from bench.claims.causal import selectivity
from bench.claims.decide import CONFIRMED, MISSING, OPEN, REFUTED, Results, decide
from bench.claims.experiment import Experiment, Stopped, carry_out
from bench.claims.models import models
from bench.claims.representation import order as order_known
from bench.claims.tasks import STYLES, TASKS, draw
from engine.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "claims.json"
FACTORS = 12


def experiment(folder: Path) -> Experiment:
    return Experiment(CONFIG, (), folder / "results", folder / "runs", 0.001)


def record(model: str, seed: int, skill: float, **more) -> dict:
    """A result whose every score is ``skill``, with a little of the seed in it."""
    skill += 0.0005 * seed
    few = {shots: {"linear": {"mean": skill}} for shots in ("1", "5", "10")}
    transfer = {task.name: {"many_shot": skill, "few_shot": few} for task in TASKS}
    transfer["objects"]["many_shot"] = 0.5
    groups = {"disentanglement": more.get("d", skill), "mig": skill}
    return {
        "model": model,
        "seed": seed,
        "config_hash": "none",
        "transfer": transfer,
        "representation": {
            "groups": groups,
            "explicitness": [skill] * FACTORS,
            "separability": {"mean_pair": 0.1},
            "order": {"rho": more.get("rho", 0.0), "p": 0.5},
        },
        "causal": {
            "reduction": more.get("reduction", 0.2),
            "selectivity": more.get("d", skill),
            "order": {"rho": more.get("rho", 0.0)},
            "live": [],
        },
        "curve": {
            "step": list(range(1, 13)),
            "loss_with_g": [1 - more.get("reduction", 0.2)] * 12,
            "loss_frozen": [1.0] * 12,
        },
    }


def results(folder: Path, *records: dict) -> Results:
    for item in records:
        path = folder / f"seed{item['seed']}" / f"{item['model']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(item))
    return Results(folder)


def outcomes(found: Results) -> dict[tuple[str, str], str]:
    return {(verdict.claim, verdict.choice): verdict.outcome for verdict in decide(found)}


def test_every_strategy_is_trained_under_every_choice_of_subsets():
    names = list(models(0.001))
    for strategy in ("hier", "seq", "detach"):
        for choice in ("random", "tied", "profile"):
            assert f"{strategy}-{choice}" in names
    assert {"random", "pca", "simsiam", "pdae", "simsiam+pdae"} <= set(names)


def test_models_differ_in_nothing_but_the_switches_of_the_method(tmp_path):
    asked = experiment(tmp_path)
    plain = asked.load("hier-random", 0).to_dict()
    for name in asked.names():
        if asked.is_trained(name):
            other = asked.load(name, 0).to_dict()
            differing = {key for key in plain if plain[key] != other[key]}
            assert differing <= {"subsets", "jump", "loss", "simsiam", "method", "run"}, name
            assert other["train"] == plain["train"]


def test_a_result_is_not_measured_again_and_not_mixed_with_another_config(tmp_path):
    asked = experiment(tmp_path)
    assert not asked.is_done("pdae", 0)
    path, config = asked.result("pdae", 0), asked.load("pdae", 0).to_dict()
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"config": config}))
    assert asked.is_done("pdae", 0)
    del config["train"]["accumulation"]
    path.write_text(json.dumps({"config": config}))
    assert asked.is_done("pdae", 0)  # a key that came after it was measured
    config["train"]["steps"] += 1
    path.write_text(json.dumps({"config": config}))
    with pytest.raises(UsageError, match="another config"):
        asked.is_done("pdae", 0)


def test_a_request_to_stop_reaches_the_training_and_ends_the_experiment_once_that_has_saved(
    tmp_path, monkeypatch
):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "train.py").write_text(
        "import pathlib, signal, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "def save(*_): (here / 'saved').touch(); raise SystemExit\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(here / 'ready').touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where -m looks first

    def ask() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM: stopped; the same command goes on"):
        carry_out(experiment(tmp_path), ["simsiam", "pdae"], [0])
    assert (tmp_path / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_tasks_have_enough_classes_and_images_for_episodes():
    for style in STYLES:
        data = draw(style, 16)
        assert data.images.shape == (len(data.levels), 16, 16, 3)
        for task in (task for task in TASKS if task.style == style):
            labels = task.labels(data.levels)
            assert labels.max() < task.classes
            assert (np.bincount(labels[data.train :]) >= 25).sum() >= 5, task.name


def test_classes_are_equal_in_test_but_not_in_the_unequal_training_part():
    data = draw("unequal", 16)
    task = next(task for task in TASKS if task.name == "unequal")
    clutter = task.labels(data.levels) // 6
    train, test = np.bincount(clutter[: data.train]), np.bincount(clutter[data.train :])
    assert train[0] > 8 * train[4]
    assert test.max() < 1.4 * test.min()


def test_a_mirrored_room_is_the_same_room_mirrored():
    data = draw("mirrored", 16)
    from bench.claims.tasks import SEED
    from engine.data.rooms import Rooms

    place = list(STYLES).index("mirrored")
    plain = Rooms(16, SEED + place, len(data.levels)).images(np.arange(3))
    np.testing.assert_array_equal(data.images[:3].numpy(), plain[:, :, ::-1])


def test_the_interval_covers_the_mean_and_narrows_with_seeds():
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 1.0, (8, 11)) + rng.normal(0, 1.0, (8, 1))
    few, many = bootstrap(values[:2]), bootstrap(values)
    assert many.low < values.mean() < many.high
    assert many.half_width < few.half_width
    same = bootstrap(np.full((3, 4), 0.25))
    assert (same.low, same.high) == (0.25, 0.25)


def test_signs_of_a_coin_are_no_evidence_and_equal_signs_are():
    assert sign_test(np.array([1.0, -1, 2, -2])) == 1
    assert sign_test(np.ones(10)) == pytest.approx(2 / 1024)
    assert sign_test(np.zeros(3)) == 1


def test_nothing_is_claimed_of_what_was_not_measured(tmp_path):
    assert set(outcomes(Results(tmp_path)).values()) == {MISSING}


def test_a_gain_everywhere_confirms_claim_a_and_a_loss_refutes_it(tmp_path):
    for name, skill, outcome in (("up", 0.6, CONFIRMED), ("down", 0.4, REFUTED), ("same", 0.5, REFUTED)):
        records = [record("simsiam", s, 0.5) for s in range(3)] + [
            record("hier-random", s, skill) for s in range(3)
        ]
        assert outcomes(results(tmp_path / name, *records))["A", "random"] == outcome


def test_a_gain_that_costs_the_source_task_does_not_confirm_claim_a(tmp_path):
    ours = record("hier-random", 0, 0.6)
    ours["transfer"]["objects"]["many_shot"] = 0.4
    assert outcomes(results(tmp_path, record("simsiam", 0, 0.5), ours))["A", "random"] == OPEN


def test_claim_c_needs_slower_and_better(tmp_path):
    hier = record("hier-tied", 0, 0.5, d=0.3, reduction=0.3)
    for name, reduction, d, outcome in (
        ("both", 0.2, 0.6, CONFIRMED),
        ("faster", 0.4, 0.6, OPEN),
        ("worse", 0.2, 0.1, REFUTED),
    ):
        found = results(tmp_path / name, hier, record("detach-tied", 0, 0.5, d=d, reduction=reduction))
        assert outcomes(found)["C", "tied"] == outcome


def test_claim_d_is_tested_both_ways(tmp_path):
    for name, rho, outcome in (("fine first", 0.8, CONFIRMED), ("coarse first", -0.8, REFUTED)):
        found = results(tmp_path / name, record("detach-profile", 0, 0.5, rho=rho))
        verdict = next(v for v in decide(found) if (v.claim, v.choice) == ("D", "profile"))
        assert verdict.outcome == outcome
        assert verdict.told == f"{outcome} on 1 seed only"


def test_the_order_is_positive_where_fine_factors_come_first():
    from engine.data.rooms import granularity

    place = np.argsort(np.argsort(list(granularity(32).values())))  # finest factor first
    cumulative = (np.arange(FACTORS)[:, None] >= place).astype(float)
    assert order_known(cumulative, 32)["rho"] == pytest.approx(1)
    assert order_known(cumulative[:, ::-1], 32)["rho"] < 0
    moved = order_moved((np.arange(FACTORS)[:, None] == place).astype(float), 32)
    assert moved["rho"] == pytest.approx(1)
    assert order_moved(np.zeros((8, FACTORS)), 32)["rho"] is None


def test_handles_are_factors_moved_by_single_subsets_and_the_subsets_that_move_them():
    rows = ["subset 1", "subset 2", "subset 3", "all", "none"]
    success = np.array(
        [
            [0.9, 0.4, 0.1, np.nan, 0.30],
            [0.2, 0.7, 0.1, np.nan, 0.30],
            [0.1, 0.1, 0.1, np.nan, 0.44],
            [0.9, 0.8, 0.9, np.nan, 0.20],
            [0.1, 0.2, 0.1, np.nan, 0.30],
        ]
    )
    assert advice.count(rows, success) == (2, 2, 3)
    success[4] = 1.0
    assert advice.count(rows, success) == (0, 0, 0)


def test_advice_names_the_model_that_is_best_at_each_use(tmp_path):
    rows = ["subset 1", "subset 2", "all", "none"]
    moved = {
        "pdae": [[0.1, 0.1], [0.1, 0.1], [0.9, 0.9], [0.1, 0.1]],
        "hier-random": [[0.8, 0.8], [0.1, 0.1], [0.8, 0.1], [0.1, 0.1]],
        "detach-tied": [[0.8, 0.1], [0.1, 0.8], [0.8, 0.1], [0.1, 0.1]],
        "hier-profile": [[0.8, 0.1], [0.1, 0.3], [0.8, 0.1], [0.1, 0.1]],
    }
    selectivities = dict(zip(moved, (0.9, 0.8, 0.3, 0.4), strict=True))
    records = []
    for i, (name, success) in enumerate(moved.items()):
        records.append(record(name, 0, 0.3 + 0.1 * (i == 1)))
        records[-1]["causal"] |= {"rows": rows, "success": success, "selectivity": selectivities[name]}
    columns, table, told = advice.section(results(tmp_path, *records), [*moved, "seq-tied"])
    assert [row[0] for row in table] == list(moved)
    assert len(columns) == len(table[0])
    text = " ".join(told)
    assert "leave another, `detach-tied`: 2.0 factors on 2.0 subsets" in text
    assert "(selectivity): `hier-profile` 0.400, `detach-tied` 0.300." in text  # two subsets move something
    assert "all of z, `pdae`" in text
    assert "features alone, `hier-random`" in text
    assert "lies in one subset." in text


def test_selectivity_is_the_share_of_change_that_falls_on_a_subsets_own_factors():
    information = np.eye(3)
    assert selectivity(np.eye(3), information) == 1
    assert selectivity(np.ones((3, 3)), information) == pytest.approx(1 / 3)
    assert selectivity(np.zeros((3, 3)), information) is None
