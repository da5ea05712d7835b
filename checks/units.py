"""Bytes for a reader."""

from __future__ import annotations


def size(num_bytes: float) -> str:
    """Binary units, three digits at the most: `6.8 MiB`, `48.3 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"
