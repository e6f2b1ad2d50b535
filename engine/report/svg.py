"""Charts as SVG that stands in the page: no script, no file beside it, readable in both colour schemes.

Colours and lines are classes of the page's style. Every chart carries a title and a description for screen
readers; the numbers themselves stand in a table below it (:class:`Chart`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from engine.report.told import number

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 78, 18, 12, 44
POINTS = 160  # a line has at most so many
ROWS_TOLD = 12  # rows of the table
TICKS = 5
COLOURS = 10  # of the style: classes c0 to c9


@dataclass(frozen=True)
class Line:
    """One curve: ``steps`` ascending, values with None where nothing was measured."""

    name: str
    steps: Sequence[int]
    values: Sequence[float | None]
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """A picture, its legend, and the numbers in it as a table."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]  # name, classes
    columns: list[str]
    rows: list[list[str]]


def line_chart(title: str, lines: Sequence[Line], unit: str = "", log: bool = False) -> Chart | None:
    """Curves over steps; None where there is nothing to draw.

    Args:
        unit: of the values, "%" shows them times 100.
        log: the values grow upwards by factors; those that are not positive are left out.
    """
    drawn = [thin for line in lines if len((thin := _thinned(line, log)).steps) > 0]
    if not drawn:
        return None
    shown = [v for line in drawn for v in line.values if v is not None]
    last = max(line.steps[-1] for line in drawn)
    axis = _Axis.of(shown, log)
    parts = [*_frame(axis, last, unit), *(_polyline(line, axis, last) for line in drawn)]
    told = (
        f"{title}: {len(drawn)} curves over {last:,} steps"
        if len(drawn) > 1
        else f"{title} over {last:,} steps"
    )
    legend = [(line.name, f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}") for line in drawn]
    columns, rows = _table(drawn, unit)
    return Chart(title, _svg(parts, title, told, HEIGHT), legend if len(drawn) > 1 else [], columns, rows)


def heat_chart(
    title: str, names: Sequence[str], steps: Sequence[int], values: Sequence[Sequence[float | None]]
) -> Chart | None:
    """One row a name, one column a step, darker for more (0 to 1); for more curves than lines can show.

    Args:
        values: (steps, names), each a share; what is below 0 is drawn as 0.
    """
    if not steps:
        return None
    kept = _spread_over(len(steps), 40)
    high = max(12, min(24, 560 // len(names)))
    height = TOP + high * len(names) + BOTTOM
    wide = (WIDTH - LEFT - RIGHT) / len(kept)
    parts = []
    for row, name in enumerate(names):
        y = TOP + row * high
        if high >= 14 or row % 4 == 0:
            parts.append(_text(LEFT - 8, y + high / 2 + 4, name, "end"))
        for column, at in enumerate(kept):
            value = values[at][row]
            told = "not measured" if value is None else f"{value:.1%}"
            parts.append(
                Markup(
                    '<rect class="heat" x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill-opacity="{:.2f}">'
                ).format(LEFT + column * wide, y, wide + 0.5, high - 1, min(1.0, max(0.0, value or 0.0)))
                + Markup("<title>{}, step {:,}: {}</title></rect>").format(name, steps[at], told)
            )
    for at in (0, len(kept) // 2, len(kept) - 1):
        parts.append(_text(LEFT + (at + 0.5) * wide, height - BOTTOM + 16, f"{steps[kept[at]]:,}", "middle"))
    parts.append(_text((LEFT + WIDTH) / 2, height - 6, "step", "middle"))
    rows = [[name, *(number(values[at][i], "%") for at in (0, -1))] for i, name in enumerate(names)]
    columns = ["", f"step {steps[0]:,}", f"step {steps[-1]:,}"]
    told = f"{title}: {len(names)} rows over {steps[-1]:,} steps, darker is more"
    return Chart(title, _svg(parts, title, told, height), [], columns, rows)


@dataclass(frozen=True)
class _Axis:
    """Values to heights."""

    low: float
    high: float
    ticks: list[float]
    log: bool

    @classmethod
    def of(cls, values: Sequence[float], log: bool) -> _Axis:
        if log:
            low, high = math.log10(min(values)), math.log10(max(values))
            margin = max(0.02, 0.05 * (high - low))
            low, high = low - margin, high + margin
            return cls(low, high, _log_ticks(10**low, 10**high), True)
        step = _round_step(max(values) - min(0.0, *values) or 1.0)
        first, last = math.floor(min(0.0, *values) / step), math.ceil(max(*values, step / 2) / step)
        return cls(first * step, last * step, [i * step for i in range(first, last + 1)], False)

    def y(self, value: float) -> float:
        place = ((math.log10(value) if self.log else value) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers of equal distance, or 1, 2 and 5 of every power where the range is wide."""
    if high / low < 20:
        step = _round_step(high - low)
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = (1, 2, 5) if len(powers) < 4 else (1,)
    return [m * 10.0**power for power in powers for m in marks if low <= m * 10.0**power <= high]


def _round_step(extent: float) -> float:
    raw = extent / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)


def _frame(axis: _Axis, last: int, unit: str) -> list[Markup]:
    parts = []
    for tick in axis.ticks:
        y = axis.y(tick)
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y, y
            )
        )
        parts.append(_text(LEFT - 8, y + 4, number(tick, unit, 2), "end"))
    for step in range(0, last + 1, max(1, round(_round_step(last)))):
        parts.append(_text(_x(step, last), HEIGHT - BOTTOM + 18, f"{step:,}", "middle"))
    return [*parts, _text((LEFT + WIDTH) / 2, HEIGHT - 4, "step", "middle")]


def _polyline(line: Line, axis: _Axis, last: int) -> Markup:
    """A curve, broken where nothing was measured."""
    pieces: list[list[str]] = [[]]
    for step, value in zip(line.steps, line.values, strict=True):
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{_x(step, last):.1f},{axis.y(value):.1f}")
    path = " ".join("M" + "L".join(piece) for piece in pieces if piece)
    dots = [piece[0].split(",") for piece in pieces if len(piece) == 1]
    colour = f"c{line.colour % COLOURS}{' dashed' if line.dashed else ''}"
    drawn = Markup('<path class="curve {}" d="{}"><title>{}</title></path>').format(colour, path, line.name)
    return drawn + Markup("").join(
        Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(colour, *dot) for dot in dots
    )


def _x(step: float, last: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * step / max(1, last)


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(parts: Sequence[Markup], title: str, told: str, height: float) -> Markup:
    head = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
        WIDTH, height, told
    )
    return head + Markup("").join(parts) + Markup("</svg>")


def _thinned(line: Line, log: bool) -> Line:
    """At most POINTS of them; what a logarithm cannot show is left out."""
    good = [
        (s, None if v is None or not math.isfinite(v) or (log and v <= 0) else float(v))
        for s, v in zip(line.steps, line.values, strict=True)
    ]
    if all(value is None for _, value in good):
        good = []
    kept = [good[i] for i in _spread_over(len(good), POINTS)]
    return Line(line.name, [s for s, _ in kept], [v for _, v in kept], line.colour, line.dashed)


def _spread_over(count: int, most: int) -> list[int]:
    """At most ``most`` indices of ``count``, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _table(lines: Sequence[Line], unit: str) -> tuple[list[str], list[list[str]]]:
    steps = sorted({step for line in lines for step in line.steps})
    told = [steps[i] for i in _spread_over(len(steps), ROWS_TOLD)]
    found = [dict(zip(line.steps, line.values, strict=True)) for line in lines]
    rows = [[f"{step:,}", *(number(values.get(step), unit) for values in found)] for step in told]
    return ["step", *(line.name for line in lines)], rows
