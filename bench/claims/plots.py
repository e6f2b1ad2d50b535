"""The pictures of docs/claims.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.claims.decide import Results
from bench.claims.models import CHOICES, STRATEGIES
from bench.claims.tasks import TRANSFERS
from engine.data.rooms import FACTORS, granularity

COLOURS = {"hier": "tab:blue", "detach": "tab:orange", "seq": "tab:green", "pdae": "black"}
NAMES = {"hier": "hierarchical", "detach": "detached", "seq": "sequential", "pdae": "whole z (PDAE)"}
CHOICE_NAMES = {"random": "random k", "tied": "k tied to t", "profile": "k by the loss profile"}
SHORT = [factor.name.replace("_", " ") for factor in FACTORS]


def draw(results: Results, names: Sequence[str], folder: Path) -> list[tuple[str, Path]]:
    """Every picture that the results allow, as (title, PNG)."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "loss": ("Training loss below the frozen model's own, as thesis Fig. 4.9 (mean over seeds)", _losses),
        "transfer": ("Many-shot transfer, mean over eleven tasks; points are seeds", _transfer),
        "exchange": ("What swapping one subset moves (success above that of swapping nothing)", _exchange),
        "order": ("Where along the subsets each factor comes in, against its granularity", _order),
    }
    found = []
    for name, (title, picture) in pictures.items():
        figure = picture(results, names)
        if figure is not None:
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
            found.append((title, path))
    return found


def _figure(columns: int, rows: int = 1, width: float = 4.2, height: float = 3.4) -> tuple[Any, np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _losses(results: Results, names: Sequence[str]) -> Any:
    shown = [(choice, [s for s in STRATEGIES if results.by_model.get(f"{s}-{choice}")]) for choice in CHOICES]
    shown = [(choice, strategies) for choice, strategies in shown if strategies]
    if not shown:
        return None
    figure, axes = _figure(len(shown))
    for axis, (choice, strategies) in zip(axes[0], shown, strict=True):
        for strategy in ("pdae", *strategies):
            curves = _curves(results, strategy if strategy == "pdae" else f"{strategy}-{choice}")
            if curves is not None:
                step, ratio = curves
                axis.plot(step, ratio, color=COLOURS[strategy], label=NAMES[strategy])
        axis.set(title=CHOICE_NAMES[choice], xlabel="step", ylabel="loss / loss of the frozen model")
        axis.legend(frameon=False)
    return figure


def _curves(results: Results, model: str) -> tuple[list[int], np.ndarray] | None:
    found = [record["curve"] for record in results.by_model.get(model, {}).values()]
    if not found:
        return None
    ratios = [np.array(c["loss_with_g"], float) / np.array(c["loss_frozen"], float) for c in found]
    return found[0]["step"], np.mean(ratios, axis=0)


def _transfer(results: Results, names: Sequence[str]) -> Any:
    shown = [name for name in names if results.by_model.get(name)]
    if not shown:
        return None
    figure, axes = _figure(1, width=7, height=0.34 * len(shown) + 1)
    axis = axes[0, 0]
    for place, name in enumerate(reversed(shown)):
        means = 100 * results.transfer(name, results.seeds(name)).mean(axis=1)
        axis.barh(place, means.mean(), color="tab:blue", alpha=0.35)
        axis.plot(means, [place] * len(means), "k.", markersize=5)
    axis.set_yticks(range(len(shown)), list(reversed(shown)))
    axis.set_xlabel(f"accuracy (%), mean over {len(TRANSFERS)} transfer tasks")
    return figure


def _exchange(results: Results, names: Sequence[str]) -> Any:
    shown = [name for name in names if _effects(results, name) is not None]
    if not shown:
        return None
    columns = min(3, len(shown))
    figure, axes = _figure(columns, -(-len(shown) // columns), height=3.0)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, shown, strict=False):
        effect = _effects(results, name)
        assert effect is not None
        image = axis.imshow(effect, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        axis.set_xticks(range(len(SHORT)), SHORT, rotation=60, ha="right", fontsize=7)
        axis.set_yticks(range(len(effect)), range(1, len(effect) + 1), fontsize=7)
        axis.set(title=name, ylabel="subset")
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def _effects(results: Results, name: str) -> np.ndarray | None:
    """Success of single subsets above the control, (n, K), mean over seeds."""
    found = [record["causal"] for record in results.by_model.get(name, {}).values() if "causal" in record]
    if not found:
        return None
    success = np.mean([np.array(record["success"], float) for record in found], axis=0)
    rows = list(found[0]["rows"])
    singles = [i for i, row in enumerate(rows) if row.startswith("subset")]
    return success[singles] - success[rows.index("none")]


def _order(results: Results, names: Sequence[str]) -> Any:
    shown = [f"detach-{choice}" for choice in CHOICES if results.by_model.get(f"detach-{choice}")]
    shown += [f"hier-{choice}" for choice in CHOICES if results.by_model.get(f"hier-{choice}")]
    if not shown:
        return None
    sizes, columns = granularity(32), min(3, len(shown))
    figure, axes = _figure(columns, -(-len(shown) // columns))
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, shown, strict=False):
        orders = [record["representation"]["order"] for record in results.by_model[name].values()]
        known = np.ma.masked_invalid([np.array(order["centres"], float) for order in orders])
        centres = known.mean(axis=0).filled(np.nan)  # no subset tells of a factor in any seed: no point
        axis.plot(list(sizes.values()), centres, "o", markersize=4)
        for factor, x, y in zip(SHORT, sizes.values(), centres, strict=True):
            axis.annotate(factor, (x, y), fontsize=6, xytext=(3, 3), textcoords="offset points")
        rho = np.mean([order["rho"] for order in orders])
        axis.set(title=f"{name}: rho {rho:+.2f}", xscale="log", xlabel="mean squared change of a pixel")
        axis.set_ylabel("subset where it comes in")
    return figure
