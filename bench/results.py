"""What a loader sweep found, and its JSON form (bench_loader.schema.json)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bench.attribution import Attribution
from bench.bottleneck import Bottleneck
from bench.machine_use import MachineUse, mean_use
from bench.page_cache import PageCache
from bench.stability import is_unstable, likely_reasons
from bench.statistics import Estimate, Outliers, turn_outliers
from bench.worker_limits import WorkerLimits, size_text

if TYPE_CHECKING:
    from bench.memory_outlook import Outlook
    from preflight.data.worker_fork import StartMethod

SCHEMA_VERSION = 1
MIB = float(1 << 20)
# How the loader starts its workers (preflight.data.loader), unless it is told otherwise.
START_METHOD: StartMethod = "forkserver"


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
    growth_ci95_mib: tuple[float, float] | None = None  # 95 % interval of growth_per_min_mib
    # Whether it lies above zero, and still does over the later half; None: it does, but for too short a time.
    growth_lasting: bool | None = False
    watched_min: float = 0.0  # for how long memory was watched after warm-up, in minutes over all rounds
    # Of each round: seconds since its first sample, then in MiB the workers' PSS and USS in sum and the parent's PSS.
    memory_samples: tuple[tuple[tuple[float, float | None, float, float | None], ...], ...] = ()
    parent_descriptors: int | None = None  # files that this process had open, at most
    worker_descriptors: int | None = None  # files that one worker had open, at most
    jax_workers: int | None = None  # workers that had loaded JAX; None where it could not be seen
    gpu_workers: int | None = None  # workers and children of theirs that had opened a GPU; likewise
    machine: tuple[MachineUse, ...] = ()  # what else the machine did, of each round where that could be read

    @property
    def workers_mib(self) -> float | None:
        """Memory that all workers together cost: their peak PSS and the batches they have waiting."""
        return None if self.pss_mib is None else self.pss_mib * self.num_workers + self.queued_mib

    @property
    def outliers(self) -> Outliers:
        """Turns outside Tukey's fences, of all rounds together."""
        return turn_outliers(self.intervals_s, self.num_workers)

    @property
    def unstable_because(self) -> tuple[str, ...] | None:
        """Sentences on why its interval is too wide to choose by, as far as one can tell; None where it is not."""
        if not is_unstable(self.samples_per_s):
            return None
        return likely_reasons(self.intervals_s, self.num_workers, self.machine)

    def to_json(self) -> dict[str, Any]:
        """The point as an entry of ``points``."""
        estimate, machine, reasons = self.samples_per_s, mean_use(self.machine), self.unstable_because
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
            "memory_growth": {
                "ci95_per_min_mib": None if self.growth_ci95_mib is None else list(self.growth_ci95_mib),
                "lasting": self.growth_lasting,
                "watched_min": self.watched_min,
            },
            "waiting_batches_mib": self.queued_mib,
            "parent_mib": self.parent_mib,
            "descriptors": {"parent": self.parent_descriptors, "worker": self.worker_descriptors},
            "jax_workers": self.jax_workers,
            "gpu_workers": self.gpu_workers,
            "cpu_queued_cores": self.cpu_queued_cores,
            "consumer_share": self.consumer_share,
            "disk_read_mib_per_s": self.disk_read_mib_per_s,
            "iowait_cores": self.iowait_cores,
            "outliers": dataclasses.asdict(self.outliers),
            "unstable_because": None if reasons is None else list(reasons),
            "machine": None if machine is None else dataclasses.asdict(machine),
        }

    def raw_to_json(self) -> dict[str, Any]:
        """The point as an entry of ``raw``: its intervals in seconds to the microsecond, its memory in MiB."""
        return {
            "num_workers": self.num_workers,
            "batch_intervals_s": [[round(value, 6) for value in values] for values in self.intervals_s],
            "memory_mib": [
                [[None if value is None else round(value, 2) for value in sample] for sample in samples]
                for samples in self.memory_samples
            ],
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
    limits: WorkerLimits | None = None  # besides RAM; None: not looked at
    pickled_mib: float | None = None  # what each worker is sent of the dataset; None where it was not measured

    @property
    def max_workers(self) -> int | None:
        """How many workers fit, as far as RAM goes; None where no worker was measured."""
        if not self.per_worker_mib:
            return None
        return max(0, int((self.limit_mib - self.baseline_mib) / self.per_worker_mib))

    @property
    def for_workers_mib(self) -> float:
        """What is left for workers."""
        return self.limit_mib - self.baseline_mib

    @property
    def max_workers_by(self) -> dict[str, int | None]:
        """How many workers each limit allows; None where that is not known."""
        others = {} if self.limits is None else self.limits.max_workers_by()
        return {"ram": self.max_workers, **others}

    @property
    def binds_first(self) -> str | None:
        """The limit that allows the fewest workers; None where none is known."""
        known = {name: number for name, number in self.max_workers_by.items() if number is not None}
        return min(known, key=lambda name: known[name]) if known else None

    def refusal(self, num_workers: int, workers_mib: float | None) -> str | None:
        """Why so many workers cannot be had, naming the limit; None where they can.

        Args:
            num_workers: Any number.
            workers_mib: What all of them take of RAM, where known.
        """
        if workers_mib is not None and workers_mib > self.for_workers_mib:
            return (
                f"they need {size_text(workers_mib * MIB)} of RAM, "
                f"and {size_text(max(0.0, self.for_workers_mib) * MIB)} is free ({self.limit_source})"
            )
        return None if self.limits is None else self.limits.refusal(num_workers)

    def to_json(self) -> dict[str, Any]:
        """The budget as ``memory``."""
        return {
            "baseline_mib": self.baseline_mib,
            "per_worker_mib": self.per_worker_mib,
            "limit_mib": self.limit_mib,
            "limit_source": self.limit_source,
            "max_workers": self.max_workers,
            "max_workers_by": self.max_workers_by,
            "binds_first": self.binds_first,
            "dataset_pickled_mib": self.pickled_mib,
            "limits": None if self.limits is None else self.limits.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What a sweep knows from its start, and its points, in ascending order of workers."""

    batch_size: int
    environment: dict[str, Any]
    points: tuple[PointResult, ...]
    demand_samples_per_s: float | None
    demand_source: str | None = None  # where the demand is from, in words; None where there is none, or nobody said
    config: str | None = None  # name of the run's config, where there is one
    stack: str | None = None
    dataset: Dataset | None = None  # what was loaded, where that is known
    start_method: str = START_METHOD

    def _header(self, *, complete: bool) -> dict[str, Any]:
        """What the JSON of every sweep begins with."""
        return {
            "schema_version": SCHEMA_VERSION,
            "complete": complete,
            "config": self.config,
            "stack": self.stack,
            "batch_size": self.batch_size,
            "dataset": None if self.dataset is None else self.dataset.to_json(),
            "start_method": self.start_method,
            "environment": self.environment,
            "points": [point.to_json() for point in self.points],
            "demand_samples_per_s": self.demand_samples_per_s,
            "demand_source": self.demand_source,
        }

    def _raw(self) -> list[dict[str, Any]]:
        return [point.raw_to_json() for point in self.points]


@dataclass(frozen=True, kw_only=True)
class SweepResult(_Sweep):
    """A whole sweep, points in ascending order of workers."""

    memory: MemoryBudget
    recommended_num_workers: int
    reason: str
    not_measured: dict[int, str] = field(default_factory=dict)  # number of workers -> why it was left out
    attribution: Attribution | None = None  # None: not asked for
    bottleneck: Bottleneck | None = None  # likewise
    page_cache: PageCache | None = None  # None: it is not known which files the dataset reads
    epoch_samples: int | None = None  # samples in the dataset
    run_samples: float | None = None  # that the training will load, where known

    def outlooks(self) -> tuple[Outlook, ...]:
        """Where the memory of each point with workers leads."""
        from bench.memory_outlook import outlook

        found = (outlook(point, self.memory, epoch_samples=self.epoch_samples) for point in self.points)
        return tuple(one for one in found if one is not None)

    def to_json(self) -> dict[str, Any]:
        """The result as one JSON object; seconds, samples/s and MiB, the raw intervals rounded to microseconds."""
        return {
            **self._header(complete=True),
            "memory": {**self.memory.to_json(), "outlook": [one.to_json() for one in self.outlooks()]},
            "recommended_num_workers": self.recommended_num_workers,
            "reason": self.reason,
            "attribution": self._attribution_to_json(),
            "page_cache": None if self.page_cache is None else self.page_cache.to_json(),
            "raw": self._raw(),
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
class PartialSweep(_Sweep):
    """What an interrupted or failed sweep leaves: points, in ascending order of workers, and no recommendation."""

    asked: tuple[int, ...]  # the numbers of workers that were to be measured

    def to_json(self) -> dict[str, Any]:
        """As of a complete sweep, with ``complete`` false and without what can only be said at the end."""
        return {**self._header(complete=False), "raw": self._raw()}
