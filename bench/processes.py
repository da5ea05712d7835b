"""Whole processes, timed from outside: what a user waits for."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

MIB = float(1 << 20)

# Linux counts the memory of whoever starts a program to that program's peak (ru_maxrss, in KiB, lives on through exec):
# hence a parent in between that has imported next to nothing.
_TIMER = """
import json, os, sys, time
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
began = time.perf_counter()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
print(json.dumps([time.perf_counter() - began, os.waitstatus_to_exitcode(status), usage.ru_maxrss]))
"""


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
        words = [sys.executable, "-ISc", _TIMER, *command]
        timed = subprocess.run(words, check=False, capture_output=True, text=True)
        wall, code, maxrss_kib = json.loads(timed.stdout)
        if code not in codes:
            raise RuntimeError(f"{' '.join(command)} exited with {code}: {timed.stderr[-500:]}")
        if run:
            walls.append(wall)
            peak = max(peak, maxrss_kib * 1024 / MIB)
    return ProcessTime(tuple(walls), peak)


def preflight_command(*words: str) -> list[str]:
    """The command line of this environment's `preflight`."""
    return [str(Path(sys.executable).with_name("preflight")), *words]
