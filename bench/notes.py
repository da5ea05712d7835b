"""Lines beneath a sweep's table: where a sample's time goes, what limits, and what the page cache and the disk did."""

from __future__ import annotations

from bench.decision import workers_text
from bench.memory_outlook import Outlook
from bench.results import MIB, PointResult, SweepResult
from bench.worker_limits import size_text
from bench.workers_argument import CAP_AT_LEAST

# Below these a figure is rounding, or what any process does now and then.
_NOTABLE_MIB_PER_S = 0.1
_NOTABLE_CONSUMER_SHARE = 0.3
_NOTABLE_SHARE = 0.02
# A dataset that only knows where its files lie is a few KiB; tables of a million rows in Python objects are 100 MiB.
LARGE_PICKLED_MIB = 50.0


def notes(result: SweepResult) -> list[str]:
    """What of a result is worth a line; empty where nothing was asked for and nothing is unusual."""
    lines = []
    if result.attribution is not None:
        lines.append(f"Stages, samples/s of one worker: {result.attribution}.")
    if result.bottleneck is not None:
        lines.append(f"Bottleneck: {result.bottleneck}")
        offered = result.bottleneck.cache
        if offered is not None and offered != result.bottleneck.advice[0]:
            lines.append(f"{offered}.")
    lines += [line for line in (_limit(result), _pickled(result), _devices(result)) if line]
    lines += [line for line in (_page_cache(result), _disk(result), _consumer(result)) if line]
    return [*lines, *_growing(result)]


def _limit(result: SweepResult) -> str | None:
    """The limit that binds before RAM, or soon after."""
    memory, limits = result.memory, result.memory.limits
    if limits is None:
        return None
    if (files := limits.workers_files_refusal()) is not None:
        return f"File descriptors: {files}; raise the limit: ulimit -n 65536."
    number = memory.max_workers_by.get(memory.binds_first or "")
    if number is None or number >= CAP_AT_LEAST:
        return None  # nobody wants so many
    if memory.binds_first == "descriptors":
        return (
            f"File descriptors: {limits.descriptor_limit} (ulimit -n) are enough for {workers_text(number)}: "
            "this binds before RAM does."
        )
    return None


def _pickled(result: SweepResult) -> str | None:
    if result.memory.pickled_mib is None or result.memory.pickled_mib < LARGE_PICKLED_MIB:
        return None
    return (
        f"Dataset: {size_text(result.memory.pickled_mib * MIB)} when pickled, of which every worker is sent a copy: "
        "keep tables in files and open them in the worker, as Arrow or numpy memory maps."
    )


def _devices(result: SweepResult) -> str | None:
    gpus = max((point.gpu_workers or 0 for point in result.points), default=0)
    if not gpus:
        return None
    return (
        f"GPU: {workers_text(gpus)} opened one, and take hundreds of MiB of it each: keep transforms in numpy, or set "
        "JAX_PLATFORMS=cpu in the workers."
    )


def _growing(result: SweepResult) -> list[str]:
    if any(outlook.growing is None and point.growth_per_min_mib is not None for outlook, point in _pairs(result)):
        early = [
            "Growth (in brackets) is that of the first seconds, in which caches fill: --max-seconds 60 tells more."
        ]
    else:
        early = []
    return early + [f"Growth: {growth_text(point, outlook)}." for outlook, point in _pairs(result) if outlook.growing]


def _pairs(result: SweepResult) -> list[tuple[Outlook, PointResult]]:
    points = {point.num_workers: point for point in result.points}
    return [(outlook, points[outlook.num_workers]) for outlook in result.outlooks()]


def growth_text(point: PointResult, outlook: Outlook) -> str:
    """How the workers of a point grow and where that leads, for people; for one whose growth was measured."""
    slope, (low, high) = point.growth_per_min_mib or 0.0, point.growth_ci95_mib or (0.0, 0.0)
    rate = f"{slope:+.0f} [{low:+.0f}, {high:+.0f}] MiB/min a worker"
    if outlook.growing is None:
        return (
            f"{workers_text(point.num_workers)}: {rate} at first; whether they go on growing was not seen in "
            f"{60 * point.watched_min:.0f} s, over all rounds"
        )
    if not outlook.growing or outlook.limit_min is None:
        return f"{workers_text(point.num_workers)} did not grow: {rate}, over {60 * point.watched_min:.0f} s"
    text = f"{workers_text(point.num_workers)}: {rate}"
    if outlook.epoch_peak_mib is not None and outlook.epoch_min is not None:
        text += (
            f", with the parent {size_text(outlook.epoch_peak_mib * MIB)} at the end of an epoch "
            f"({_minutes(outlook.epoch_min)})"
        )
    return f"{text}; the limit is reached after {_minutes(outlook.limit_min)} at this rate"


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 10 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.0f} h"


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
