"""The self-test of the loader benchmark: its criteria on known figures, and its quick cases for real."""

import dataclasses
import json
import subprocess
import sys

import pytest
from sweep_sample import point

import bench
from bench import selftest
from bench.accuracy import Finding, judge_memory, judge_rate, judge_slope, render
from bench.known_datasets import MIB, HangsAt, Leaking
from bench.machine_use import MachineUse
from bench.statistics import Estimate
from preflight.data.loader import BatchLoader
from preflight.errors import PreflightError


def rated(median, lo, hi, **changes):
    return dataclasses.replace(point(2, 100), samples_per_s=Estimate(median, lo, hi), **changes)


@pytest.mark.parametrize(
    ("measured", "met"),
    [
        ((99.0, 98.0, 100.5), True),
        ((99.0, 98.0, 99.5), True),  # the truth is outside, all of it within 3 %
        ((97.5, 96, 99), True),  # the interval is shown, and no part of the verdict
        ((97.5, 90.0, 101.0), True),  # uncertain, and says so
        ((96.9, 90.0, 101.0), False),
        ((103.1, 99.0, 104.0), False),
    ],
)
def test_a_rate_is_met_within_3_percent(measured, met):
    found = judge_rate("asleep", 100.0, rated(*measured))
    assert found.met is met
    assert found.error == pytest.approx(measured[0] / 100 - 1)
    assert (found.what, found.unit, found.ci95) == ("asleep, 2 workers", "samples/s", measured[1:])


@pytest.mark.parametrize(
    ("truth", "measured", "met"),
    [(100, 109.9, True), (100, 110.1, False), (100, 89.9, False), (400, 419.0, True), (400, 421.0, False)],
)
def test_memory_is_met_within_10_mib_or_5_percent(truth, measured, met):
    assert judge_memory("held", truth, measured).met is met


@pytest.mark.parametrize(("slope", "met"), [(1081.0, True), (1079.0, False), (1319.0, True), (None, False)])
def test_a_slope_is_met_within_10_percent_and_must_be_there(slope, met):
    interval = None if slope is None else (slope - 9, slope + 9)
    found = judge_slope("leak", 1200.0, rated(100, 99, 101, growth_per_min_mib=slope, growth_ci95_mib=interval))
    assert found.met is met
    assert found.ci95 == interval
    assert found.measured == ("no slope" if slope is None else slope)


def test_a_busy_machine_is_named_beside_the_figure():
    busy = MachineUse(seconds=2.0, own_cores=0.65, others_cores=1.25, idle_cores=0.0, stolen_cores=0.1, clock_ghz=None)
    found = judge_rate("busy", 100.0, rated(40.0, 38.0, 42.0, machine=(busy,)), cores=2.0)
    assert found.note == (
        "other processes used 1.25 CPUs: 0.65 were free for 2 workers, the truth was out of reach; "
        "the hypervisor kept 5.0% of the CPU time, taken off the truth"
    )
    assert not found.met  # out of reach is a miss all the same
    assert render(found).splitlines()[1] == f"    ({found.note})"
    alone = dataclasses.replace(busy, others_cores=0.01, stolen_cores=0.0)
    assert judge_rate("busy", 100.0, rated(99.0, 98.0, 100.0, machine=(alone,)), cores=2.0).note is None


def test_a_line_names_truth_interval_error_and_verdict():
    found = judge_rate("20 ms asleep a sample", 100.0, rated(99.04, 98.0, 99.9))
    assert render(found).split("  ")[0] == "20 ms asleep a sample, 2 workers"
    assert " ".join(render(found).split()).endswith("100.0 samples/s 99.0 [98.0, 99.9] -1.0% met")
    miss = Finding(what="sample 7 cannot be read", unit="", truth="sample 7", measured="not named", met=False)
    assert render(miss).endswith("  MISSED")


def test_a_leak_is_touched_memory():
    dataset = Leaking(MIB, seconds=0.0)
    for index in range(3):
        dataset[index]
    assert [int(block.sum()) for block in dataset.leaked] == [MIB] * 3


def test_a_hang_is_said_in_time_and_leaves_no_process():
    with BatchLoader(HangsAt(0, length=8), batch_size=8, num_workers=1, timeout_s=1.0) as loader:
        assert selftest.processes_left(wait_s=0.0) == 1
        with pytest.raises(PreflightError, match=r"no batch came from the loader's 1 worker\(s\) within 1 s"):
            next(loader)
    assert selftest.processes_left() == 0


def test_a_sweep_that_converges_at_once_still_watches_memory_long_enough_for_a_slope():
    # Left alone, two rounds of two seconds would have been enough for the rate, and too short for a slope.
    leak = bench.sweep(Leaking(MIB, seconds=0.05), batch_size=4, workers=(1,), max_seconds=20, rounds=2).points[0]
    assert leak.growth_per_min_mib is not None
    assert (
        200 < leak.growth_per_min_mib < 1250
    )  # nobody leaks faster than a MiB in 50 ms; slower is the machine's doing
    assert leak.growth_per_min_mib > 4 * leak.growth_error_mib


def test_what_it_prints_is_its_verdict():
    run = subprocess.run(
        [sys.executable, "-m", "bench.selftest", "--only", "crash", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    document = json.loads(run.stdout)
    (only,) = document["runs"]
    (found,) = only["findings"]
    assert (run.returncode, document["met"], only["met"], found["met"]) == (0, True, True, True)
    assert found["measured"] == f"sample {selftest.BAD}"
    assert "frame 77 is torn" in found["note"]
    assert 0 < only["loader_batch_s"] < 1


def test_one_miss_is_a_miss(monkeypatch, capsys):
    def missing():
        yield judge_memory("held", 100, 100.0)
        yield judge_memory("held", 100, 120.0)

    monkeypatch.setitem(selftest.CASES, "memory", missing)
    monkeypatch.setattr(selftest, "loader_cost_s", lambda: 0.001)
    assert selftest.main(["--only", "memory", "--repeat", "2"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("MISSED") == 2
    assert printed.count("1 of 2 met") == 2
