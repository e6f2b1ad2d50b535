"""Numbers and times as the report writes them."""

from __future__ import annotations

import math


def number(value: float | None, unit: str = "", digits: int = 3) -> str:
    """A number in few digits; "%" shows a share times 100."""
    if value is None or not math.isfinite(value):
        return "-"
    shown = 100 * value if unit == "%" else value
    text = f"{shown:,.0f}" if abs(shown) >= 10 ** (digits - 1) else f"{shown:.{digits}g}"
    return f"{text}\N{NO-BREAK SPACE}{unit}" if unit else text


def share(value: float | None) -> str:
    """A chance in two digits, as .84."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2f}".removeprefix("0")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the two largest that matter."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def words(name: str) -> str:
    """A name of code as people write it."""
    return name.replace("_", " ")
