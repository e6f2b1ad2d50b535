"""Large numbers in words."""

from __future__ import annotations


def size_of(count: float) -> str:
    """A number of bytes in words."""
    return _scaled(count, 1024, ("bytes", "KiB", "MiB", "GiB", "TiB"))


def flops(count: float) -> str:
    """A number of floating-point operations in words."""
    return _scaled(count, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while count >= base and power + 1 < len(units):
        count, power = count / base, power + 1
    return f"{count:,.1f} {units[power]}" if power else f"{count:,.0f} {units[0]}"


def seconds(count: float) -> str:
    """A time in words."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if count >= 2 * length:
            return f"{count / length:,.1f} {unit}"
    return f"{count:,.1f} s" if count >= 2 else f"{1000 * count:,.1f} ms"
