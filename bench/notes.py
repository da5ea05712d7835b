"""Lines beneath a sweep's table: where a sample's time goes, what limits, and what the page cache and the disk did."""

from __future__ import annotations

from bench.decision import workers_text
from bench.results import MIB, SweepResult

# Below these a figure is rounding, or what any process does now and then.
_NOTABLE_MIB_PER_S = 0.1
_NOTABLE_CONSUMER_SHARE = 0.3
_NOTABLE_SHARE = 0.02


def notes(result: SweepResult) -> list[str]:
    """What of a result is worth a line; empty where nothing was asked for and nothing is unusual."""
    lines = []
    if result.attribution is not None:
        lines.append(f"Stages, samples/s of one worker: {result.attribution}.")
    if result.bottleneck is not None:
        lines.append(f"Bottleneck: {result.bottleneck}")
    lines += [line for line in (_page_cache(result), _disk(result), _consumer(result)) if line]
    return lines


def _page_cache(result: SweepResult) -> str | None:
    cache = result.page_cache
    if cache is None:
        return None
    size = f"{cache.bytes / MIB / 1024:.1f} GiB" if cache.bytes >= 1024 * MIB else f"{cache.bytes / MIB:.0f} MiB"
    if not cache.cold:
        if cache.resident_share is None:
            return None
        return f"Page cache: {cache.resident_share:.0%} of the dataset's {size} was in memory at the start."
    line = f"Page cache: dropped before each slice ({size})"
    if cache.left_share is not None and cache.left_share > _NOTABLE_SHARE:
        return f"{line}, but up to {cache.left_share:.0%} stayed: these figures are not those of a cold start."
    return f"{line}."


def _disk(result: SweepResult) -> str | None:
    read = [point for point in result.points if (point.disk_read_mib_per_s or 0.0) >= _NOTABLE_MIB_PER_S]
    if not read:
        return None
    rates = ", ".join(f"{point.disk_read_mib_per_s:.1f} MiB/s by {workers_text(point.num_workers)}" for point in read)
    return f"Disk: {rates}, past the page cache."


def _consumer(result: SweepResult) -> str | None:
    busy = [point for point in result.points if (point.consumer_share or 0.0) >= _NOTABLE_CONSUMER_SHARE]
    if not busy:
        return None
    shares = ", ".join(f"{point.consumer_share:.0%} with {workers_text(point.num_workers)}" for point in busy)
    return f"Parent: taking batches keeps it busy for a part of the time, {shares}."
