"""`python -m bench.selftest`: the loader benchmark on datasets whose figures are known; exit code 0 if all are met.

Each dataset is measured by ``bench.sweep`` as any other. Tiny samples keep what the loader adds small beside what the
dataset is known to take; how much that is, is measured on a dataset that takes nothing, and said, not subtracted.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from bench.accuracy import Finding, judge_memory, judge_rate, judge_slope, render
from bench.known_datasets import MIB, Busy, FailsAt, HangsAt, Holding, Latency, Leaking
from bench.machine_use import mean_use
from bench.results import PointResult
from bench.sweep import sweep
from preflight.data.loader import BatchLoader, start_worker_server
from preflight.errors import DataError, PreflightError
from preflight.telemetry.cpus import usable_cpus
from preflight.telemetry.environment import environment

TIMEOUT_TOLERANCE_S = 1.5  # the loader looks once a second whether its time is up

_BATCH = 16
_SAMPLE_S = 0.02  # 320 ms a batch, beside which what the loader adds is 1 %
_WORKERS = (1, 2, 4)
_RATE_SECONDS = 9.0  # a point
_HELD_MIB = 200
_LEAK_MIB, _LEAK_SAMPLE_S, _LEAK_SECONDS = 1, 0.05, 10.0  # 20 MiB/s: 200 MiB a worker, if it lived throughout
_TIMEOUT_S = 3.0
BAD, _LENGTH = 77, 256  # read by chance in one of the first 32 batches


def latency() -> Iterator[Finding]:
    """Each number of workers against workers / seconds a sample."""
    for point in _rates(Latency(_SAMPLE_S)):
        yield judge_rate(f"{_SAMPLE_S * 1e3:.0f} ms asleep a sample", point.num_workers / _SAMPLE_S, point)


def cpu() -> Iterator[Finding]:
    """Each number of workers against cores / seconds a sample, as many cores as there are and workers for them.

    CPU time that a hypervisor kept back cannot be had by any process: its share is taken off the truth, and said.
    """
    cores = usable_cpus().count
    for point in _rates(Busy(_SAMPLE_S)):
        machine = mean_use(point.machine)
        kept = machine.stolen_share if machine else 0.0
        truth = min(point.num_workers, cores) / _SAMPLE_S * (1 - kept)
        yield judge_rate(f"{_SAMPLE_S * 1e3:.0f} ms of CPU a sample", truth, point, cores=cores)


def _rates(dataset: Any) -> tuple[PointResult, ...]:
    return sweep(dataset, batch_size=_BATCH, workers=_WORKERS, max_seconds=_RATE_SECONDS).points


def memory() -> Iterator[Finding]:
    """What a worker holds, as the difference to workers that hold nothing."""
    bare, holding = (
        sweep(Holding(held * MIB), batch_size=_BATCH, workers=(2,), max_seconds=3, rounds=1).points[0]
        for held in (0, _HELD_MIB)
    )
    for name, with_it, without in (
        ("PSS", holding.pss_mib, bare.pss_mib),
        ("USS", holding.uss_mib, bare.uss_mib),
    ):
        if with_it is not None and without is not None:
            yield judge_memory(f"{_HELD_MIB} MiB held, {name} of 2 workers", _HELD_MIB, with_it - without)


def leak() -> Iterator[Finding]:
    """The growth of workers that leak."""
    dataset = Leaking(_LEAK_MIB * MIB, seconds=_LEAK_SAMPLE_S)
    result = sweep(dataset, batch_size=4, workers=(2,), max_seconds=_LEAK_SECONDS, rounds=2)
    what = f"{_LEAK_MIB} MiB leaked a sample of {_LEAK_SAMPLE_S * 1e3:.0f} ms, 2 workers"
    yield judge_slope(what, _LEAK_MIB / _LEAK_SAMPLE_S * 60, result.points[0])


def hang() -> Iterator[Finding]:
    """A sample that never comes: said in time, and nothing is left behind."""
    waits: list[float] = []

    class Waited(BatchLoader):
        def __next__(self) -> Any:
            began = time.perf_counter()
            try:
                return super().__next__()
            finally:
                waits.append(time.perf_counter() - began)

    message = "no error"
    try:
        sweep(
            HangsAt(BAD, length=_LENGTH, seconds=0.002), batch_size=_BATCH, workers=(2,), max_seconds=20, rounds=1,
            loader=functools.partial(Waited, timeout_s=_TIMEOUT_S),
        )  # fmt: skip
    except PreflightError as error:
        message = error.message
    left = processes_left()
    yield Finding(
        what=f"sample {BAD} never comes, {_TIMEOUT_S:g} s time-out",
        unit="s",
        truth=_TIMEOUT_S,
        measured=waits[-1],
        met="no batch came" in message and _TIMEOUT_S <= waits[-1] <= _TIMEOUT_S + TIMEOUT_TOLERANCE_S and not left,
        note=f"{message}; {left or 'no'} processes left",
    )


def crash() -> Iterator[Finding]:
    """A sample that cannot be read: named, and nothing is left behind."""
    message = "no error"
    try:
        sweep(FailsAt(BAD, length=_LENGTH), batch_size=_BATCH, workers=(2,), max_seconds=20, rounds=1)
    except DataError as error:
        message = error.message
    left = processes_left()
    named = f"sample {BAD} " in message
    yield Finding(
        what=f"sample {BAD} cannot be read",
        unit="",
        truth=f"sample {BAD}",
        measured=f"sample {BAD}" if named else "not named",
        met=named and not left,
        note=f"{message}; {left or 'no'} processes left",
    )


CASES: dict[str, Callable[[], Iterator[Finding]]] = {
    "latency": latency,
    "cpu": cpu,
    "memory": memory,
    "leak": leak,
    "hang": hang,
    "crash": crash,
}


def processes_left(wait_s: float = 2.0) -> int:
    """Loader workers of this process that still live after a while."""
    import psutil

    ends = time.monotonic() + wait_s
    while workers := [
        child
        for child in psutil.Process().children(recursive=True)
        # Python's own two: the server that forks workers, and the tracker of shared memory.
        if child.ppid() != psutil.Process().pid or not _is_pythons(child)
    ]:
        if time.monotonic() >= ends:
            return len(workers)
        time.sleep(0.1)
    return 0


def _is_pythons(child: Any) -> bool:
    command = " ".join(child.cmdline())
    return "multiprocessing.forkserver" in command or "resource_tracker" in command


def loader_cost_s() -> float:
    """What the loader itself adds to a batch of tiny samples, in seconds: its rate where samples take no time."""
    point = sweep(Latency(0.0), batch_size=_BATCH, workers=(1,), max_seconds=1.5, rounds=1).points[0]
    return _BATCH / point.samples_per_s.median


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, or JSON; 0 if every figure of every run is met, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1, metavar="N", help="so many runs in a row")
    parser.add_argument("--only", action="append", choices=list(CASES), help="may be given several times")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    options = parser.parse_args(arguments)
    if options.repeat < 1:
        parser.error("--repeat takes 1 or more")

    def say(line: str) -> None:
        if not options.json:
            print(line, flush=True)

    start_worker_server(("bench.known_datasets",))
    runs = []
    for number in range(options.repeat):
        began = time.perf_counter()
        cost_s = loader_cost_s()
        batch_s = _BATCH * _SAMPLE_S
        say(f"Run {number + 1} of {options.repeat} on {usable_cpus().count:g} usable CPUs. The loader adds")
        say(
            f"{cost_s * 1e3:.2f} ms to a batch of {batch_s * 1e3:.0f} ms ({cost_s / batch_s:.1%}), a part of the error."
        )
        say(f"{'':50} {'truth':24} {'measured [95 %]':26} {'error':>7}")
        findings = []
        for name in options.only or CASES:
            for finding in CASES[name]():
                findings.append(finding)
                say(render(finding))
        met, seconds = sum(finding.met for finding in findings), time.perf_counter() - began
        say(f"{met} of {len(findings)} met, {seconds:.0f} s.\n")
        runs.append(
            {
                "findings": [asdict(finding) for finding in findings],
                "loader_batch_s": cost_s,
                "met": met == len(findings),
                "seconds": seconds,
            }
        )
    met_all = all(run["met"] for run in runs)
    if options.json:
        print(json.dumps({"schema_version": 1, "environment": environment(), "met": met_all, "runs": runs}, indent=2))
    return 0 if met_all else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
