"""What processes did with a span of time: computed, stood in line for a CPU, or waited for something else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

THIS_THREAD = Path("/proc/thread-self/schedstat")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of processes and of their children that ended, since they started."""
    import psutil

    total = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue  # gone in between: its time is now among its parent's children
        total += times.user + times.system + times.children_user + times.children_system
    return total


def queued_seconds(pids: Iterable[int], *, proc: Path = Path("/proc")) -> float | None:
    """Time that the living threads of processes were ready to run and no CPU was free for them, or a quota used up.

    Returns:
        None where the kernel does not count it (CONFIG_SCHED_INFO).
    """
    total = 0.0
    for pid in pids:
        try:
            threads = os.listdir(proc / str(pid) / "task")
        except OSError:
            continue
        for thread in threads:
            queued = read_queued(proc / str(pid) / "task" / thread / "schedstat")
            if queued is None and (proc / str(pid) / "task" / thread).exists():
                return None
            total += queued or 0.0
    return total


def read_queued(path: Path) -> float | None:
    """The waiting time of a ``schedstat`` file, in seconds; None where there is none."""
    try:
        # proc(5): time on a CPU and time waiting for one, in nanoseconds, and the number of turns.
        return int(path.read_bytes().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def iowait_seconds(*, proc: Path = Path("/proc")) -> float | None:
    """Time that CPUs of this machine had nothing to do but a request to a disk under way; of all CPUs since boot."""
    try:
        fields = (proc / "stat").read_text().split("\n", 1)[0].split()
        return int(fields[5]) / os.sysconf("SC_CLK_TCK")  # user, nice, system, idle, iowait
    except (OSError, IndexError, ValueError):
        return None


class Clocks:
    """Wall time, this process's CPU time and this thread's time in line for a CPU, from one moment to another.

    The CPU time is the process's and not the thread's, since a decoder may work in threads of its own.
    """

    def start(self) -> None:
        """The first moment."""
        self._queued = read_queued(THIS_THREAD)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float, float]:
        """Seconds of each since the first moment; the last is not a number where the kernel does not count it."""
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        queued = read_queued(THIS_THREAD)
        return wall, cpu, float("nan") if queued is None or self._queued is None else queued - self._queued
