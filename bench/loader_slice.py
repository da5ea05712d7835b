"""One uninterrupted measurement of one loader: start it, warm it up, take batches, close it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from bench.cpu_time import THIS_THREAD, cpu_seconds, iowait_seconds, queued_seconds, read_queued
from bench.disk import read_bytes
from bench.machine_use import MachineUse, machine_use, read_machine
from bench.memory_watch import MemorySample, MemoryWatch
from bench.statistics import BLOCK_S, batches_in_turn, warmup_batches
from preflight.telemetry.memory import tree_pids

# Fewer turns or blocks than these say nothing about their own spread; a slice outlasts its time for them.
MIN_TURNS = 3
MIN_MEASURED_S = 3 * BLOCK_S


class Loader(AbstractContextManager[Any], Protocol):
    """What the benchmark needs of a loader; ``preflight.data.loader.BatchLoader`` is one."""

    def __iter__(self) -> Iterator[Any]:
        """Batches without end."""

    def worker_pids(self) -> tuple[int, ...]:
        """Processes that load; empty where the loader works in this process."""


@dataclass(frozen=True, kw_only=True)
class LoaderSlice:
    """What one slice saw."""

    first_batch_s: float  # from constructing the loader to its first batch
    intervals_s: list[float]  # between consecutive batches, after warm-up
    cpu_s: float  # CPU time over the intervals, of the workers and their children (0 workers: of this process)
    queued_s: float | None  # likewise, the time in line for a CPU; None where the kernel does not count it
    read_bytes: int | None  # likewise, read from block devices; None where nobody may know
    consumer_s: float  # CPU time of the thread that took the batches, for taking them
    consumer_queued_s: float | None  # its time in line for a CPU; None where the kernel does not count it
    iowait_s: float | None  # of the whole machine: idle CPUs while a disk was asked for something
    machine: MachineUse | None  # what else the machine did, over the intervals; None where there is no procfs
    seconds: float  # from the first batch to the end, warm-up included
    batch_bytes: int
    batches_taken: int
    memory: list[MemorySample]  # over the whole slice
    warm_at: float  # time.perf_counter() at the end of the warm-up


def measure_slice(
    open_loader: Callable[[], Loader],
    *,
    num_workers: int,
    prefetch_factor: int,
    seconds: float,
    enough: Callable[[list[float]], bool],
) -> LoaderSlice:
    """Start a loader, take batches from it as fast as it gives them, close it.

    Args:
        open_loader: Makes the loader; its time counts into ``first_batch_s``.
        num_workers: Of that loader.
        prefetch_factor: Batches that each worker prepares ahead.
        seconds: From the first batch to the end, warm-up included; outlasted where ``MIN_TURNS`` need it.
        enough: Asked now and then with the intervals so far: True ends the slice before its time.
    """
    turn = batches_in_turn(num_workers)
    started = time.perf_counter()
    with open_loader() as loader, MemoryWatch(loader.worker_pids) as watch:
        batches = iter(loader)
        batch_bytes = batch_nbytes(next(batches))
        first_at = time.perf_counter()
        warmup = warmup_batches(num_workers, prefetch_factor)
        for _ in range(warmup - 1):
            next(batches)
        pids = loader.worker_pids()
        machine_before = read_machine()
        before, queued_before = _readings(pids), read_queued(THIS_THREAD)
        consumer_s = 0.0
        warm_at = last = time.perf_counter()
        watch.sample_now()  # growth is counted from here
        ask_at = warm_at + MIN_MEASURED_S
        intervals: list[float] = []
        while True:
            consumer_began = time.thread_time()
            next(batches)
            consumer_s += time.thread_time() - consumer_began
            now = time.perf_counter()
            intervals.append(now - last)
            last = now
            if len(intervals) % turn or len(intervals) < MIN_TURNS * turn or now - warm_at < MIN_MEASURED_S:
                continue
            if now - first_at >= seconds:
                break
            if now >= ask_at:
                if enough(intervals):
                    break
                ask_at = now + 2 * BLOCK_S
        after, queued_after = _readings(pids), read_queued(THIS_THREAD)
        machine_after = read_machine()
    return LoaderSlice(
        first_batch_s=first_at - started,
        intervals_s=intervals,
        cpu_s=after.cpu_s - before.cpu_s,
        queued_s=_grown(before.queued_s, after.queued_s),
        read_bytes=_grown(before.read_bytes, after.read_bytes),
        consumer_s=consumer_s,
        consumer_queued_s=_grown(queued_before, queued_after),
        iowait_s=_grown(before.iowait_s, after.iowait_s),
        machine=machine_use(machine_before, machine_after),
        seconds=last - first_at,
        batch_bytes=batch_bytes,
        batches_taken=warmup + len(intervals),
        memory=watch.samples,
        warm_at=warm_at,
    )


class _Readings(NamedTuple):
    cpu_s: float
    queued_s: float | None
    read_bytes: int | None
    iowait_s: float | None


def _readings(worker_pids: tuple[int, ...]) -> _Readings:
    pids = {pid for worker in worker_pids for pid in tree_pids(worker)} or {os.getpid()}
    cpu = cpu_seconds(pids) if worker_pids else time.process_time()
    return _Readings(cpu, queued_seconds(pids), read_bytes(pids), iowait_seconds())


def _grown(before: Any, after: Any) -> Any:
    # What is summed over threads falls when one of them ends.
    return None if before is None or after is None else max(0, after - before)


def batch_nbytes(batch: Any) -> int:
    """Bytes that a nested batch of arrays takes in memory."""
    if isinstance(batch, dict):
        return sum(batch_nbytes(value) for value in batch.values())
    if isinstance(batch, list | tuple):
        return sum(batch_nbytes(value) for value in batch)
    if isinstance(batch, np.ndarray):
        # What is stored once for all samples (preflight.data.collate) has a stride of 0 along the batch.
        stored = (length for length, stride in zip(batch.shape, batch.strides, strict=True) if stride)
        return math.prod(stored) * batch.itemsize
    return int(getattr(batch, "nbytes", 0))
