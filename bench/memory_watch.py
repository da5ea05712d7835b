"""The memory of a loader's workers over time, sampled beside the measurement."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from preflight.telemetry.memory import process_memory, tree_pids

_PERIOD_S = 0.5
# Reading smaps walks the page tables of a process, some milliseconds each: sampling may cost 2 % of one CPU, no more.
_SHARE = 0.02


@dataclass(frozen=True)
class MemorySample:
    """All workers at one moment; in bytes."""

    at: float  # time.perf_counter()
    workers_pss: int | None  # workers with their children, in sum; None where the platform has no PSS
    workers_uss: int
    others_pss: int | None  # this process and its other children


class MemoryWatch:
    """Samples in a thread of its own from ``__enter__`` to ``__exit__``.

    Args:
        worker_pids: Asked for anew at every sample, since workers come and go.
        period_s: Time between samples; longer where sampling itself takes long.
    """

    def __init__(self, worker_pids: Callable[[], tuple[int, ...]], *, period_s: float = _PERIOD_S) -> None:
        self._worker_pids = worker_pids
        self._period_s = period_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self.samples: list[MemorySample] = []

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if error_type is None:
            self._take()  # so that however short the measurement was, there is a sample of it

    def _take(self) -> None:
        sample = sample_memory(self._worker_pids())
        if sample is not None:
            self.samples.append(sample)

    def _run(self) -> None:
        while True:
            started = time.perf_counter()
            self._take()
            cost = time.perf_counter() - started
            if self._stop.wait(max(self._period_s, cost / _SHARE)):
                return


def sample_memory(worker_pids: tuple[int, ...]) -> MemorySample | None:
    """One sample; None where a worker vanished in the middle, since a sum without it would be too small."""
    workers: set[int] = set()
    for pid in worker_pids:
        workers.update(tree_pids(pid))
    if not workers.issuperset(worker_pids):
        return None
    others = set(tree_pids(os.getpid())) - workers
    worker_memory = [process_memory(pid) for pid in workers]
    other_memory = [process_memory(pid) for pid in others]
    if any(memory is None for memory, pid in zip(worker_memory, workers, strict=True) if pid in worker_pids):
        return None
    return MemorySample(
        at=time.perf_counter(),
        workers_pss=_sum([memory.pss for memory in worker_memory if memory]),
        workers_uss=sum(memory.uss for memory in worker_memory if memory),
        others_pss=_sum([memory.pss for memory in other_memory if memory]),
    )


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
