"""The loader sweep: how fast a dataset loads with each number of workers, and what those workers cost.

How it measures. Every point (number of workers) is measured in ``rounds``; each round visits all points, every other
one in reverse order, so that a machine that drifts or a page cache that fills favours none. A point's loader is started
anew for each round and is the only one alive: idle loaders beside it would make its workers' PSS look smaller than it
is in training (shared pages are divided among all who map them), and would hold their RAM and refill their queues at
its expense. No two slices read the same batches, so that none finds the other's pages in the cache. Before that, one
worker loads one batch: it brings up the server that forks the workers, which would otherwise be charged to the first
point, and shows early whether the dataset loads at all.

With ``cold`` the dataset's pages are dropped from the page cache before each slice, so that every point is measured as
a first epoch would be; what a slice reads twice it finds in the cache, as an epoch does.

A point ends after all rounds, when its time is up, or, from the second round on, when its interval is narrow enough.
What the figures mean is in ``bench.statistics``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.attribution import Attribution, attribute
from bench.bottleneck import Bottleneck, bottleneck
from bench.cache_offer import cache_offer
from bench.decision import decide
from bench.disk import mount_of_files
from bench.loader_slice import Loader, LoaderSlice, batch_nbytes, measure_slice
from bench.memory_watch import sample_memory
from bench.page_cache import PageCache, drop, resident_share, total_bytes
from bench.point_memory import memory_fields
from bench.results import MIB, START_METHOD, MemoryBudget, PointResult, SweepResult
from bench.statistics import (
    MIN_RESAMPLED,
    TARGET_RELATIVE_HALF_WIDTH,
    Estimate,
    block_rates,
    median_interval,
    percentiles,
)
from bench.worker_limits import WorkerLimits, limits_here
from bench.workers_argument import check_workers
from preflight.data.loader import BatchLoader
from preflight.data.pickling import pickled_bytes
from preflight.data.worker_fork import StartMethod
from preflight.errors import PreflightError, UsageError
from preflight.telemetry.cpus import usable_cpus
from preflight.telemetry.environment import environment
from preflight.telemetry.growth import LASTING_S, MIN_GROWTH_S
from preflight.telemetry.memory import available_memory

# A slice that ends early has lasted for its share of the time that growth is watched for, and for what is lost at its
# ends before the first sample of memory and after the last one.
_SAMPLING_S = 1.0
_PREFETCH_FACTOR = 2

LoaderFactory = Callable[..., Loader]


def sweep(
    dataset: Any,
    *,
    batch_size: int,
    workers: Sequence[int] = (2, 4, 8),
    max_seconds: float = 20.0,
    seed: int = 0,
    rounds: int = 3,
    demand_samples_per_s: float | None = None,
    demand_source: str | None = None,
    on_point: Callable[[PointResult], None] | None = None,
    loader: LoaderFactory = BatchLoader,
    start_method: StartMethod = START_METHOD,
    config: str | None = None,
    stack: str | None = None,
    files: Sequence[Path] = (),
    cold: bool = False,
    attribution_s: float = 0.0,
    run_samples: float | None = None,
) -> SweepResult:
    """Measure a map-style dataset's loading with several numbers of workers and recommend one.

    Args:
        dataset: Has ``__len__`` and ``__getitem__``; picklable, for workers get a copy.
        batch_size: Samples in a batch.
        workers: Numbers of workers to measure; 0 loads in this process.
        max_seconds: For each point, from its first batches to its last over all rounds; starting workers comes on top.
            A loader so slow that this is not enough for a few batches of every worker is given the time for those.
        seed: Of the order of samples and of the bootstrap.
        rounds: Slices that a point's time is divided into.
        demand_samples_per_s: What the training step consumes, where known; enters the recommendation.
        demand_source: Where that is from, in words, for the reason.
        on_point: Called with a point's figures so far after each of its slices; what it was given is what remains when
            the sweep is interrupted or the dataset fails.
        loader: Makes a loader; for ``BatchLoader``'s arguments.
        start_method: Of its workers: "fork" takes a dataset that cannot be pickled, where a fork is safe.
        config: Name for the result.
        stack: Likewise.
        files: What the dataset reads its samples from, for the page cache's state and the file system's kind; of a
            LeRobot dataset `bench.page_cache.dataset_files` tells.
        cold: Whether to drop these files from the page cache before each slice.
        attribution_s: Seconds for telling apart what a sample's time goes into (`bench.attribution`), after the points;
            0 leaves it and the bottleneck out.

        run_samples: How many samples the training will load, where known: start-up is weighed against that.

    Raises:
        UsageError: The dataset is smaller than a batch, or an argument is out of range or missing.
        DataError: The dataset failed at some index.
        PreflightError: A worker was killed, no batch came in time, or no number of workers can be had here.
    """
    counts = sorted(check_workers(workers))
    if cold and not files:
        raise UsageError("The dataset's files are not known, so they cannot be dropped from the page cache.")
    _check_sizes(dataset, batch_size, max_seconds, rounds, demand_samples_per_s)
    if start_method != START_METHOD:
        loader = partial(loader, start_method=start_method)

    batches_read = 0

    def open_loader(num_workers: int) -> Loader:
        return loader(
            dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            start_batch=batches_read,
            prefetch_factor=_PREFETCH_FACTOR,
        )

    resident = resident_share(files)
    left: list[float] = []  # in the page cache after each dropping

    def cool() -> None:
        if cold:
            drop(files)
            left.append(resident_share(files) or 0.0)

    before = sample_memory(())
    held_mib = (before.others_pss or before.workers_uss) / MIB if before else 0.0
    free = available_memory()
    limit_mib = held_mib + free.available_bytes / MIB
    limits, pickled = limits_here(_PREFETCH_FACTOR), None
    if any(counts):
        with open_loader(1) as rehearsal:
            limits = dataclasses.replace(limits, batch_bytes=batch_nbytes(next(iter(rehearsal))))
        batches_read += 1 + _PREFETCH_FACTOR
        pickled = pickled_bytes(dataset)

    def budget_now() -> MemoryBudget:
        return _memory_budget(points, held_mib, limit_mib, free.source, limits, pickled)

    slices: dict[int, list[LoaderSlice]] = {}
    points: dict[int, PointResult] = {}
    not_measured: dict[int, str] = {}
    for round_index in range(rounds):
        for num_workers in counts if round_index % 2 == 0 else reversed(counts):
            if num_workers in not_measured:
                continue
            if round_index == 0:
                why = _refusal(budget_now(), num_workers)
                if why is not None:
                    not_measured[num_workers] = why
                    continue
            done = slices.setdefault(num_workers, [])
            left_s = max_seconds - sum(past.seconds for past in done)
            if done and (left_s < 0.5 * max_seconds / rounds or (_is_narrow(points[num_workers], done))):
                continue
            rates = [_rates(past.intervals_s, batch_size, num_workers) for past in done]
            cool()
            measured = measure_slice(
                partial(open_loader, num_workers),
                num_workers=num_workers,
                prefetch_factor=_PREFETCH_FACTOR,
                seconds=left_s / (rounds - round_index),
                enough=partial(_enough, rates, batch_size, num_workers, seed, _least_s(max_seconds, rounds)),
            )
            batches_read += measured.batches_taken + num_workers * _PREFETCH_FACTOR
            done.append(measured)
            points[num_workers] = _point(num_workers, done, batch_size=batch_size, seed=seed)
            if on_point is not None:
                on_point(points[num_workers])

    if not points:
        raise _nothing_fits(not_measured)
    ordered = tuple(points[number] for number in sorted(points))
    budget = budget_now()
    recommended, reason = decide(
        ordered,
        memory=budget,
        usable_cpus=usable_cpus().count,
        demand_samples_per_s=demand_samples_per_s,
        demand_source=demand_source,
        not_measured=not_measured,
        samples=run_samples,
    )
    found: Attribution | None = None
    limit: Bottleneck | None = None
    if attribution_s > 0:
        cool()
        found = attribute(
            dataset,
            batch_size=batch_size,
            num_workers=max(points),  # of those that can be had
            seed=seed,
            start_sample=batches_read * batch_size,
            seconds=attribution_s,
            loader=loader,
        )
        limit = bottleneck(
            ordered,
            found,
            usable_cpus=usable_cpus().count,
            mount=mount_of_files(files),
            cache=cache_offer(dataset, found),
        )
    return SweepResult(
        batch_size=batch_size,
        environment=environment(),
        points=ordered,
        demand_samples_per_s=demand_samples_per_s,
        demand_source=demand_source,
        memory=budget,
        recommended_num_workers=recommended,
        reason=reason,
        config=config,
        stack=stack,
        start_method=start_method,
        not_measured=not_measured,
        attribution=found,
        bottleneck=limit,
        page_cache=PageCache(
            resident_share=resident, bytes=total_bytes(files), cold=cold, left_share=max(left, default=None)
        )
        if files
        else None,
        epoch_samples=len(dataset),
        run_samples=run_samples,
    )


def _refusal(budget: MemoryBudget, num_workers: int) -> str | None:
    """Why so many workers are not even started, by those measured so far."""
    need_mib = num_workers * (budget.per_worker_mib or 0.0)
    if need_mib > budget.for_workers_mib:
        return f"by the workers measured so far {budget.refusal(num_workers, need_mib)}"
    return budget.refusal(num_workers, None)


def _nothing_fits(not_measured: dict[int, str]) -> PreflightError:
    fewest, why = min(not_measured.items())
    workers = "1 worker" if fewest == 1 else f"{fewest} workers"
    hint = "fewer workers, or a higher limit: ulimit -n 65536"
    return PreflightError(f"The loader cannot be measured with {workers}: {why}.", hint)


def _check_sizes(dataset: Any, batch_size: int, max_seconds: float, rounds: int, demand: float | None) -> None:
    if batch_size < 1:
        raise UsageError(f"A batch of {batch_size} samples cannot be loaded.", hint="Give a batch size of 1 or more.")
    if len(dataset) < batch_size:
        samples = "1 sample" if len(dataset) == 1 else f"{len(dataset)} samples"
        raise UsageError(
            f"The dataset has {samples}, fewer than one batch of {batch_size}.",
            hint=f"Give a batch size of at most {len(dataset)}, or record more." if len(dataset) else None,
        )
    if max_seconds <= 0 or rounds < 1:
        raise UsageError(f"{max_seconds:g} s in {rounds} rounds leaves no time to measure.")
    if demand is not None and demand <= 0:
        raise UsageError(f"A demand of {demand:g} samples/s asks for nothing.", hint="Leave it out where not known.")


def _rates(intervals_s: Sequence[float], batch_size: int, num_workers: int) -> np.ndarray:
    return block_rates(intervals_s, batch_size=batch_size, num_workers=num_workers)


def _least_s(max_seconds: float, rounds: int) -> float:
    """How long a slice lasts at least, for the sake of its memory."""
    if max_seconds / rounds >= LASTING_S + 2 * _SAMPLING_S:
        return max_seconds / rounds  # so much time is given to see whether workers go on growing
    return MIN_GROWTH_S / rounds + _SAMPLING_S


def _enough(
    earlier: list[np.ndarray], batch_size: int, num_workers: int, seed: int, least_s: float, intervals_s: list[float]
) -> bool:
    """Whether a slice may end before its time: it has lasted a while and all blocks together agree."""
    if sum(intervals_s) < least_s:
        return False
    rates = _rates(intervals_s, batch_size, num_workers)
    return rates.size >= MIN_RESAMPLED and _is_tight(median_interval(*earlier, rates, seed=seed))


def _is_narrow(point: PointResult, done: list[LoaderSlice]) -> bool:
    """Whether a point needs no further round: its rate is known well, and its workers' growth where it can be seen."""
    growth_known = point.growth_per_min_mib is not None or point.pss_mib is None
    return len(done) >= 2 and _is_tight(point.samples_per_s) and growth_known


def _is_tight(estimate: Estimate) -> bool:
    return estimate.relative_half_width < TARGET_RELATIVE_HALF_WIDTH


def _point(num_workers: int, slices: list[LoaderSlice], *, batch_size: int, seed: int) -> PointResult:
    rates = [_rates(one.intervals_s, batch_size, num_workers) for one in slices]
    intervals = np.concatenate([one.intervals_s for one in slices])
    seconds = float(intervals.sum())
    return PointResult(
        num_workers=num_workers,
        samples_per_s=median_interval(*rates, seed=seed),
        batch_interval_s=percentiles(intervals),
        first_batch_s=float(np.median([one.first_batch_s for one in slices])),
        cpu_cores_used=sum(one.cpu_s for one in slices) / seconds,
        **memory_fields(num_workers, slices, _PREFETCH_FACTOR),
        intervals_s=tuple(tuple(one.intervals_s) for one in slices),
        cpu_queued_cores=_per_second([one.queued_s for one in slices], seconds),
        consumer_share=_consumer_share(slices, seconds) if num_workers else None,
        disk_read_mib_per_s=_per_second([one.read_bytes for one in slices], seconds * MIB),
        iowait_cores=_per_second([one.iowait_s for one in slices], seconds),
        machine=tuple(one.machine for one in slices if one.machine is not None),
    )


def _consumer_share(slices: list[LoaderSlice], seconds: float) -> float:
    busy = sum(one.consumer_s for one in slices)
    in_line = sum(one.consumer_queued_s or 0.0 for one in slices)
    return busy / max(busy, seconds - in_line)


def _per_second(values: Sequence[float | None], seconds: float) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / seconds if len(known) == len(values) else None


def _memory_budget(
    points: dict[int, PointResult],
    held_mib: float,
    limit_mib: float,
    limit_source: str,
    limits: WorkerLimits,
    pickled_bytes: int | None,
) -> MemoryBudget:
    """What workers cost; of the parent, what it holds while others load, since with 0 workers the dataset is in it."""
    with_workers = [points[number] for number in sorted(points) if number > 0]
    parents = [point.parent_mib for point in with_workers or points.values() if point.parent_mib is not None]
    opened = [point.worker_descriptors for point in with_workers if point.worker_descriptors is not None]
    per_worker = None
    if with_workers and with_workers[-1].workers_mib is not None:
        # The most workers measured: with them the shared pages are divided among the most, as beyond them.
        per_worker = with_workers[-1].workers_mib / with_workers[-1].num_workers
    return MemoryBudget(
        baseline_mib=max([held_mib, *parents]),
        per_worker_mib=per_worker,
        limit_mib=limit_mib,
        limit_source=limit_source,
        limits=dataclasses.replace(limits, worker_descriptors=max(opened, default=None)),
        pickled_mib=None if pickled_bytes is None else pickled_bytes / MIB,
    )
