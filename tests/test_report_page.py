"""The report: one file, all of it escaped, alarms where something is wrong, differences pair by pair."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from edited_runs import VALUES
from PIL import Image
from reported_runs import evaluation, make_few_pictures, point, told_run, write_log
from training import TINY
from typer.testing import CliRunner

from engine.cli import app
from engine.config_file import from_dict
from engine.report import page as pages
from engine.report.alarms import checks
from engine.report.compare import config_differences, differences
from engine.report.embedding import embed
from engine.report.live import LivePage
from engine.report.page import LIMIT, write_report
from engine.report.reading import read_runs
from engine.report.svg import Line, heat_chart, line_chart
from engine.run import run as train_run
from engine.suites.tables import NAMES

ROOT = Path(__file__).resolve().parent.parent
EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would make of a page: its scripts, its attributes, its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.scripts, self.links, self.handlers, self.text, self._in = [], [], [], "", ""
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self._in = tag
        if tag == "script":
            self.scripts.append(dict(attrs).get("type", "code"))
        self.links += [value for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in not in ("script", "style"):
            self.text += data


@pytest.fixture
def run(tmp_path):
    return told_run(tmp_path / "one", VALUES)


def levels(run: Path) -> dict[str, str]:
    return {check.what: check.level for check in checks(read_runs([run])[0])}


def test_the_page_is_one_file_that_names_no_other(run):
    path = write_report([run])
    page = Page(path)
    assert path == run / "report" / "index.html"
    assert path.stat().st_size < LIMIT
    assert page.scripts == ["code"]
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "default-src 'none'" in path.read_text()


def test_labels_that_are_code_stay_text(run):
    factors = [EVIL, *evaluation(4)["factors"][1:]]
    (run / "report" / "evaluation.json").write_text(json.dumps(evaluation(4, factors=factors)))
    told = {"labels": [EVIL], "train": 1, "test": 1, "chance": [0.5], "rows": [EVIL, "all of z"]}
    (run / "report" / "label_map.json").write_text(json.dumps(told | {"accuracy": [[0.9], [0.9]]}))
    (run / "report" / "started.json").write_text(json.dumps({"rows": [["data", EVIL]]}))
    named = run.with_name("<img src=x onerror=alert(1)>")
    run.rename(named)
    page = Page(write_report([named]))
    assert page.scripts == ["code"]
    assert page.handlers == []
    assert page.text.count(EVIL) >= 4
    assert "<img src=x onerror=alert(1)>" in page.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    run = told_run(tmp_path / "new", VALUES, lines=0)
    (run / "report" / "evaluation.json").unlink()
    text = Page(write_report([run], running=True)).text
    assert "running: 0 of" in text
    assert "the log is empty" in text
    assert "load it again every minute" in text


def test_a_line_of_the_log_that_is_being_written_is_left_out(run):
    with open(run / "metrics.jsonl", "a") as log:
        log.write('{"step": 7, "lo')
    assert read_runs([run])[0].step == 6


def test_a_healthy_run_raises_no_alarm(run):
    assert set(levels(run).values()) == {"fine"}


@pytest.mark.parametrize(
    ("what", "level", "broken"),
    [
        ("loss", "alarm", {"loss": None}),
        ("collapse", "alarm", {"feature_std": 0.001}),
        ("causal effect", "caution", {"causal_effect_by_subset": [0.2, 0.2, 0.0, 0.2]}),
        ("g by time", "caution", {"reduction_by_time": [-0.5] * 10}),
        ("data", "caution", {"data_wait": 0.9}),
        ("gradients", "caution", {"grad_diffusion": 0.001, "grad_simsiam": 1.0}),
    ],
)
def test_each_failure_raises_its_own_alarm(run, what, level, broken):
    write_log(run, [point(4, step, **broken) for step in (1, 2)])
    found = levels(run)
    assert found.pop(what) == level
    assert set(found.values()) == {"fine"}


def test_dead_subsets_are_named_and_all_dead_is_an_alarm(run):
    told = evaluation(4)
    for live, level in (([told["causal"]["live"][1]], "caution"), ([], "alarm")):
        told["causal"]["live"] = live
        (run / "report" / "evaluation.json").write_text(json.dumps(told))
        assert levels(run)["dead subsets"] == level
    assert "swapping subset 1, 2, 3, 4 moves no factor" in Page(write_report([run])).text


def test_a_run_that_misses_its_bar_says_so_first(run):
    told = evaluation(4) | {"verdict": "misses the bar: everything"}
    (run / "report" / "evaluation.json").write_text(json.dumps(told))
    assert checks(read_runs([run])[0])[0].saw == "misses the bar: everything"


def test_runs_side_by_side_show_where_configs_and_numbers_differ(tmp_path):
    a = told_run(tmp_path / "a" / "run", VALUES)
    b = told_run(tmp_path / "b" / "run", VALUES | {"method": "pdae"}, shift=0.05)
    runs = read_runs([a, b])
    assert [run.name for run in runs] == ["a/run", "b/run"]
    assert "method" in dict(config_differences(runs))
    found = {d.what: d for d in differences(runs)}
    assert found["linear probe"].mean == pytest.approx(0.05)
    assert found["linear probe"].pairs == 12
    assert found["linear probe"].above == 12
    assert found["linear probe"].half_width == pytest.approx(0, abs=1e-9)
    by_line = [d for d in differences(runs) if d.paired_by.startswith("line of the log")]
    assert [(d.what, d.mean) for d in by_line] == [("share of the loss that g removes", pytest.approx(0.05))]
    text = Page(write_report([a, b], tmp_path / "both.html")).text
    assert "Where the configs differ" in text
    assert "+0.05 ±" in text


def test_arms_are_paired_over_the_seeds_they_share(tmp_path):
    shifts = {("full", 0): 0.0, ("full", 1): 0.02, ("random", 0): 0.1, ("random", 1): 0.16}
    runs = [
        told_run(
            tmp_path / f"{k}{seed}", VALUES | {"subsets": {"n": 4, "choice": k}, "seed": seed}, shift=shift
        )
        for (k, seed), shift in shifts.items()
    ]
    by_seed = [d for d in differences(read_runs(runs)) if d.paired_by == "seed"]
    gain = next(d for d in by_seed if d.what.startswith("loss below"))
    assert (gain.a, gain.b, gain.pairs) == ("full0 + full1", "random0 + random1", 2)
    assert gain.mean == pytest.approx(0.12)
    assert gain.half_width == pytest.approx(12.71 * 0.02, rel=1e-3)  # t of one degree of freedom


def test_losses_of_other_seeds_are_not_paired_by_line(tmp_path):
    runs = [told_run(tmp_path / str(seed), VALUES | {"seed": seed}) for seed in (0, 1)]
    assert not any(d.paired_by.startswith("line") for d in differences(read_runs(runs)))


def test_evaluation_tables_stand_beside_the_thesis_numbers(run):
    scores = {"score": 0.9, "penalty": 1.0, "metric": "top_1"}
    record = {
        **{"run": "one", "step": 3, "batch": 8, "method": "diffsiam", "encoder": "resnet10", "data": "rooms"},
        **{"px": 16, "results": {"many-shot": {NAMES[0]: scores}}},
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps(record))
    text = Page(write_report([run])).text
    assert "thesis: DiffSiam (Hier.)" in text
    assert "90.980" in text
    assert "90.00" in text


def test_pictures_shrink_until_the_page_is_small_enough_and_what_does_not_fit_is_named(run, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    for i in range(3):
        (run / "edits" / f"e{i}").mkdir(parents=True)
        Image.fromarray(noise).save(run / "edits" / f"e{i}" / "sheet.png")
        (run / "edits" / f"e{i}" / "edit.json").write_text(json.dumps({"command": f"edit {i}"}))
    monkeypatch.setattr(pages, "LIMIT", 600_000)
    path = write_report([run])
    page = Page(path)
    assert path.stat().st_size < 600_000
    assert sum(link.startswith("data:image/webp") for link in page.links) >= 1
    assert "diffsiam edit 2" in page.text
    monkeypatch.setattr(pages, "LIMIT", 150_000)
    assert "is left out: the page would grow too large" in Page(write_report([run])).text


def test_a_file_that_is_no_picture_is_named_and_the_rest_is_shown(tmp_path):
    bad, good = tmp_path / "bad.png", tmp_path / "good.png"
    bad.write_bytes(b"no picture")
    Image.new("RGB", (4, 4)).save(good)
    found = embed([bad, good], 10_000)
    assert "cannot be read" in found[bad].left_out
    assert found[good].uri.startswith("data:image/webp;base64,")


def test_claims_beside_the_runs_are_shown(tmp_path):
    run = told_run(tmp_path / "claims" / "seed0" / "hier", VALUES)
    verdict = {
        "claim": "A",
        "choice": "random",
        "outcome": "confirmed",
        "seeds": [0],
        "numbers": {"gain": "+1"},
    }
    record = {"note": "", "texts": {"A": "it transfers"}, "verdicts": [verdict]}
    (tmp_path / "claims" / "claims.json").write_text(json.dumps(record))
    text = Page(write_report([run])).text
    assert "it transfers" in text
    assert "gain: +1" in text


def test_a_curve_is_broken_where_nothing_was_measured_and_thinned_where_there_is_much():
    steps = list(range(1, 5001))
    values = [None if 2000 < step < 3000 else float(step) for step in steps]
    chart = line_chart("loss", [Line("one", steps, values)])
    assert chart.svg.count("L") < 200
    assert chart.svg.count("M") == 2
    assert chart.rows[-1] == ["5,000", "5,000"]
    assert line_chart("nothing", [Line("one", [1], [None])]) is None


def test_more_subsets_than_colours_are_shades():
    chart = heat_chart("effect", [f"subset {i}" for i in range(64)], [1, 2], [[0.5] * 64, [None] * 64])
    assert chart.svg.count("<rect") == 128
    assert chart.svg.count("not measured") == 64


def test_the_live_page_is_written_once_a_minute_and_when_it_ends(run):
    now = [0.0]
    sink, path = LivePage(run, clock=lambda: now[0]), run / "report" / "index.html"
    sink.write(1, {})
    path.unlink()
    now[0] = 30.0
    sink.write(2, {})
    assert not path.exists()
    now[0] = 61.0
    sink.write(3, {})
    assert path.exists()
    path.unlink()
    sink.close()
    assert path.exists()


def test_a_page_that_cannot_be_written_warns_and_training_goes_on(tmp_path, capsys):
    LivePage(tmp_path / "nowhere").close()
    assert "warning: the report was not written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["."], ["RUN", "RUN"], ["RUN", "--claims", "nowhere.json"]]
)
def test_what_is_no_run_is_told_in_one_line(run, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["report", *(a.replace("RUN", str(run)) for a in arguments)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_the_command_writes_the_page_without_torch(run):
    code = f"""
import sys
from engine.cli import app
try:
    app(["report", {str(run)!r}])
except SystemExit as end:
    assert not end.code
print(sorted({{"torch", "starlette", "playwright"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "index.html" in done.stdout.replace("\n", "")


def test_a_training_leaves_its_page_with_explorer_and_what_it_ran_on(tmp_path, monkeypatch, one_rank):
    make_few_pictures(monkeypatch)
    train = {
        "train": {"steps": 2, "batch_size": 4, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }
    log = {"log": {"every": 1, "grid_every": 0, "tensorboard": False}, "report": {"explorer": True}}
    train_run(from_dict(VALUES | train | log))
    text = Page(tmp_path / "run" / "report" / "index.html").text
    assert "finished: 2 of 2 steps" in text
    assert "room 60 of seed 0 and room 61 of seed 0" in text
    assert "60 images of 16 px" in text
    assert f"CPU, {torch.get_num_threads()} threads, 1 rank" in text


def test_a_diffusion_model_has_a_page_of_its_own_curves(tmp_path):
    values = VALUES | {
        "task": "diffusion",
        "frozen": TINY["frozen"] | {"weights": None},
    }
    run = told_run(tmp_path / "dm", values)
    (run / "report" / "evaluation.json").unlink()
    lines = [{"step": s, "loss": 1 / s, "loss_by_time": [0.1 * s] * 10, "held_out_loss": 0.5} for s in (1, 2)]
    write_log(run, lines)
    text = Page(write_report([run])).text
    assert "diffusion model (pretraining)" in text
    assert "loss by time t" in text
    assert "held out" in text
    assert "encoder" not in text.partition("What was trained")[2].partition("Config")[0]
