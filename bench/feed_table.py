"""What `bench.feed` found, as a table and as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.decision import workers_text
from bench.feed_rounds import Feed, RowSlices
from bench.statistics import Estimate, block_rates, median_interval, paired_ratio
from preflight.telemetry.environment import environment

SCHEMA_VERSION = 1
_WIDTH = 112
_SHOWN = ("lerobot", "torch", "torchcodec", "av", "numpy", "jax")

_HOW = """\
Warm-up left out: the first batches, as many as can have been prefetched. The dataset was in the page cache. Each slice
ran in a process of its own that had imported its libraries and opened the dataset; the first batch is timed from there.
CPU is that of the workers and of the thread that takes the batches. PSS counts a shared page as its share."""
_WHAT = """\
ours: the model's samples, 224x224 uint8; decoded by the video's own scaler, or with openpi's exact pixels; the cache in
memory was filled by one epoch before. LeRobot: its own samples, full-size float32 pictures and a chunk of 50 actions,
from an order without end; resizing would come on top. openpi: its loader and transforms, without the tokenizer; ours
around the same dataset and transforms. bare random decoding: seek and decode of each sample's frames, no conversion,
nothing handed over: what decoding allows."""
_STAR = "* the fastest of LeRobot's rows, which the column compares with; both ratios are paired by round."


@dataclass(frozen=True, kw_only=True)
class RowFigures:
    """One measured row."""

    samples_per_s: Estimate
    to_lerobot: Estimate | None  # ratio to the fastest of LeRobot's rows
    to_openpi: Estimate | None
    to_limit: Estimate | None
    first_batch_s: float  # median over the rounds
    pss_mib: float | None  # of one worker, at most
    cpu_s_per_sample: float


def figures(feed: Feed) -> dict[str, RowFigures]:
    """The figures of each row that could be measured, by its key."""
    rates = {one.row.key: _rates(feed, one) for one in feed.rows if one.refused is None}
    lerobot = fastest_lerobot(feed)
    found = {}
    for one in feed.rows:
        if one.row.key not in rates:
            continue
        mine, key = rates[one.row.key], one.row.key

        def against(other: str | None, mine: list[np.ndarray] = mine, key: str = key) -> Estimate | None:
            return paired_ratio(mine, rates[other]) if other in rates and other != key else None

        samples = feed.batch_size * sum(len(part.intervals_s) for part in one.slices)
        pss = [part.pss_mib for part in one.slices if part.pss_mib is not None]
        found[one.row.key] = RowFigures(
            samples_per_s=median_interval(*mine),
            to_lerobot=against(lerobot),
            to_openpi=against("openpi"),
            to_limit=against("limit"),
            first_batch_s=float(np.median([part.first_batch_s for part in one.slices])),
            pss_mib=max(pss, default=None),
            cpu_s_per_sample=sum(part.cpu_s for part in one.slices) / samples,
        )
    return found


def fastest_lerobot(feed: Feed) -> str | None:
    """The row of LeRobot's that the others are compared with; None where none could be measured."""
    measured = [one for one in feed.rows if one.row.whose == "lerobot" and one.refused is None]
    best = max(measured, key=lambda one: np.median(np.concatenate(_rates(feed, one))), default=None)
    return None if best is None else best.row.key


def render_feed(feed: Feed) -> str:
    """The table with what it was measured on above and what it means below."""
    found, lerobot = figures(feed), fastest_lerobot(feed)
    cameras = ", ".join(f"{key} {'x'.join(map(str, shape[:2]))}" for key, shape in feed.cameras)
    resident = "" if feed.resident_share is None else f", {feed.resident_share:.0%} in the page cache"
    measured_on = (
        f"{feed.root.name}: {feed.frames:,} frames, {cameras} ({feed.codec or 'no video'}){resident}; "
        f"{workers_text(feed.num_workers)}, batch {feed.batch_size}"
    )
    heading = (
        f"{'':22} {'samples/s [95 %]':>20} {'x LeRobot':>20} {'x limit':>20} {'first':>7} {'PSS MiB':>8} {'CPU ms':>8}"
    )
    units = f"{'':85} {'batch s':>7} {'a worker':>8} {'a sample':>8}"
    lines = [*textwrap.wrap(measured_on, _WIDTH), "", heading, units]
    for one in feed.rows:
        row = found.get(one.row.key)
        mark = "*" if one.row.key == lerobot else ""
        if row is None:
            lines.append(f"{one.row.title:22} {one.refused}"[:_WIDTH])
            continue
        lines.append(
            f"{one.row.title + mark:22} {row.samples_per_s!s:>20} {_or_dash(row.to_lerobot):>20} "
            f"{_or_dash(row.to_limit):>20} {row.first_batch_s:7.1f} "
            f"{'-' if row.pss_mib is None else f'{row.pss_mib:.0f}':>8} {row.cpu_s_per_sample * 1e3:8.2f}"
        )
    notes = [*([] if lerobot is None else [_STAR]), *_against_openpi(feed, found), _HOW, _WHAT, _machine(feed)]
    return "\n".join([*lines, "", *(textwrap.fill(note, _WIDTH) for note in notes), ""])


def feed_json(feeds: Sequence[Feed]) -> dict[str, Any]:
    """All datasets as one object: seconds, samples/s and MiB; raw intervals to the microsecond."""
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment(),
        "datasets": [_dataset_json(feed) for feed in feeds],
    }


def _dataset_json(feed: Feed) -> dict[str, Any]:
    found = figures(feed)
    return {
        "name": feed.root.name,
        "frames": feed.frames,
        "cameras": {key: list(shape) for key, shape in feed.cameras},
        "codec": feed.codec,
        "page_cache_resident_share": feed.resident_share,
        "num_workers": feed.num_workers,
        "batch_size": feed.batch_size,
        "compared_with": fastest_lerobot(feed),
        "others_cores": others_cores(feed),
        "rows": [_row_json(one, found.get(one.row.key)) for one in feed.rows],
    }


def _row_json(one: RowSlices, row: RowFigures | None) -> dict[str, Any]:
    document: dict[str, Any] = {"row": one.row.key, "title": one.row.title, "refused": one.refused}
    if row is not None:
        document |= {
            "samples_per_s": _estimate_json(row.samples_per_s),
            "ratio_to_lerobot": _estimate_json(row.to_lerobot),
            "ratio_to_openpi": _estimate_json(row.to_openpi),
            "ratio_to_limit": _estimate_json(row.to_limit),
            "first_batch_s": row.first_batch_s,
            "pss_per_worker_mib": row.pss_mib,
            "cpu_s_per_sample": row.cpu_s_per_sample,
            "batch_intervals_s": [[round(value, 6) for value in part.intervals_s] for part in one.slices],
        }
    return document


def _estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else {"median": estimate.median, "ci95": [estimate.lo, estimate.hi]}


def _rates(feed: Feed, one: RowSlices) -> list[np.ndarray]:
    return [
        block_rates(part.intervals_s, batch_size=feed.batch_size, num_workers=feed.num_workers) for part in one.slices
    ]


def _or_dash(estimate: Estimate | None) -> str:
    return "-" if estimate is None else str(estimate)


def _against_openpi(feed: Feed, found: dict[str, RowFigures]) -> list[str]:
    named = [f"{one.row.title} {found[one.row.key].to_openpi}" for one in feed.rows if _has_openpi(found, one)]
    return [f"x openpi: {'; '.join(named)}."] if named else []


def _has_openpi(found: dict[str, RowFigures], one: RowSlices) -> bool:
    return one.row.key in found and found[one.row.key].to_openpi is not None


def others_cores(feed: Feed) -> float | None:
    """CPUs that other processes used during the slices, on average; None where nobody knows."""
    known = [part.others_cores for one in feed.rows for part in one.slices if part.others_cores is not None]
    return float(np.mean(known)) if known else None


def _machine(feed: Feed) -> str:
    here, others = environment(), others_cores(feed)
    company = "" if others is None else f" Other processes used {others:.2f} CPUs meanwhile."
    versions = ", ".join(f"{name} {here['packages'][name]}" for name in _SHOWN if here["packages"].get(name))
    return (
        f"{here['cpu']}, {here['cpus_usable']:g} usable CPUs ({here['cpus_source']}), "
        f"{here['ram_bytes'] / 2**30:.0f} GiB, Linux {here['kernel']}, Python {here['python']}, {versions}.{company}"
    )
