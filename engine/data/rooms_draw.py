"""Drawing a batch of rooms: a canvas whose last axis is the batch, and the furniture.

Coordinates are relative (x to the right, y down, the image is the unit square), so one scene can be drawn at
any size. Every edge is antialiased by the area it covers of each pixel, exactly for upright boxes. Only +, -,
x, /, sqrt, floor, min and max are used: IEEE 754 rounds each of them in one way, so a room is the same bytes
everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray  # float32
Length = Array | float  # (N,) one value per room, or one for all
Edge = Length | tuple[Length, Length]  # a vertical edge, or its x at the top and at the bottom
Colour = Array | tuple[float, float, float]  # (3, N) or one for all

WALL_LEFT, WALL_RIGHT, WALL_FOOT, CEILING = 0.08, 0.92, 0.60, 0.06
VANISHING_X, VANISHING_Y = 0.50, 0.38
BED_X, QUILT_TOP, QUILT_FOLD, QUILT_END, BED_SPREAD = 0.60, 0.615, 0.82, 0.93, 1.2
LAMP_X, CLUTTER_X = 0.215, 0.175
BOOK_EDGE, WHITE = (0.12, 0.14, 0.22), (0.93, 0.92, 0.90)


@dataclass(frozen=True)
class Scene:
    """What the factors decide, for N rooms: colours (3, N) in [0, 1], lengths (N,), weights (values, N)."""

    quilt: Array  # weights of plain, stripes, bands, checks, border
    picture_sky: Array
    picture_land: Array
    lamp: Array  # (N,) emitted light, 0 is off
    clutter: Array  # opacities of none, books, box, ball, plant
    bed_half_width: Array
    window_x: Array
    bed: Array
    pan: Array
    floor: Array
    wall: Array
    light: Array  # (3, N) gain of the room's light


class Canvas:
    """N images as planes (3, px, px, N) float32; the batch is last, so that every loop runs along it."""

    def __init__(self, px: int, count: int) -> None:
        self.px = px
        self.rgb = np.empty((3, px, px, count), np.float32)
        self.cell = np.arange(px, dtype=np.float32)[:, None]  # left or upper edge of each pixel, in pixels
        self.centre = (self.cell + np.float32(0.5)) / np.float32(px)

    def cells(self, low: Length, high: Length) -> slice:
        """The rows or columns that [low, high] touches in any image."""
        first, last = np.floor(np.min(low) * self.px), np.ceil(np.max(high) * self.px)
        return slice(int(np.clip(first, 0, self.px)), int(np.clip(last, 0, self.px)))

    def cover(self, low: Length, high: Length, cells: slice) -> Array:
        """How much of each pixel of ``cells`` the interval [low, high] covers, in [0, 1], (..., cells, N)."""
        cell, px = self.cell[cells], np.float32(self.px)
        return np.clip(np.minimum(high * px, cell + 1) - np.maximum(low * px, cell), 0, 1)

    def blend(self, rows: slice, columns: slice, mask: Array, colour: Colour) -> None:
        """Mix ``colour`` into a region by ``mask`` (rows, columns, N or 1)."""
        region = self.rgb[:, rows, columns]
        region += mask * (_planes(colour) - region)

    def shape(self, top: Length, bottom: Length, left: Edge, right: Edge) -> tuple[slice, slice, Array]:
        """Region and coverage (rows, columns, N) of a box or, with edges as pairs, of a trapezoid."""
        left_0, left_1 = left if isinstance(left, tuple) else (left, left)
        right_0, right_1 = right if isinstance(right, tuple) else (right, right)
        rows = self.cells(top, bottom)
        columns = self.cells(np.minimum(left_0, left_1), np.maximum(right_0, right_1))
        mask = self.cover(top, bottom, rows)[:, None]
        if not isinstance(left, tuple) and not isinstance(right, tuple):
            return rows, columns, mask * self.cover(left, right, columns)
        down = np.clip((self.centre[rows] - top) / (bottom - top), 0, 1)[:, None]
        low, high = left_0 + down * (left_1 - left_0), right_0 + down * (right_1 - right_0)
        return rows, columns, mask * self.cover(low, high, columns)

    def paint(
        self, top: Length, bottom: Length, left: Edge, right: Edge, colour: Colour, opacity: Length = 1.0
    ) -> None:
        """Paint a box or a trapezoid."""
        rows, columns, mask = self.shape(top, bottom, left, right)
        self.blend(rows, columns, mask * opacity, colour)

    def distance(self, x: Length, y: Length, reach: float) -> tuple[slice, slice, Array]:
        """The region within ``reach`` of a point, and each pixel's squared distance from it."""
        rows, columns = self.cells(y - reach, y + reach), self.cells(x - reach, x + reach)
        across, down = self.centre[columns] - x, self.centre[rows] - y
        return rows, columns, (across * across)[None] + (down * down)[:, None]

    def disc(self, x: Length, y: Length, radius: float, colour: Colour, opacity: Length = 1.0) -> None:
        """Paint a disc."""
        rows, columns, squared = self.distance(x, y, radius + 1 / self.px)
        mask = np.clip((radius - np.sqrt(squared)) * np.float32(self.px) + np.float32(0.5), 0, 1)
        self.blend(rows, columns, mask * opacity, colour)


def _planes(colour: Colour) -> Array:
    """A colour as (3, 1, 1, N or 1); one that varies down the rows, (3, rows, 1, N), stays."""
    planes = np.asarray(colour, np.float32)
    return planes if planes.ndim == 4 else planes.reshape(3, 1, 1, -1)


def draw(scene: Scene, px: int) -> np.ndarray:
    """The rooms of a scene as uint8 (N, px, px, 3)."""
    canvas = Canvas(px, scene.pan.shape[0])
    draw_walls(canvas, scene)
    draw_floor(canvas, scene)
    draw_window(canvas, scene)
    draw_picture(canvas, scene)
    draw_nightstand(canvas, scene)
    draw_bed(canvas, scene)
    draw_clutter(canvas, scene)
    canvas.rgb *= _planes(scene.light)
    draw_glow(canvas, scene)
    np.clip(canvas.rgb, 0, 1, out=canvas.rgb)
    canvas.rgb *= 255
    canvas.rgb += 0.5
    return np.ascontiguousarray(canvas.rgb.astype(np.uint8).transpose(3, 1, 2, 0))


def draw_walls(canvas: Canvas, scene: Scene) -> None:
    """Back wall, side walls, ceiling and skirting board."""
    left, right = scene.pan + WALL_LEFT, scene.pan + WALL_RIGHT
    shade = np.float32(1.04) - np.float32(0.16) * canvas.centre  # walls darken towards the floor
    canvas.rgb[:] = scene.wall[:, None, None] * shade[None, :, None]
    shade_columns(canvas, -1.0, left, 0.82)
    shade_columns(canvas, right, 2.0, 0.90)
    run = (VANISHING_X - WALL_LEFT) / (VANISHING_Y - CEILING) * CEILING
    canvas.paint(0.0, CEILING, (left - run, left), (right + run, right), scene.wall * 0.35 + 0.6)
    canvas.paint(WALL_FOOT - 0.025, WALL_FOOT, left, right, (0.9, 0.89, 0.86))


def shade_columns(canvas: Canvas, low: Length, high: Length, tone: float) -> None:
    """Multiply the columns between ``low`` and ``high`` by ``tone``: a wall that is lit from the side."""
    columns = canvas.cells(low, high)
    canvas.rgb[:, :, columns] *= 1 + canvas.cover(low, high, columns) * np.float32(tone - 1)


def draw_floor(canvas: Canvas, scene: Scene) -> None:
    """Boards that run to the vanishing point, brighter towards the front."""
    left, right = scene.pan + WALL_LEFT, scene.pan + WALL_RIGHT
    run = (VANISHING_X - WALL_LEFT) / (WALL_FOOT - VANISHING_Y) * (1 - WALL_FOOT)
    rows, columns, mask = canvas.shape(WALL_FOOT, 1.0, (left, left - run), (right, right + run))
    light = np.float32(0.9) + np.float32(0.3) * (canvas.centre[rows] - WALL_FOOT)
    tone = light[:, None] - np.float32(0.22) * board_gaps(canvas, rows, columns, scene.pan)
    canvas.blend(rows, columns, mask, scene.floor[:, None, None] * tone)


def board_gaps(canvas: Canvas, rows: slice, columns: slice, pan: Array) -> Array:
    """How much of each floor pixel is gap between boards: a periodic line averaged over the pixel."""
    period, width = np.float32(0.42), np.float32(0.022)
    depth = canvas.centre[rows][:, None] - np.float32(VANISHING_Y)
    reach = 1 / (np.float32(canvas.px) * depth)
    middle = (canvas.centre[columns] - VANISHING_X - pan)[None] / depth

    def gap_until(u: Array) -> Array:
        whole = np.floor(u / period)
        return whole * width + np.minimum(u - whole * period, width)

    return (gap_until(middle + reach / 2) - gap_until(middle - reach / 2)) / reach


def draw_window(canvas: Canvas, scene: Scene) -> None:
    """A cross-bar window over hills, between curtains."""
    x, top, bottom, half = scene.pan + scene.window_x, 0.15, 0.40, 0.085
    canvas.paint(top - 0.02, bottom + 0.02, x - half - 0.02, x + half + 0.02, WHITE)
    canvas.paint(top, bottom, x - half, x + half, (0.66, 0.82, 0.95))
    canvas.paint(bottom - 0.09, bottom - 0.045, x - half, x + half, (0.78, 0.87, 0.93))
    canvas.paint(bottom - 0.06, bottom, x - half, x + half, (0.50, 0.63, 0.50))
    canvas.paint(top, bottom, x - 0.007, x + 0.007, WHITE)
    canvas.paint(0.26, 0.274, x - half, x + half, WHITE)
    for side in (-1.0, 1.0):
        outer, inner = x + side * (half + 0.05), x + side * (half - 0.005)
        low, high = (outer, inner) if side < 0 else (inner, outer)
        canvas.paint(top - 0.03, bottom + 0.05, low, high, (0.78, 0.74, 0.70), 0.9)
        fold = x + side * (half + 0.022)
        canvas.paint(top - 0.03, bottom + 0.05, fold - 0.006, fold + 0.006, (0.62, 0.58, 0.55), 0.7)
    canvas.paint(top - 0.045, top - 0.028, x - half - 0.07, x + half + 0.07, (0.30, 0.24, 0.20))


def draw_picture(canvas: Canvas, scene: Scene) -> None:
    """A framed landscape above the bed."""
    x, top, bottom, half = scene.pan + BED_X, 0.17, 0.335, 0.095
    canvas.paint(top, bottom, x - half, x + half, (0.27, 0.20, 0.15))
    canvas.paint(top + 0.018, bottom - 0.018, x - half + 0.018, x + half - 0.018, scene.picture_sky)
    land = scene.picture_land
    canvas.paint(0.265, bottom - 0.018, x - half + 0.018, x + half - 0.018, land)
    canvas.paint(0.235, 0.27, (x - 0.03, x - 0.07), (x - 0.02, x + 0.03), land)


def draw_nightstand(canvas: Canvas, scene: Scene) -> None:
    """A nightstand against the wall with an unlit lamp."""
    x = scene.pan + LAMP_X
    canvas.paint(0.60, 0.735, x - 0.062, x + 0.062, (0.43, 0.30, 0.20))
    canvas.paint(0.585, 0.605, x - 0.07, x + 0.07, (0.55, 0.40, 0.27))
    canvas.paint(0.66, 0.668, x - 0.062, x + 0.062, (0.30, 0.20, 0.13))
    canvas.paint(0.628, 0.642, x - 0.012, x + 0.012, (0.80, 0.70, 0.45))
    canvas.paint(0.695, 0.703, x - 0.012, x + 0.012, (0.80, 0.70, 0.45))
    canvas.paint(0.53, 0.575, x - 0.008, x + 0.008, (0.30, 0.26, 0.24))
    canvas.paint(0.573, 0.587, x - 0.03, x + 0.03, (0.30, 0.26, 0.24))
    canvas.paint(0.445, 0.535, (x - 0.034, x - 0.06), (x + 0.034, x + 0.06), (0.55, 0.50, 0.43))


def draw_glow(canvas: Canvas, scene: Scene) -> None:
    """The lamp's own light, added after the room's: on its shade, and fading around it."""
    x = scene.pan + LAMP_X
    warm = _planes((1.0, 0.82, 0.5)) * scene.lamp
    rows, columns, mask = canvas.shape(0.445, 0.535, (x - 0.034, x - 0.06), (x + 0.034, x + 0.06))
    canvas.rgb[:, rows, columns] += mask * warm
    reach = 0.16
    rows, columns, squared = canvas.distance(x, 0.50, reach)
    fade = np.maximum(1 - squared / np.float32(reach * reach), 0)
    canvas.rgb[:, rows, columns] += fade * fade * fade * (warm * np.float32(0.3))


def draw_bed(canvas: Canvas, scene: Scene) -> None:
    """Headboard, pillows, and a quilt that folds over the foot of the bed."""
    x, half = scene.pan + BED_X, scene.bed_half_width
    end = half * BED_SPREAD
    canvas.paint(0.80, 0.965, (x - half, x - end - 0.03), (x + half, x + end + 0.03), (0.08, 0.06, 0.05), 0.4)
    canvas.paint(0.43, 0.64, x - half - 0.015, x + half + 0.015, (0.40, 0.27, 0.18))
    canvas.paint(0.45, 0.57, x - half + 0.005, x + half - 0.005, (0.49, 0.34, 0.23))
    canvas.paint(0.56, 0.64, x - half, x + half, (0.90, 0.89, 0.87))
    for side in (-0.5, 0.5):
        middle = x + side * half
        canvas.paint(0.535, 0.60, middle - half * 0.4, middle + half * 0.4, (0.97, 0.96, 0.94))
        canvas.paint(0.592, 0.603, middle - half * 0.4, middle + half * 0.4, (0.74, 0.73, 0.73))
    draw_quilt(canvas, scene, x, half, end)


def draw_quilt(canvas: Canvas, scene: Scene, x: Array, half: Array, end: Array) -> None:
    """The quilt about ``x``: its face, from ``half`` wide at the head to ``end``, and the darker drop."""
    rows, columns, mask = canvas.shape(QUILT_TOP, QUILT_FOLD, (x - half, x - end), (x + half, x + end))
    fold_rows, _, fold_mask = canvas.shape(QUILT_FOLD, QUILT_END, x - end, x + end)
    face = np.zeros((canvas.px, columns.stop - columns.start, len(x)), np.float32)
    face[rows] = mask
    drop = np.zeros_like(face)
    drop[fold_rows] = fold_mask
    rows = slice(rows.start, fold_rows.stop)
    tone = quilt_pattern(canvas, rows, columns, scene, x, half, end)
    colour = scene.bed[:, None, None]
    canvas.blend(rows, columns, face[rows], colour * tone)
    canvas.blend(rows, columns, drop[rows], colour * (tone * np.float32(0.78)))


def quilt_pattern(
    canvas: Canvas, rows: slice, columns: slice, scene: Scene, x: Array, half: Array, end: Array
) -> Array:
    """The quilt's tone (rows, columns, N), about one: the patterns mixed by their weights."""
    down = (canvas.centre[rows] - QUILT_TOP) / np.float32(QUILT_FOLD - QUILT_TOP)
    width = half + np.minimum(down, 1) * (end - half)
    across = (canvas.centre[columns] - x)[None] / width[:, None]  # -1 .. 1 from side to side
    along = (canvas.centre[rows] - QUILT_TOP) / np.float32(QUILT_END - QUILT_TOP)  # 0 .. 1 from head to foot
    cell = 1 / np.float32(canvas.px)
    stripes = square_wave(across, (cell / width)[:, None], 1.0)
    bands = square_wave(along - 1 / 6, cell / np.float32(QUILT_END - QUILT_TOP), 2 / 3)[:, None]
    inner = _soft(0.58 - np.abs(across), width[:, None] / cell)
    inner = inner * _soft(0.28 - np.abs(along - 0.5), (QUILT_END - QUILT_TOP) / cell)[:, None]
    _, stripe, band, check, border = scene.quilt
    wave = stripe * stripes + band * bands + check * (stripes * bands) + border * (1 - 2 * inner)
    return 1 + np.float32(0.09) * wave


def square_wave(u: Array, reach: Array | np.floating, period: float) -> Array:
    """A +-1 square wave averaged over [u - reach / 2, u + reach / 2]; +1 on the first half of each period."""

    def integral(v: Array) -> Array:
        phase = v / np.float32(period)
        phase = phase - np.floor(phase)
        return np.minimum(phase, 1 - phase)

    return (integral(u + reach / 2) - integral(u - reach / 2)) * (np.float32(period) / reach)


def _soft(signed: Array, pixels: Array | np.floating) -> Array:
    """Coverage of a half plane from a signed distance and the pixels in one unit of it."""
    return np.clip(signed * pixels + np.float32(0.5), 0, 1)


def draw_clutter(canvas: Canvas, scene: Scene) -> None:
    """What lies on the floor in front: nothing, books, a box, a ball or a plant."""
    x = scene.pan + CLUTTER_X
    _, books, box, ball, plant = scene.clutter
    for index, colour in enumerate(((0.24, 0.36, 0.66), (0.74, 0.72, 0.62), (0.26, 0.40, 0.70))):
        top, shift = 0.895 - 0.044 * index, (0.0, 0.014, -0.010)[index]
        canvas.paint(top, top + 0.040, x - 0.082 + shift, x + 0.082 + shift, colour, books)
        canvas.paint(top + 0.034, top + 0.040, x - 0.082 + shift, x + 0.082 + shift, BOOK_EDGE, books)
    canvas.paint(0.785, 0.935, x - 0.078, x + 0.078, (0.74, 0.58, 0.38), box)
    canvas.paint(0.785, 0.815, x - 0.078, x + 0.078, (0.86, 0.72, 0.50), box)
    canvas.paint(0.785, 0.87, x - 0.012, x + 0.012, (0.60, 0.44, 0.27), box)
    canvas.disc(x, 0.858, 0.077, (0.82, 0.22, 0.17), ball)
    canvas.disc(x - 0.024, 0.833, 0.022, (0.95, 0.60, 0.52), ball)
    canvas.disc(x, 0.805, 0.074, (0.16, 0.48, 0.22), plant)
    canvas.paint(0.862, 0.94, (x - 0.05, x - 0.037), (x + 0.05, x + 0.037), (0.82, 0.79, 0.74), plant)
