import json
import os
import signal
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import jsonschema
import loader_datasets
import psutil
import pytest

import bench
from bench.known_datasets import MIB, Busy, FailsAt, Holding, Latency
from bench.table import render_table
from bench.workers_argument import CAP_AT_LEAST
from preflight.data.loader import BatchLoader
from preflight.errors import DataError, PreflightError, UsageError
from preflight.telemetry.memory import MemoryLimit

SCHEMA = json.loads(resources.files("bench").joinpath("bench_loader.schema.json").read_text())


def children() -> set[int]:
    """Processes that this one has started, without the two that Python keeps for starting and cleaning up others."""
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if not any(name in " ".join(child.cmdline()) for name in ("resource_tracker", "multiprocessing.forkserver"))
        or child.ppid() != os.getpid()
    }


@pytest.fixture(scope="module")
def latency() -> bench.SweepResult:
    """20 ms a sample and no CPU: a worker loads 50 samples/s, however many there are."""
    return bench.sweep(Latency(0.02), batch_size=4, workers=(2, 0, 1), max_seconds=2.5, rounds=2, config="latency")


def test_known_latency_gives_the_known_rate(latency: bench.SweepResult) -> None:
    assert [point.num_workers for point in latency.points] == [0, 1, 2]
    for point, expected in zip(latency.points, (50, 50, 100), strict=True):
        # Nobody loads faster than the dataset sleeps; how much slower is the machine's doing.
        assert 0.6 * expected < point.samples_per_s.median < 1.02 * expected
        assert point.samples_per_s.lo <= point.samples_per_s.median <= point.samples_per_s.hi


def test_workers_are_told_apart_and_two_are_recommended(latency: bench.SweepResult) -> None:
    assert latency.recommended_num_workers == 2
    assert latency.reason.startswith("2 workers: the fastest measured, ")


def test_sleeping_takes_no_cpu(latency: bench.SweepResult) -> None:
    assert max(point.cpu_cores_used for point in latency.points if point.num_workers) < 0.3


def test_every_interval_is_kept_by_round_without_warm_up(latency: bench.SweepResult) -> None:
    for point in latency.points:
        assert len(point.intervals_s) == 2
        for intervals in point.intervals_s:
            assert len(intervals) % max(1, point.num_workers) == 0
            assert sum(intervals) >= 0.75


def test_result_is_the_documented_json(latency: bench.SweepResult) -> None:
    document = json.loads(json.dumps(latency.to_json()))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    assert (document["schema_version"], document["config"], document["batch_size"]) == (1, "latency", 4)
    in_process, _, two = document["points"]
    assert in_process["memory_per_worker_mib"] == {"pss": None, "uss": None, "growth_per_min": None}
    assert two["memory_per_worker_mib"]["pss"] > two["memory_per_worker_mib"]["uss"] > 0
    assert document["memory"]["max_workers"] == latency.memory.max_workers
    assert [entry["num_workers"] for entry in document["raw"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("key", "value"), [("reason", ""), ("recommended_num_workers", -1), ("points", []), ("extra", 1)]
)
def test_schema_refuses_what_is_not_documented(latency: bench.SweepResult, key: str, value: object) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(latency.to_json() | {key: value}, SCHEMA)


def test_table_shows_points_recommendation_and_memory(latency: bench.SweepResult) -> None:
    text = render_table(latency, width=200)
    lines = text.splitlines()
    assert "\x1b" not in text
    assert [line.split()[0] for line in lines if "[" in line and " / " in line and "p50" not in line] == ["0", "1", ">"]
    assert f"Recommended: {latency.reason}" in lines
    memory = next(line for line in lines if line.startswith("Memory: "))
    assert memory.endswith(f"room for {latency.memory.max_workers} workers.")
    assert latency.memory.limit_source in memory


def test_memory_held_by_each_worker_is_found() -> None:
    bare = bench.sweep(Holding(0), batch_size=8, workers=(2,), max_seconds=0.8, rounds=1)
    holding = bench.sweep(Holding(100 * MIB), batch_size=8, workers=(2,), max_seconds=0.8, rounds=1)
    uss_bare, uss_holding = bare.points[0].uss_mib, holding.points[0].uss_mib
    assert uss_bare is not None
    assert uss_holding is not None
    assert uss_holding - uss_bare == pytest.approx(100, abs=10)
    assert holding.memory.per_worker_mib is not None
    assert holding.memory.per_worker_mib >= uss_holding


def test_busy_workers_show_their_cpu() -> None:
    point = bench.sweep(Busy(0.025), batch_size=4, workers=(1,), max_seconds=2, rounds=1).points[0]
    (intervals,) = point.intervals_s
    # CPU seconds a sample are what the dataset makes them; collating and sending comes on top, more on a busy machine.
    assert 0.024 < point.cpu_cores_used * sum(intervals) / (4 * len(intervals)) < 0.05


def test_every_slice_is_reported_and_reads_other_batches() -> None:
    seen: list[tuple[int, int]] = []
    starts: list[int] = []

    def loader(dataset: object, **arguments: int) -> BatchLoader:
        starts.append(arguments["start_batch"])
        return BatchLoader(dataset, **arguments)

    bench.sweep(
        Latency(0.001), batch_size=4, workers=(0,), max_seconds=1.6, rounds=2, loader=loader,
        on_point=lambda point: seen.append((point.num_workers, len(point.intervals_s))),
    )  # fmt: skip
    assert seen == [(0, 1), (0, 2)]
    assert starts[0] == 0
    assert starts[1] > 10


def test_workers_that_cannot_fit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["bench.sweep"]  # `bench.sweep` itself is the function
    tight = MemoryLimit(1500 * MIB, 2048 * MIB, "cgroup v2 memory.max (/box)")
    monkeypatch.setattr(module, "available_memory", lambda: tight)
    result = module.sweep(Holding(200 * MIB), batch_size=8, workers=(1, 60), max_seconds=0.8, rounds=1)
    assert [point.num_workers for point in result.points] == [1]
    assert "60 workers were not measured: by the workers measured so far they need " in result.reason
    assert "is free (cgroup v2 memory.max (/box))." in result.reason


def test_a_dataset_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        bench.sweep(Latency(0.0, length=5), batch_size=8)
    assert caught.value.message == "The dataset has 5 samples, fewer than one batch of 8."
    assert caught.value.hint == "Give a batch size of at most 5, or record more."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": ()}, "No number of workers to measure."),
        ({"workers": (10**6,)}, f"at least {CAP_AT_LEAST}"),
        ({"batch_size": 0}, "A batch of 0 samples cannot be loaded."),
        ({"max_seconds": 0}, "0 s in 3 rounds leaves no time"),
        ({"demand_samples_per_s": -1}, "A demand of -1 samples/s asks for nothing."),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bench.sweep(Latency(0.0), **{"batch_size": 2, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [(0,), (2,)])
def test_a_sample_that_fails_ends_the_sweep_and_its_workers(workers: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="frame 3 is torn"):
        bench.sweep(FailsAt(3, length=16), batch_size=8, workers=workers, max_seconds=0.8, rounds=1)
    assert children() == set()


@pytest.mark.parametrize(
    ("dataset", "kind", "message"),
    [
        (loader_datasets.OddShape(), DataError, r"sample 7: x is float64\[4\], but float64\[3\] in sample "),
        (loader_datasets.Strings(), DataError, r"sample \d+: task holds str, not numbers"),
        (loader_datasets.Unpicklable(), UsageError, r"its attribute function \(function\): "),
        (loader_datasets.Suicidal(), PreflightError, r"worker 0 of 1 \(pid \d+\) was killed by SIGKILL"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, loader_datasets.Numbers) else "",
)
def test_samples_that_make_no_batch_are_named(dataset: object, kind: type[PreflightError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        bench.sweep(dataset, batch_size=40, workers=(1,), max_seconds=0.8, rounds=1)
    assert caught.value.exit_code == (2 if kind is UsageError else 3)
    assert children() == set()


def test_interrupting_leaves_no_process_and_keeps_what_was_measured(tmp_path: Path) -> None:
    program = tmp_path / "interrupted.py"
    program.write_text(
        "import sys\n"
        "import bench\n"
        "from bench.known_datasets import Latency\n"
        "if __name__ == '__main__':\n"
        "    bench.sweep(Latency(0.005), batch_size=4, workers=(1, 2), max_seconds=1.6, rounds=2,\n"
        "                on_point=lambda point: print(point.num_workers, point.samples_per_s.median, flush=True))\n"
    )
    with subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        kept = run.stdout.readline()
        family: list[psutil.Process] = []
        deadline = time.monotonic() + 20
        # The server, the resource tracker and at least one worker of the second point.
        while len(family) < 3 and time.monotonic() < deadline:
            family = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=60)
    assert kept.startswith("1 ")
    assert len(family) >= 3
    assert "KeyboardInterrupt" in errors
    assert run.returncode == -signal.SIGINT
    assert psutil.wait_procs(family, timeout=10)[1] == []
