"""docs/claims.md: what was asked, what came out, which seeds are in, and how to run any row again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims import advice, plots
from bench.claims.bootstrap import Interval
from bench.claims.decide import Results, Verdict, decide
from bench.claims.models import CHOICES
from bench.claims.tasks import SOURCE, TASKS, TRANSFERS
from engine.data.rooms import FACTORS
from engine.plain_json import write_json
from engine.report.reading import CLAIMS

DOCS = Path(__file__).resolve().parents[2] / "docs"
FACTOR_NAMES = [factor.name.replace("_", " ") for factor in FACTORS]
THESIS = {
    "A": "DiffSiam transfers better than SimSiam, many-shot and few-shot, at no cost on the source task.",
    "B": "The hierarchical mask beats the sequential one.",
    "C": "Detaching the earlier subsets disentangles better, and converges more slowly.",
    "D": "Early subsets are fine attributes, late ones coarse.",
}
PRINTED = {  # CIFAR-10, full scale: thesis Tables 4.1 and 4.2, and what the text says
    "A": "transfer +4.9 points, 1/5/10-shot +4.0/+3.3/+2.9, source -0.1",
    "B": "many-shot +0.5 points (6 of 10 sets), few-shot +0.7/+0.9/+0.7 (25 of 27)",
    "C": "Fig. 4.9: the detached loss stays above; the rest is seen in pictures",
    "D": "seen in pictures (Figs 4.1, 4.2)",
}
RULES = {
    "A": "confirmed if the intervals of the transfer gain and of all few-shot gains lie above 0 and the "
    "source task changes by at most 1 point; refuted if the transfer gain's lies below 0, or around it "
    "within 1 point",
    "B": "confirmed if all four intervals lie above 0, refuted if all lie below",
    "C": "confirmed if the detached loss ends above and group D and selectivity both rise (intervals above "
    "0); refuted if both fall",
    "D": "Spearman's rho of log granularity and place, of what subsets know and of what they move; confirmed "
    "if both intervals lie above 0, refuted if both lie below",
}


def write(results: Results, names: Sequence[str], config: Path, folder: Path = DOCS) -> Path:
    """The page and its plots."""
    folder.mkdir(parents=True, exist_ok=True)
    verdicts = decide(results)
    parts = [
        _head(results, names, config),
        _verdicts(verdicts),
        _advice(results, names),
        *(_numbers(claim, verdicts) for claim in THESIS),
        _models(results, names),
        _transfer(results, names),
        _exchange(results, names),
        _pictures(results, names, folder),
        _again(results, names, config),
    ]
    page = folder / "claims.md"
    page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return page


def write_record(results: Results, folder: Path) -> Path:
    """claims.json for ``diffsiam report``: the same verdicts as text."""
    verdicts = [
        {
            "claim": v.claim,
            "choice": v.choice,
            "outcome": v.told,
            "seeds": list(v.seeds),
            "numbers": {name: _cell(value) for name, value in v.numbers.items()},
        }
        for v in decide(results)
    ]
    note = "Intervals are 95 %, by a bootstrap over seeds and, within them, tasks."
    texts = {claim: f"{text} The thesis: {PRINTED[claim]}." for claim, text in THESIS.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CLAIMS, {"note": note, "texts": texts, "verdicts": verdicts})
    return folder / CLAIMS


def _head(results: Results, names: Sequence[str], config: Path) -> str:
    measured = sum(len(results.by_model.get(name, {})) for name in names)
    px = json.loads(config.read_text())["data"]["px"]
    return f"""# What is true of the method

The claims of the thesis as numbers, on Rooms at {px} px: {len(FACTORS)} known factors, an oracle that reads
them, a shipped diffusion model. One recipe (`{config.as_posix()}`), one data order, equal steps; models
differ in the switches of the method only. {measured} results are in; this page is written from them by

    python -m bench.claims --config {config.as_posix()} --report

Intervals are 95 %, by a bootstrap over seeds and, within them, tasks. With one seed they know nothing of the
spread between trainings: such a verdict says so, and is an indication. Absolute values are not comparable
with the thesis' (CIFAR-10, full scale); signs, orders and gaps relative to their intervals are."""


def _verdicts(verdicts: Sequence[Verdict]) -> str:
    rows = [
        [f"**{claim}** {text}", *(_of(verdicts, claim, choice).told for choice in CHOICES)]
        for claim, text in THESIS.items()
    ]
    columns = ["claim", "random k (Algorithm 1)", "k tied to t", "k by the loss profile"]
    return "## Verdicts\n\n" + markdown(columns, rows)


def _advice(results: Results, names: Sequence[str]) -> str:
    columns, rows, told = advice.section(results, names)
    if not rows:
        return ""
    head = (
        "## Which switches for what\n\nA subset moves a factor if swapping it alone, from one x_T, makes the "
        f"factor the other room's in {advice.MOVES:.2f} more of the pairs than swapping nothing does. The "
        "presets for editing use `method=diffsiam`, which is `detach-tied` here; `method=literal` is "
        "`hier-random` with SimSiam's weight at 1 (`hier-random-sum`)."
    )
    return "\n\n".join([head, markdown(columns, rows), "\n".join(f"- {line}" for line in told)])


def _of(verdicts: Sequence[Verdict], claim: str, choice: str) -> Verdict:
    return next(v for v in verdicts if (v.claim, v.choice) == (claim, choice))


def _numbers(claim: str, verdicts: Sequence[Verdict]) -> str:
    found = [v for v in verdicts if v.claim == claim and v.numbers]
    rule = f"## Claim {claim}\n\n{THESIS[claim]} Rule: {RULES[claim]}. The thesis: {PRINTED[claim]}."
    if not found:
        return f"{rule}\n\nNot measured yet."
    names = list(dict.fromkeys(name for v in found for name in v.numbers))
    rows = [[v.choice, _seeds(v.seeds), *(_cell(v.numbers.get(name)) for name in names)] for v in found]
    return f"{rule}\n\n" + markdown(["k", "seeds", *names], rows)


def _models(results: Results, names: Sequence[str]) -> str:
    """Means over the seeds there are, of everything that has one number a model."""
    columns = [
        "model",
        "seeds",
        "loss below the frozen model's",
        "mean probe",
        "explicitness",
        "group D",
        "group C",
    ]
    columns += ["group MIG", "mean I(z_g; z_h)", "selectivity", "live subsets", "rho known", "rho moved"]
    rows = []
    for name in names:
        found = list(results.by_model.get(name, {}).values())
        known, moved = [r["representation"] for r in found], [r["causal"] for r in found if "causal" in r]
        cells: list[Any] = [
            _mean([r["reduction"] for r in moved]),
            _mean([np.mean(r["probe"]) for r in known]),
            _mean([np.mean(r["explicitness"]) for r in known]),
            *(_mean([r["groups"][key] for r in known]) for key in ("disentanglement", "completeness", "mig")),
            _mean([r["separability"]["mean_pair"] for r in known]),
            _mean([r["selectivity"] for r in moved]),
            _mean([len(r["live"]) for r in moved]),
            _mean([r["order"]["rho"] for r in known]),
            _mean([r["order"]["rho"] for r in moved]),
        ]
        rows.append([name, _seeds(sorted(results.by_model.get(name, {}))), *cells])
    base = "The same group scores of a random partition and a random rotation are in the result files."
    return "## Models\n\n" + markdown(columns, rows) + f"\n\n{base}"


def _transfer(results: Results, names: Sequence[str]) -> str:
    blocks = []
    for title, path in (
        ("Many-shot", ("many_shot",)),
        *((f"{s}-shot", ("few_shot", s, "linear", "mean")) for s in ("1", "5", "10")),
    ):
        rows = []
        for name in names:
            found = [r["transfer"] for r in results.by_model.get(name, {}).values()]
            if found:
                scores = [_mean([_at(r[task.name], path) for r in found], 100, 1) for task in TASKS]
                average = _mean([_at(r[task.name], path) for r in found for task in TRANSFERS], 100, 1)
                rows.append([name, *scores, average])
        if rows:
            blocks.append(
                f"### {title} (%)\n\n"
                + markdown(["model", *(task.name for task in TASKS), "transfers"], rows)
            )
    what = "; ".join(f"*{task.name}* ({task.kind}): {' x '.join(task.factors)}" for task in TASKS)
    head = f"## Transfer\n\nSource task: {SOURCE.name}. {what}."
    return "\n\n".join([head, *blocks]) if blocks else ""


def _exchange(results: Results, names: Sequence[str]) -> str:
    """Chance that swapping one subset moves a factor to its target, by model, averaged over seeds."""
    blocks = []
    for name in names:
        found = [r["causal"] for r in results.by_model.get(name, {}).values() if "causal" in r]
        if found:
            success = np.mean([np.array(r["success"], float) for r in found], axis=0)
            rows = [
                [row, *(_share(v) for v in values)]
                for row, values in zip(found[0]["rows"], success, strict=True)
            ]
            blocks.append(f"### {name}\n\n" + markdown(["swapped", *FACTOR_NAMES], rows))
    head = (
        "## Exchange\n\nChance that a factor reads as the other room's when this part is taken from it "
        "(fine factors left, coarse right); *none* swaps nothing."
    )
    return "\n\n".join([head, *blocks]) if blocks else ""


def _pictures(results: Results, names: Sequence[str], folder: Path) -> str:
    drawn = plots.draw(results, names, folder / "claims")
    if not drawn:
        return ""
    return "## Plots\n\n" + "\n\n".join(
        f"![{title}](claims/{file.name})\n\n*{title}*" for title, file in drawn
    )


def _again(results: Results, names: Sequence[str], config: Path) -> str:
    seeds = sorted({0, 1, 2}.union(*(results.by_model.get(name, {}) for name in names)))
    rows = []
    for name in names:
        have = results.by_model.get(name, {})
        missing = [str(seed) for seed in seeds if seed not in have]
        command = f"`python -m bench.claims --config {config.as_posix()} --models {name}`"
        rows.append([name, _seeds(sorted(have)), ", ".join(missing) or "-", command])
    head = (
        "## Any row again\n\nA row is trained and measured anew where its file under `bench/results/claims/` "
        "is moved away. Without `--models` it does all that is missing, and goes on where it stopped."
    )
    return f"{head}\n\n" + markdown(["model", "seeds in", "not yet", "command"], rows)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [columns, *rows]]
    lines.insert(1, "|" + "---|" * len(columns))
    return "\n".join(lines)


def _at(record: Any, path: Sequence[str]) -> Any:
    for key in path:
        record = record[key]
    return record


def _mean(values: Sequence[float | None], scale: float = 1, digits: int = 3) -> str:
    known = [value for value in values if value is not None]
    return f"{scale * float(np.mean(known)):.{digits}f}" if known else "-"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(f"{item:.3f}" for item in value)
    return str(value) if isinstance(value, Interval | str) else f"{value:.3f}"


def _share(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}".removeprefix("0")


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "none yet"
