"""`python -m bench.telemetry_cost [SECONDS]`: the share of a core that the telemetry of a run takes.

This process does nothing but sample another one and its workers, each of which holds 100 MiB; so its own CPU time, from
before the thread starts until after it has ended, is the cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from preflight.telemetry.sampler import TelemetryWriter

_SECONDS = 60.0
_NUM_WORKERS = (0, 8)
_BUDGET_PERCENT = 0.5
# The pages are written to, since those that are only reserved cost nothing to count.
_HOLD = "import sys; held = bytearray(b'1') * (100 << 20); print('ready', flush=True); sys.stdin.read()"
_MAIN = f"""
import subprocess, sys
held = bytearray(b'1') * (100 << 20)
command = [sys.executable, '-c', {_HOLD!r}]
workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(int(sys.argv[1]))]
for worker in workers:
    worker.stdout.readline()
print('ready', flush=True)
sys.stdin.read()
for worker in workers:
    worker.communicate()
"""


def measure(num_workers: int, seconds: float) -> str:
    """Samples a process with so many workers, and says in a line what that cost."""
    command = [sys.executable, "-c", _MAIN, str(num_workers)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as main,
    ):
        assert main.stdout is not None
        main.stdout.readline()
        path = Path(folder) / "telemetry.jsonl"
        began, cpu_began = time.perf_counter(), time.process_time()
        with TelemetryWriter(main.pid, path):
            time.sleep(seconds)
        cpu_s, wall_s = time.process_time() - cpu_began, time.perf_counter() - began
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        main.communicate()
    memory = [line["tree"]["pss_bytes"] for line in lines if "pss_bytes" in line["tree"]]
    return (
        f"{num_workers:7}   {100 * cpu_s / wall_s:7.3f} %   {1000 * cpu_s / len(lines):8.2f} ms   {len(lines):7}   "
        f"{len(memory):12}   {memory[-1] / 2**20:8.0f} MiB"
    )


def main() -> None:
    """Prints a line for each number of workers."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else _SECONDS
    print(f"{len(psutil.pids())} processes on this machine, {seconds:g} s each, budget {_BUDGET_PERCENT:g} % of a core")
    print("workers    of a core   a sample CPU   samples   PSS readings     PSS in all")
    for num_workers in _NUM_WORKERS:
        print(measure(num_workers, seconds), flush=True)


if __name__ == "__main__":
    main()
