"""What workers that grow come to: over an epoch, over the run, and when they meet the limit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bench.results import MemoryBudget, PointResult


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """Of one number of workers, at the rate at which they loaded; a slower training step stretches the minutes."""

    num_workers: int
    growing: bool | None  # None: watched for too short a time to tell whether it lasts
    epoch_min: float | None  # what an epoch takes
    epoch_peak_mib: float | None  # parent and workers at its end, if they started with it
    limit_min: float | None  # until the limit is reached; None where nothing grows
    limit_samples: float | None  # likewise, in samples
    limit_earliest_min: float | None  # by the upper end of the growth's interval
    limit_latest_min: float | None  # by its lower end

    def to_json(self) -> dict[str, Any]:
        """As an entry of ``memory.outlook``."""
        return asdict(self)


def outlook(point: PointResult, budget: MemoryBudget, *, epoch_samples: int | None = None) -> Outlook | None:
    """Extrapolates a point's growth; None without workers or without their memory.

    Args:
        point: A measured number of workers.
        budget: The limit on RAM and the parent's share.
        epoch_samples: Samples in the dataset, where known.
    """
    if point.workers_mib is None or point.num_workers == 0:
        return None
    growing = None if point.growth_per_min_mib is None else point.growth_lasting
    epoch_min = epoch_samples / point.samples_per_s.median / 60 if epoch_samples else None
    held = budget.baseline_mib + point.workers_mib
    peak = None if epoch_min is None or growing is None else held
    rates: list[float] = []
    if growing and point.growth_per_min_mib is not None and point.growth_ci95_mib is not None:
        rates = [rate * point.num_workers for rate in (point.growth_per_min_mib, *point.growth_ci95_mib)]
        if epoch_min is not None:
            # What grew while it was measured is in the peak already.
            peak = held + rates[0] * max(0.0, epoch_min - point.watched_min)
    room = max(0.0, budget.limit_mib - held)
    minutes, latest, earliest = [room / rate for rate in rates] or (None, None, None)
    return Outlook(
        num_workers=point.num_workers,
        growing=growing,
        epoch_min=epoch_min,
        epoch_peak_mib=peak,
        limit_min=minutes,
        limit_samples=None if minutes is None else minutes * 60 * point.samples_per_s.median,
        limit_earliest_min=earliest,
        limit_latest_min=latest,
    )
