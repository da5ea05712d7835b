"""`python -m bench.first_batch [CONFIG]`: how long four workers take to their first batch, in fresh processes.

Measured from constructing the loader, with the dataset open, in two ways: the server that workers
are forked from is started with the loader, or it was started when the process began, as `preflight train` does.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from preflight.config.builtin import DEFAULT_CONFIG

_RUNS = 5
_NUM_WORKERS = 4
_BUDGET_S = 4.0


def measure_once(config: str, early: bool) -> float:
    """Seconds from constructing the loader to its first batch, in this process."""
    from preflight.data.loader import BatchLoader, start_worker_server
    from preflight.runs import load_run

    if early:
        start_worker_server()
    run = load_run(config)
    dataset = run.dataset()
    if early:
        import preflight.training.step  # noqa: F401  (what a training imports while the server starts)
    began = time.perf_counter()
    with BatchLoader(dataset, batch_size=run.facts.batch_size, num_workers=_NUM_WORKERS) as loader:
        next(loader)
        return time.perf_counter() - began


def main() -> None:
    """Prints median, minimum and maximum of five processes each."""
    if len(sys.argv) == 4 and sys.argv[1] == "--once":
        print(measure_once(sys.argv[2], sys.argv[3] == "early"))
        return
    config = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_CONFIG
    for how in ("cold", "early"):
        seconds = []
        for _ in range(_RUNS + 1):
            command = [sys.executable, "-m", "bench.first_batch", "--once", config, how]
            seconds.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        seconds = seconds[1:]  # the first one fills the page cache
        print(
            f"first batch, {_NUM_WORKERS} workers, server started {'with the loader' if how == 'cold' else 'early'}: "
            f"{statistics.median(seconds):.2f} s [{min(seconds):.2f}, {max(seconds):.2f}]   budget {_BUDGET_S:g} s"
        )


if __name__ == "__main__":
    main()
