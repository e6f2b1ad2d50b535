"""Results as CSV, and as tables laid out like thesis Tables 4.1 and 4.2 with the thesis' numbers beside."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

THESIS = Path(__file__).resolve().parents[1] / "assets" / "thesis_tables.csv"
NAMES = ("CIFAR10", "Aircraft", "Caltech", "Cars", "CIFAR100", "DTD", "Flowers", "Food", "Pets", "SUN")
METHODS = ("SimSiam", "DiffSiam (Seq.)", "DiffSiam (Hier.)")
SCALE = (
    "Thesis: ResNet-10, d = 512, learned on CIFAR-10 in 400,000 iterations of 128. This run: {encoder}, "
    "learned on {data} at {px} px in {step:,} of {batch}. Absolute values are not comparable, only signs and "
    "orders."
)


@dataclass(frozen=True)
class Grid:
    """A table: first column the rows' names."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = ["| " + " | ".join(row) + " |" for row in [self.columns, *self.rows]]
        lines.insert(1, "|" + "---|" * len(self.columns))
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def latex(self) -> str:
        """As a tabular with booktabs' rules."""
        lines = [" & ".join(map(_escaped, row)) + r" \\" for row in [self.columns, *self.rows]]
        head, body = lines[0], "\n".join(lines[1:])
        columns = "l" + "r" * (len(self.columns) - 1)
        return (
            f"\\begin{{table}}\n\\caption{{{_escaped(self.title)}}}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
            f"{head}\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
        )


def write(record: dict[str, Any], folder: Path) -> None:
    """results.csv, tables.md and tables.tex."""
    grids = list(grids_of(record))
    scale = SCALE.format(**record)
    (folder / "tables.md").write_text("\n".join([*(grid.markdown() for grid in grids), scale, ""]))
    (folder / "tables.tex").write_text("\n".join([f"% {scale}", *(grid.latex() for grid in grids)]))
    with open(folder / "results.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "value"])
        writer.writerows(flat(record["results"]))


def grids_of(record: dict[str, Any]) -> Iterator[Grid]:
    """The tables that the results fill."""
    results, ours = record["results"], f"this run ({record['run']})"
    if "many-shot" in results:
        scores = {name: row["score"] for name, row in results["many-shot"].items()}
        yield _table_4_1(scores, ours)
    if "few-shot" in results:
        yield _table_4_2(results["few-shot"], ours)
    for suite, title in (("linear", "Linear evaluation"), ("knn", "Nearest neighbours")):
        if suite in results:
            rows = [
                [name, _percent(row["accuracy"]), row.get("recipe", "")]
                for name, row in results[suite].items()
            ]
            yield Grid(f"{title}: accuracy (%)", ["data set", "accuracy", "recipe"], rows)
    if "attributes" in results:
        rows = [
            [name, *(_number(row.get(key)) for key in ("ap", "r", "mse"))]
            for name, row in results["attributes"].items()
        ]
        yield Grid("Attributes", ["data set", "mean AP", "mean r", "MSE"], rows)
    if "disentanglement" in results:
        for unit in ("scalar", "subsets"):
            arms = results["disentanglement"][unit]
            keys = list(arms["this run"])
            rows = [[arm, *(_number(row.get(key)) for key in keys)] for arm, row in arms.items()]
            yield Grid(f"Disentanglement by {'entry' if unit == 'scalar' else 'subset'}", ["", *keys], rows)
    if "reconstruction" in results:
        row = results["reconstruction"]
        rows = [
            [f"{name} x_T", _number(row[name]["mse"]), _number(row[name]["ssim"])]
            for name in ("inferred", "random")
        ]
        yield Grid("Reconstruction", ["", "MSE", "SSIM"], rows)


def _columns(found: Sequence[str], thesis: Sequence[str]) -> list[str]:
    """The thesis' data sets if any of them was evaluated, then the others."""
    ours = [name for name in found if name not in thesis]
    return [*(thesis if any(name in thesis for name in found) else []), *ours]


def _table_4_1(scores: dict[str, float], ours: str) -> Grid:
    columns, thesis = _columns(list(scores), NAMES), _thesis()
    rows = []
    if any(name in NAMES for name in columns):
        for method in METHODS:
            printed = [thesis.get(("4.1", method, name, "all")) for name in columns]
            rows.append([f"thesis: {method}", *(v[0] if v else "-" for v in printed), _mean_of(printed)])
    values = [scores.get(name) for name in columns]
    known = [value for value in values if value is not None]
    rows.append([ours, *map(_percent, values), _percent(sum(known) / len(known) if known else None)])
    return Grid("Many-shot (Table 4.1): score (%)", ["", *columns, "Avg."], rows)


def _mean_of(values: Sequence[tuple[str, str] | None]) -> str:
    known = [float(value[0]) for value in values if value]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _table_4_2(scores: dict[str, Any], ours: str) -> Grid:
    sets = [name for name in NAMES if name != "Flowers"]
    columns, thesis = _columns(list(scores), sets), _thesis()
    rows = []
    for shots in ("1", "5", "10"):
        if any(name in sets for name in columns):
            for method in METHODS:
                values = [thesis.get(("4.2", method, name, shots)) for name in columns]
                rows.append([f"{shots}-shot, thesis: {method}", *("±".join(v) if v else "-" for v in values)])
        for head, name in (("linear", ours), ("nearest_mean", "nearest class mean")):
            cells = [_interval(scores.get(column, {}).get(shots, {}).get(head)) for column in columns]
            rows.append([f"{shots}-shot, {name}", *cells])
    title = "5-way few-shot (Table 4.2): mean ± half width of its 95 % interval (%)"
    return Grid(title, ["", *columns], rows)


def _interval(row: dict[str, float] | None) -> str:
    return "-" if row is None else f"{100 * row['mean']:.2f}±{100 * row['ci95']:.2f}"


def _thesis() -> dict[tuple[str, str, str, str], tuple[str, str]]:
    """(table, method, data set, shots) -> (mean, half width), as printed."""
    with open(THESIS, newline="") as file:
        rows = list(csv.DictReader(file))
    return {(r["table"], r["method"], r["dataset"], r["shots"]): (r["mean"], r["std"]) for r in rows}


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of nested results under its dotted name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def _escaped(text: str) -> str:
    return text.replace("%", r"\%").replace("_", r"\_").replace("±", r"$\pm$").replace("&", r"\&")
