"""Numbers as a person reads them."""

from __future__ import annotations

import math

THIN = "\u202f"  # a narrow space that does not break, between a number and its unit
_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def figure(value: float) -> str:
    """Three significant digits, thousands parted; very small and very large ones with an exponent."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}".replace("-", "−")
    if size >= 100 or value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def count(value: float) -> str:
    """A whole number, thousands parted."""
    return f"{value:,.0f}"


def duration(seconds: float) -> str:
    """Seconds as `12.3 s`, `4 min 5 s`, `37 min`, `2 h 05 min` or `3 d 4 h`."""
    if seconds < 0.95:
        return f"{seconds * 1e3:.3g}{THIN}ms"
    if seconds < 59.5:
        return f"{seconds:.3g}{THIN}s"
    whole = round(seconds)
    if whole < 600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    if whole < 3570:
        return f"{round(whole / 60)}{THIN}min"
    if whole < 48 * 3600:
        minutes = round(whole / 60)
        return f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"
    return f"{whole // 86400}{THIN}d {whole % 86400 // 3600}{THIN}h"


def size(number_of_bytes: float) -> str:
    """Bytes in the unit of 1024 that fits, three significant digits."""
    power = 0
    while abs(number_of_bytes) >= 1000 and power < len(_BYTES) - 1:
        number_of_bytes /= 1024
        power += 1
    return f"{number_of_bytes:.3g}{THIN}{_BYTES[power]}"


def percent(share: float) -> str:
    """A share of one as per cent."""
    hundredths = 100 * share
    return f"{hundredths:.0f}{THIN}%" if hundredths >= 10 or hundredths == 0 else f"{hundredths:.2g}{THIN}%"
