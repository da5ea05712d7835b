"""What a loader sweep found, and its JSON form (bench_loader.schema.json)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from bench.attribution import Attribution
from bench.bottleneck import Bottleneck
from bench.page_cache import PageCache
from bench.statistics import Estimate

SCHEMA_VERSION = 1
MIB = float(1 << 20)
# How the loader starts its workers (preflight.data.loader).
START_METHOD = "forkserver"


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """One number of workers, over all rounds so far."""

    num_workers: int
    samples_per_s: Estimate
    batch_interval_s: dict[str, float]  # p50, p95, p99 of the raw intervals
    first_batch_s: float  # median over the rounds: from constructing the loader to its first batch
    cpu_cores_used: float  # by the workers and their children; with 0 workers by this process
    pss_mib: float | None  # per worker: the peak of the sum over all workers, divided by them; None with 0 workers
    uss_mib: float | None
    growth_per_min_mib: float | None  # per worker, slope of the PSS after warm-up; None: observed for too short a time
    growth_error_mib: float | None  # standard error of that slope
    queued_mib: float  # batches that wait in shared memory, mapped by nobody and hence in nobody's PSS, at most
    parent_mib: float | None  # PSS of this process and its other children (the server that forks the workers), at most
    intervals_s: tuple[tuple[float, ...], ...]  # raw, without warm-up, one tuple a round
    # What of it could be read, over the same intervals; None elsewhere.
    cpu_queued_cores: float | None = None  # threads of the workers that were in line for a CPU, on average
    consumer_share: float | None = None  # of this process's time, not counting that in line for a CPU: taking batches
    disk_read_mib_per_s: float | None = None  # by the workers from block devices, past the page cache
    iowait_cores: float | None = None  # CPUs of the machine that idled while a disk was asked for something, on average

    @property
    def workers_mib(self) -> float | None:
        """Memory that all workers together cost: their peak PSS and the batches they have waiting."""
        return None if self.pss_mib is None else self.pss_mib * self.num_workers + self.queued_mib

    def to_json(self) -> dict[str, Any]:
        """The point as an entry of ``points``."""
        estimate = self.samples_per_s
        return {
            "num_workers": self.num_workers,
            "samples_per_s": {"median": estimate.median, "ci95": [estimate.lo, estimate.hi]},
            "batch_interval_s": dict(self.batch_interval_s),
            "first_batch_s": self.first_batch_s,
            "cpu_cores_used": self.cpu_cores_used,
            "memory_per_worker_mib": {
                "pss": self.pss_mib,
                "uss": self.uss_mib,
                "growth_per_min": self.growth_per_min_mib,
            },
            "cpu_queued_cores": self.cpu_queued_cores,
            "consumer_share": self.consumer_share,
            "disk_read_mib_per_s": self.disk_read_mib_per_s,
            "iowait_cores": self.iowait_cores,
        }

    def raw_to_json(self) -> dict[str, Any]:
        """The point as an entry of ``raw``: its intervals in seconds, rounded to microseconds."""
        return {
            "num_workers": self.num_workers,
            "batch_intervals_s": [[round(value, 6) for value in values] for values in self.intervals_s],
        }


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What was loaded, as far as it tells whether two results are of the same thing."""

    frames: int  # samples
    root: str | None = None  # its folder
    codebase_version: str | None = None  # of the LeRobot format
    description: str | None = None  # in words, where it is no LeRobot dataset

    def to_json(self) -> dict[str, Any]:
        """The dataset as ``dataset``."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class MemoryBudget:
    """What workers cost, against what there is; in MiB."""

    baseline_mib: float  # this process and its children without the workers
    per_worker_mib: float | None  # peak PSS and waiting batches, at the largest number measured; None without workers
    limit_mib: float  # what all of that may take together: held at the start plus available at the start
    limit_source: str  # as in preflight.telemetry.memory.MemoryLimit

    @property
    def max_workers(self) -> int | None:
        """How many workers fit, as far as memory goes; None where no worker was measured."""
        if not self.per_worker_mib:
            return None
        return max(0, int((self.limit_mib - self.baseline_mib) / self.per_worker_mib))

    @property
    def for_workers_mib(self) -> float:
        """What is left for workers."""
        return self.limit_mib - self.baseline_mib

    def to_json(self) -> dict[str, Any]:
        """The budget as ``memory``."""
        return {
            "baseline_mib": self.baseline_mib,
            "per_worker_mib": self.per_worker_mib,
            "limit_mib": self.limit_mib,
            "limit_source": self.limit_source,
            "max_workers": self.max_workers,
        }


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A whole sweep, points in ascending order of workers."""

    batch_size: int
    environment: dict[str, Any]
    points: tuple[PointResult, ...]
    demand_samples_per_s: float | None
    memory: MemoryBudget
    recommended_num_workers: int
    reason: str
    config: str | None = None  # name of the run's config, where there is one
    stack: str | None = None
    not_measured: dict[int, str] = field(default_factory=dict)  # number of workers -> why it was left out
    attribution: Attribution | None = None  # None: not asked for
    bottleneck: Bottleneck | None = None  # likewise
    page_cache: PageCache | None = None  # None: it is not known which files the dataset reads
    dataset: Dataset | None = None  # what was loaded, where that is known
    start_method: str = START_METHOD

    def to_json(self) -> dict[str, Any]:
        """The result as one JSON object; seconds, samples/s and MiB, the raw intervals rounded to microseconds."""
        return {
            "schema_version": SCHEMA_VERSION,
            "complete": True,
            "config": self.config,
            "stack": self.stack,
            "batch_size": self.batch_size,
            "dataset": None if self.dataset is None else self.dataset.to_json(),
            "start_method": self.start_method,
            "environment": self.environment,
            "points": [point.to_json() for point in self.points],
            "demand_samples_per_s": self.demand_samples_per_s,
            "memory": self.memory.to_json(),
            "recommended_num_workers": self.recommended_num_workers,
            "reason": self.reason,
            "attribution": self._attribution_to_json(),
            "page_cache": None if self.page_cache is None else self.page_cache.to_json(),
            "raw": [point.raw_to_json() for point in self.points],
        }

    def _attribution_to_json(self) -> dict[str, Any] | None:
        if self.attribution is None or self.bottleneck is None:
            return None
        return {
            "stages": [stage.to_json() for stage in self.attribution.stages],
            "num_samples": self.attribution.num_samples,
            "how": self.attribution.how,
            "bottleneck": self.bottleneck.name,
            "sentence": self.bottleneck.sentence,
            "advice": list(self.bottleneck.advice),
        }


@dataclass(frozen=True, kw_only=True)
class PartialSweep:
    """What an interrupted or failed sweep leaves: points, in ascending order of workers, and no recommendation."""

    batch_size: int
    environment: dict[str, Any]
    points: tuple[PointResult, ...]
    asked: tuple[int, ...]  # the numbers of workers that were to be measured
    demand_samples_per_s: float | None
    config: str | None = None
    stack: str | None = None
    dataset: Dataset | None = None
    start_method: str = START_METHOD

    def to_json(self) -> dict[str, Any]:
        """As of a complete sweep, with ``complete`` false and without what can only be said at the end."""
        return {
            "schema_version": SCHEMA_VERSION,
            "complete": False,
            "config": self.config,
            "stack": self.stack,
            "batch_size": self.batch_size,
            "dataset": None if self.dataset is None else self.dataset.to_json(),
            "start_method": self.start_method,
            "environment": self.environment,
            "points": [point.to_json() for point in self.points],
            "demand_samples_per_s": self.demand_samples_per_s,
            "raw": [point.raw_to_json() for point in self.points],
        }
