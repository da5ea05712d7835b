"""Whole processes, timed from outside: what a user waits for."""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

MIB = float(1 << 20)


@dataclasses.dataclass(frozen=True)
class ProcessTime:
    """Several runs of one command."""

    wall_s: tuple[float, ...]
    peak_rss_mib: float  # the largest of all runs, the process itself without its children

    def __str__(self) -> str:
        low, high = min(self.wall_s), max(self.wall_s)
        return f"{statistics.median(self.wall_s):6.2f} s [{low:.2f}, {high:.2f}]  {self.peak_rss_mib:6.0f} MiB"


def time_process(command: Sequence[str], *, runs: int = 5, codes: Sequence[int] = (0,)) -> ProcessTime:
    """Runs a command several times after one run that is not counted (it fills the page cache and writes bytecode).

    Args:
        command: Program and arguments.
        runs: Counted runs.
        codes: Exit codes that count as success.

    Raises:
        RuntimeError: It ended with another exit code.
    """
    walls, peak = [], 0.0
    for run in range(runs + 1):
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in codes:
            raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}: {errors.decode()[-500:]}")
        if run:
            walls.append(wall)
            peak = max(peak, usage.ru_maxrss * 1024 / MIB)  # Linux counts in KiB
    return ProcessTime(tuple(walls), peak)


def preflight_command(*words: str) -> list[str]:
    """The command line of this environment's `preflight`."""
    return [str(Path(sys.executable).with_name("preflight")), *words]
