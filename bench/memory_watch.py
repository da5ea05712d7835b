"""The memory of a loader's workers over time, sampled beside the measurement."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from preflight.telemetry.descriptors import open_descriptors
from preflight.telemetry.memory import process_memory
from preflight.telemetry.worker_jax import has_gpu, has_jax

_PERIOD_S = 0.5
# Reading smaps walks the page tables of a process, some milliseconds each: sampling may cost 2 % of one CPU, no more.
_SHARE = 0.02
# This process and the server that forks the workers are larger than a worker and seldom change: read as often as the
# workers, they would take most of that share.
_OTHERS_PERIOD_S = 4.0


@dataclass(frozen=True)
class MemorySample:
    """All workers at one moment; in bytes."""

    at: float  # time.perf_counter()
    workers_pss: int | None  # workers with their children, in sum; None where the platform has no PSS
    workers_uss: int
    others_pss: int | None  # this process and its other children; None where they were not read
    descriptors: int | None = None  # that this process has open
    worker_descriptors: int | None = None  # that one worker or child of it has open, at most
    jax_workers: int | None = None  # workers that have loaded JAX; None where it was not looked for
    gpu_workers: int | None = None  # workers that have opened a GPU; likewise


class MemoryWatch:
    """Samples in a thread of its own from ``__enter__`` to ``__exit__``.

    Args:
        worker_pids: Asked for anew at every sample, since workers come and go.
        period_s: Time between samples; longer where sampling itself takes long.
    """

    def __init__(self, worker_pids: Callable[[], tuple[int, ...]], *, period_s: float = _PERIOD_S) -> None:
        self._worker_pids = worker_pids
        self._period_s = period_s
        self._wake = threading.Event()
        self._ending = False
        self._others_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)
        self.samples: list[MemorySample] = []

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, error_type: object, *_: object) -> None:
        self._ending = True
        self._wake.set()
        self._thread.join()
        if error_type is None:
            # However short the measurement was, there is a sample of it; by now all has been loaded that will be.
            self._take(last=True)

    def sample_now(self) -> None:
        """Asks for a sample at once, beside those that come by themselves; does not wait for it."""
        self._wake.set()

    def _take(self, *, last: bool = False) -> None:
        pids = self._worker_pids()
        others = last or not pids or time.perf_counter() - self._others_at >= _OTHERS_PERIOD_S
        sample = sample_memory(pids, others=others, libraries=last)
        if sample is not None:
            self.samples.append(sample)
            self._others_at = sample.at if others else self._others_at

    def _run(self) -> None:
        while not self._ending:
            # CPU time, for on a busy machine waiting takes most of the time, and costs nobody anything.
            started = time.thread_time()
            self._take()
            cost = time.thread_time() - started
            self._wake.wait(max(self._period_s, cost / _SHARE))
            if not self._ending:
                self._wake.clear()


def sample_memory(worker_pids: tuple[int, ...], *, others: bool = True, libraries: bool = False) -> MemorySample | None:
    """One sample; None where a worker vanished in the middle, since a sum without it would be too small.

    Args:
        worker_pids: The workers, descendants of this process; their children count with them.
        others: Whether to read this process and its other children as well.
        libraries: Whether to look for JAX and GPUs in the workers as well.
    """
    workers, rest = _family(worker_pids)
    if not workers.issuperset(worker_pids):
        return None
    worker_memory = [process_memory(pid) for pid in workers]
    at = time.perf_counter()
    other_memory = [process_memory(pid) for pid in rest] if others else []
    if any(memory is None for memory, pid in zip(worker_memory, workers, strict=True) if pid in worker_pids):
        return None
    return MemorySample(
        at=at,
        workers_pss=_sum([memory.pss for memory in worker_memory if memory]),
        workers_uss=sum(memory.uss for memory in worker_memory if memory),
        others_pss=_sum([memory.pss for memory in other_memory if memory]) if others else None,
        descriptors=open_descriptors(),
        worker_descriptors=max(
            (count for pid in workers if (count := open_descriptors(pid)) is not None), default=None
        ),
        jax_workers=_count([has_jax(pid) for pid in worker_pids]) if libraries else None,
        gpu_workers=_count([has_gpu(pid) for pid in workers]) if libraries else None,
    )


def _family(worker_pids: tuple[int, ...]) -> tuple[set[int], set[int]]:
    """This process and all its descendants: the workers with theirs, and the rest; in one pass over the processes."""
    import psutil

    parents: dict[int, int] = {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            parents[child.pid] = child.ppid()
    workers = set(worker_pids) & parents.keys()
    while found := {pid for pid, parent in parents.items() if parent in workers} - workers:
        workers |= found
    return workers, {os.getpid(), *parents} - workers


def _count(answers: list[bool | None]) -> int | None:
    return None if None in answers else sum(map(bool, answers))


def _sum(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
