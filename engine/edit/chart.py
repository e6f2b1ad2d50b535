"""A curve with its axes, drawn as the sheets are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from engine.sheet import FRAME, INK, PAPER, text_font

WIDTH, HEIGHT = 640, 360
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 16, 48
TICKS = 5
COLOURS = (FRAME, (0, 114, 178), (0, 158, 115), (204, 121, 167))  # Okabe and Ito's
PALE = (225, 225, 225)


def chart(
    x: Sequence[float], end: float, curves: Mapping[str, Sequence[float]], title: str, x_title: str
) -> Image.Image:
    """Curves over a common x, from 0 to ``end``; upwards from 0 to what is largest.

    Args:
        x: (M,) ascending, within 0 and ``end``.
        curves: name -> (M,), none below 0; four at most.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw, font = ImageDraw.Draw(image), text_font(13)
    draw.text((LEFT, 10), title, INK, text_font(17))
    right = end
    top = max(max(values) for values in curves.values()) or 1.0

    def place(px: float, py: float) -> tuple[float, float]:
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + wide * px / right, HEIGHT - BOTTOM - high * py / top

    for i in range(TICKS + 1):
        across, along = right * i / TICKS, top * i / TICKS
        draw.line((place(0, along), place(right, along)), PALE)
        draw.text((LEFT - 8, place(0, along)[1]), f"{along:.2g}", INK, font, anchor="rm")
        draw.text((place(across, 0)[0], HEIGHT - BOTTOM + 8), f"{across:.0f}", INK, font, anchor="ma")
    draw.line((place(0, top), place(0, 0), place(right, 0)), INK)
    draw.text(((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8), x_title, INK, font, anchor="md")
    for number, (name, values) in enumerate(curves.items()):
        colour = COLOURS[number]
        points = [place(a, b) for a, b in zip(x, values, strict=True)]
        draw.line(points, colour, width=3, joint="curve")
        for a, b in points:
            draw.ellipse((a - 3, b - 3, a + 3, b + 3), colour)
        if len(curves) > 1:
            draw.text((LEFT + 12, TOP + 16 * number), name, colour, font)
    return image
