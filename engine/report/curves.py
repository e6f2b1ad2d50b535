"""Which curves a report shows: of all runs together, and of one run by band of time and by subset."""

from __future__ import annotations

from collections.abc import Sequence

from engine.collapse import COLLAPSE, spread
from engine.report.reading import Run
from engine.report.svg import COLOURS, Chart, Line, heat_chart, line_chart


def shared_charts(runs: Sequence[Run]) -> list[Chart]:
    """One chart a quantity, one curve a run."""
    loss = [line for i, run in enumerate(runs) for line in _losses(run, i, len(runs) > 1)]
    found = [
        line_chart("Loss", loss, log=True),
        line_chart("Share of the frozen model's loss that g removes", _each(runs, "reduction"), "%"),
        line_chart("SimSiam loss", _each(runs, "simsiam")),
        line_chart("Spread of the features, 1 is uniform (collapse below 0.1)", _spreads(runs)),
        line_chart("Gradient on the encoder, reconstruction", _each(runs, "grad_diffusion"), log=True),
        line_chart("Gradient on the encoder, SimSiam", _each(runs, "grad_simsiam"), log=True),
        line_chart("Images a second", _each(runs, "images_per_second")),
    ]
    return [chart for chart in found if chart]


def own_charts(run: Run) -> list[Chart]:
    """By band of time and by subset."""
    bands = run.config.schedule.steps
    found = [
        _parts(run, "reduction_by_time", "g removes, by time t", lambda i, n: _band(i, n, bands)),
        _parts(
            run, "reduction_by_subset", "g removes, by subset of the sample", lambda i, _: f"subset {i + 1}"
        ),
        _parts(
            run,
            "causal_effect_by_subset",
            "swapping a subset moves, of what u lost at its time",
            lambda i, _: f"subset {i + 1}",
        ),
        _parts(run, "loss_by_time", "loss by time t", lambda i, n: _band(i, n, bands), ""),
        _parts(run, "held_out_loss_by_time", "held-out loss by time t", lambda i, n: _band(i, n, bands), ""),
    ]
    return [chart for chart in found if chart]


def _band(i: int, count: int, steps: int) -> str:
    return f"t {steps * i // count} to {steps * (i + 1) // count}"


def _parts(run: Run, name: str, title: str, label, unit: str = "%") -> Chart | None:  # noqa: ANN001
    """One curve a part, or shades where there are more than lines can be told apart."""
    steps, values = run.curve(name)
    if not values or not isinstance(values[0], list):
        return None
    count = len(values[0])
    names = [label(i, count) for i in range(count)]
    if count > COLOURS and unit == "%":
        return heat_chart(title, names, steps, values)
    columns = list(zip(*values, strict=True))
    lines = [Line(names[i], steps, columns[i], i % COLOURS) for i in range(count)]
    return line_chart(title, lines, unit, log=not unit)


def _losses(run: Run, colour: int, several: bool) -> list[Line]:
    mine = f"{run.name}: " if several else ""
    diffusion = run.config.task == "diffusion"
    names = {"held_out_loss": "held out", "loss": "training"} if diffusion else {"loss": "with g"}
    if not run.config.needs_frozen and not diffusion:
        names = {"loss": "SimSiam"}
    lines = [Line(f"{mine}{told}", *run.curve(name), colour) for name, told in names.items()]
    return [*lines, Line(f"{mine}frozen model alone", *run.curve("loss_frozen"), colour, dashed=True)]


def _each(runs: Sequence[Run], name: str) -> list[Line]:
    return [Line(run.name, *run.curve(name), i) for i, run in enumerate(runs)]


def _spreads(runs: Sequence[Run]) -> list[Line]:
    lines = []
    for i, run in enumerate(runs):
        steps, values = run.curve("feature_std")
        known = [None if v is None else spread(v, run.config.encoder.dim) for v in values]
        lines.append(Line(run.name, steps, known, i))
    ends = [step for line in lines for step in (*line.steps[:1], *line.steps[-1:])]
    if ends:
        limit = [min(ends), max(ends)]
        lines.append(Line("collapse", limit, [COLLAPSE, COLLAPSE], COLOURS - 1, dashed=True))
    return lines
