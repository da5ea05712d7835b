"""What a sample's time goes into: decoding, transforming, collating, and the parent's receiving.

Two short passes, each with one worker and nothing beside it. In the first the worker times every stage of every sample
it makes, or of every batch where the dataset makes a batch's samples together (one pass through a video, say), and
collates a batch into shared memory now and then. In the second its batches are ready before they are
asked for, and the parent's time for taking one is what a batch's way through the parent costs: the one part of loading
that no further worker makes faster.

A stage's wall time has three parts: CPU time, time in line for a CPU (none on an idle machine), and what is left:
waiting, for a disk, a network or a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.timed_dataset import CycledDataset, TimedDataset, reads_together, stages_of
from preflight.data.loader import BatchLoader

# Long enough for some hundred samples of a camera, short enough to be spent on every benchmark.
ATTRIBUTION_S = 3.0
# The first samples open files and start decoders.
_WARM_UP_S = 0.5
_MIN_SAMPLES = 4
_TRANSFER_S = 0.5
_READY_BATCHES = 4  # each is as much shared memory as a batch of training
COLLATE, TRANSFER = "collate", "transfer"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage's cost for a sample, in seconds."""

    name: str  # "decode", "transform"; "sample" where they cannot be told apart; "collate", "transfer"
    wall_s: float
    cpu_s: float
    queued_s: float | None  # in line for a CPU; None where the kernel does not count it
    where: str  # "worker" or "parent"

    @property
    def samples_per_s(self) -> float:
        """What one process would do that did nothing else."""
        return 1 / max(self.wall_s, 1e-9)

    @property
    def waited_s(self) -> float:
        """Wall time that was spent neither on a CPU nor in line for one."""
        return max(0.0, self.wall_s - self.cpu_s - (self.queued_s or 0.0))

    def to_json(self) -> dict[str, Any]:
        """As an entry of ``attribution.stages``."""
        return {
            "name": self.name,
            "where": self.where,
            "samples_per_s": self.samples_per_s,
            "cpu_s_per_sample": self.cpu_s,
            "wall_s_per_sample": self.wall_s,
            "waited_s_per_sample": self.waited_s,
        }


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """All stages in the order in which a sample passes them."""

    stages: tuple[Stage, ...]
    num_samples: int  # that were timed
    how: str

    @property
    def in_worker(self) -> tuple[Stage, ...]:
        """Those that more workers make faster."""
        return tuple(stage for stage in self.stages if stage.where == "worker")

    @property
    def waiting_share(self) -> float:
        """Share of a worker's time that it waits; time in line for a CPU is left out, since it is others' doing."""
        waited = sum(stage.waited_s for stage in self.in_worker)
        total = waited + sum(stage.cpu_s for stage in self.in_worker)
        return waited / total if total else 0.0

    def __str__(self) -> str:
        """For people: ``decode 101, transform 812, collate 4120; the parent receives 9800``."""
        parts = ", ".join(f"{stage.name} {_rate(stage)}" for stage in self.in_worker)
        received = [f"; the parent receives {_rate(stage)}" for stage in self.stages if stage.where == "parent"]
        return parts + "".join(received)


def attribute(
    dataset: Any,
    *,
    batch_size: int,
    num_workers: int = 1,
    seed: int = 0,
    start_sample: int = 0,
    seconds: float = ATTRIBUTION_S,
    loader: Callable[..., Any] = BatchLoader,
) -> Attribution:
    """Times the stages of loading.

    Args:
        dataset: Any map-style dataset; a `preflight.runs.protocol.StagedDataset` or `BatchStagedDataset` has its own
            stages told apart.
        batch_size: Samples in a batch.
        num_workers: 0 makes the samples in this process, for a dataset that cannot be sent to a worker.
        seed: Of the order of samples.
        start_sample: How many of that order were read before.
        seconds: For the first pass; a sample that takes longer is waited for, or two batches that are made together.
        loader: Makes a loader; for ``BatchLoader``'s arguments.

    Raises:
        DataError: The dataset failed at some index.
        PreflightError: The worker was killed, or no sample came in time.
    """
    names = [name for name, _ in stages_of(dataset)]
    rows = _time_samples(dataset, batch_size, min(1, num_workers), seed, start_sample, seconds, loader)
    costs = [_mean(rows[:, number]) for number in range(rows.shape[1])]
    stages = [_stage(name, cost, "worker") for name, cost in zip([*names, COLLATE], costs, strict=True)]
    together = f" in batches of {batch_size}" if reads_together(dataset) else ""
    how = f"{len(rows)} samples made{together} by one process alone, each stage timed"
    if num_workers:
        cost = _time_transfer(dataset, batch_size, seed, batch_size * stages[-1].wall_s, loader)
        stages.append(_stage(TRANSFER, cost, "parent"))
        how += "; transfer: the parent's time for batches that were ready, with one worker"
    return Attribution(stages=tuple(stages), num_samples=len(rows), how=how)


def _time_samples(
    dataset: Any,
    batch_size: int,
    num_workers: int,
    seed: int,
    start_sample: int,
    seconds: float,
    loader: Callable[..., Any],
) -> np.ndarray:
    timed = TimedDataset(dataset, batch_size, shared=num_workers > 0)
    rows: list[np.ndarray] = []
    size = batch_size if reads_together(dataset) else 1
    with loader(timed, batch_size=size, num_workers=num_workers, seed=seed, start_batch=start_sample // size) as items:
        began = time.perf_counter()
        warm: int | None = None
        for item in items:
            if not rows:
                # The making of the first ones counts as warm-up; the start of the worker does not.
                began = time.perf_counter() - size * float(np.nansum(item[0, :-1, 0]))
            # A copy: a view would keep the batch's shared memory, and with it a file descriptor a sample.
            rows.extend(np.array(item))
            elapsed = time.perf_counter() - began
            if warm is None and elapsed >= min(_WARM_UP_S, seconds / 4):
                warm = len(rows)
            if warm is not None and elapsed >= seconds and len(rows) >= warm + _MIN_SAMPLES:
                break
    kept = np.stack(rows[warm:])
    if np.isnan(kept[:, -1, 0]).all():  # so few samples that the only batch was among the first ones
        kept[0, -1] = next(row[-1] for row in rows if not np.isnan(row[-1, 0]))
    return kept


def _time_transfer(
    dataset: Any, batch_size: int, seed: int, collate_s: float, loader: Callable[..., Any]
) -> np.ndarray:
    """The parent's wall and CPU time for a sample of a batch that waited for it; the third value is not known."""
    wall: list[float] = []
    cpu: list[float] = []
    with loader(
        CycledDataset(dataset, batch_size),
        batch_size=batch_size,
        num_workers=1,
        seed=seed,
        prefetch_factor=_READY_BATCHES,
    ) as batches:
        for _ in range(_READY_BATCHES):
            batch = next(batches)
        until = time.perf_counter() + _TRANSFER_S
        while not wall or time.perf_counter() < until:
            # Twice what the worker needs for as many.
            time.sleep(2 * _READY_BATCHES * collate_s + 0.02)
            for _ in range(_READY_BATCHES):
                began, cpu_began = time.perf_counter(), time.thread_time()
                batch = next(batches)  # the one before is given back meanwhile, as in a training loop
                cpu.append(time.thread_time() - cpu_began)
                wall.append(time.perf_counter() - began)
        del batch
    # The lower quartile: a batch that was not ready after all was waited for, which is none of the parent's work.
    return np.array([*np.quantile([wall, cpu], 0.25, axis=1), np.nan]) / batch_size


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean over the rows in which a stage was timed."""
    timed = rows[~np.isnan(rows[:, 0])]
    return timed.mean(axis=0) if len(timed) else np.full(3, np.nan)


def _stage(name: str, cost: np.ndarray, where: str) -> Stage:
    wall, cpu, queued = (float(value) for value in cost)
    return Stage(name=name, wall_s=wall, cpu_s=cpu, queued_s=None if np.isnan(queued) else queued, where=where)


def _rate(stage: Stage) -> str:
    return f"{stage.samples_per_s:,.0f}" if stage.samples_per_s >= 100 else f"{stage.samples_per_s:.3g}"
