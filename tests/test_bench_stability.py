"""Unstable points and outliers: what the table and the JSON say of them, from known intervals and machine states."""

import dataclasses
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from sweep_sample import point, sweep_result

from bench.machine_use import MachineReading, MachineUse, machine_use, mean_use, read_machine
from bench.statistics import Estimate
from bench.table import render_table


def use(**changes):
    fields = {
        "seconds": 2.0,
        "own_cores": 0.0,
        "others_cores": 0.0,
        "idle_cores": 2.0,
        "stolen_cores": 0.0,
        "clock_ghz": None,
    }
    return MachineUse(**{**fields, **changes})


def unstable(*machine, rounds=(1.0, 1.0, 1.0)):
    """A point whose interval is too wide, each round's rate times a factor."""
    steady = point(2, 100, spread=0.001)  # 6.4 s a round
    intervals = tuple(
        tuple(x / factor for x in one) for one, factor in zip(steady.intervals_s, rounds, strict=True)
    )  # fmt: skip
    return dataclasses.replace(
        steady, samples_per_s=Estimate(100.0, 82.0, 112.0), intervals_s=intervals, machine=tuple(machine)
    )


def spoken(one):
    text = render_table(sweep_result(one), width=400)
    return [line for line in text.splitlines() if line.startswith(("Unstable", "Outliers"))]


def test_a_steady_point_says_nothing():
    steady = dataclasses.replace(point(2, 400), machine=(use(others_cores=1.9, idle_cores=0.0, stolen_cores=0.5),))
    assert spoken(steady) == []
    assert steady.unstable_because is None
    assert steady.to_json()["unstable_because"] is None


@pytest.mark.parametrize(
    ("machine", "rounds", "said"),
    [
        ([], (1, 1, 1), "Close what else runs on this machine, or give it more time (--max-seconds)."),
        (
            [use(others_cores=1.4, idle_cores=0.1), use(others_cores=1.0, idle_cores=0.1)],
            (1, 1, 1),
            "Other processes kept 1.2 CPUs busy and 0.1 were idle: close them and measure again.",
        ),
        (
            [use(stolen_cores=0.3)],
            (1, 1, 1),
            "The hypervisor gave 0.3 of this machine's CPUs to others (steal time): measure at another hour, ",
        ),
        (
            [use(clock_ghz=3.4), use(clock_ghz=3.3), use(clock_ghz=1.9)],
            (1, 1, 1),
            "The CPUs ran at 1.9 to 3.4 GHz: let the machine cool, or fix its clock (cpupower ",
        ),
        ([], (0.5, 0.8, 1.0), "Each round was faster than the one before (its slowest round had 50% "),
        ([], (1.0, 0.8, 0.5), "Each round was slower than the one before (its slowest round had 50% "),
        ([], (1.0, 0.5, 1.0), "The rounds lie apart beyond their intervals (its slowest round had 50% "),
    ],
)
def test_an_unstable_point_says_why(machine, rounds, said):
    (line,) = (text for text in spoken(unstable(*machine, rounds=rounds)) if text.startswith("Unstable"))
    assert line.startswith(f"Unstable: 2 workers varied by ±15% (aim: 2%). {said}")


def test_other_processes_are_no_reason_while_cpus_are_idle():
    assert unstable(use(others_cores=5.0, idle_cores=20.0)).unstable_because == ()
    assert unstable(use(clock_ghz=3.4), use(clock_ghz=3.3)).unstable_because == ()


def test_outliers_are_named_when_they_take_time_and_counted_always():
    calm = point(2, 400)
    stalls = (*calm.intervals_s[0], *[value for _ in range(6) for value in (0.3, 0.0)])
    stalled = dataclasses.replace(calm, intervals_s=(stalls, *calm.intervals_s[1:]))
    (line,) = spoken(stalled)
    assert line.startswith("Outliers: 2 workers, ")
    assert line.endswith("of the time beyond a usual turn of 2 batches. The median leaves that out, an epoch does not.")
    assert stalled.to_json()["outliers"]["severe"] == calm.outliers.severe + 6
    one = dataclasses.replace(calm, intervals_s=((*calm.intervals_s[0], 0.1, 0.0), *calm.intervals_s[1:]))
    assert spoken(one) == []
    assert one.to_json()["outliers"]["severe"] == calm.outliers.severe + 1


def test_own_time_is_not_that_of_others():
    before = MachineReading(at=10.0, busy_s=100.0, idle_s=50.0, stolen_s=1.0, own_s=20.0, clock_ghz=3.0)
    after = MachineReading(at=14.0, busy_s=107.0, idle_s=50.6, stolen_s=1.4, own_s=25.0, clock_ghz=2.0)
    found = machine_use(before, after)
    assert (found.own_cores, found.others_cores, found.idle_cores) == pytest.approx((1.25, 0.5, 0.15))
    assert found.stolen_share == pytest.approx(0.1 / 1.85)
    assert (found.stolen_cores, found.clock_ghz) == pytest.approx((0.1, 2.0))
    assert machine_use(before, dataclasses.replace(after, own_s=40.0)).others_cores == 0.0
    assert machine_use(None, after) is None
    mean = mean_use([found, dataclasses.replace(found, seconds=12.0, others_cores=0.1, clock_ghz=None)])
    assert (mean.seconds, mean.others_cores, mean.clock_ghz) == pytest.approx((16.0, 0.2, 2.0))
    assert mean_use([]) is None


def test_proc_stat_is_read_as_documented(tmp_path):
    tick = os.sysconf("SC_CLK_TCK")
    words = [tick * value for value in (1, 2, 3, 40, 5, 6, 7, 8, 100, 100)]
    (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, words))}\ncpu0 1 2 3\n")
    clock = tmp_path / "cpu3" / "cpufreq" / "scaling_cur_freq"
    clock.parent.mkdir(parents=True)
    clock.write_text("2800000\n")
    found = read_machine(proc=tmp_path, cpus=tmp_path)
    assert (found.busy_s, found.idle_s, found.stolen_s, found.clock_ghz) == (1 + 2 + 3 + 6 + 7, 45.0, 8.0, 2.8)
    assert read_machine(proc=tmp_path / "none") is None
    (tmp_path / "stat").write_text("cpu  1 2 3\n")
    assert read_machine(proc=tmp_path) is None


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="no procfs")
def test_a_child_counts_as_own():
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            before = read_machine()
            time.sleep(0.6)
            after = read_machine()
        finally:
            busy.kill()
    assert after.own_s - before.own_s >= 0.05  # of 0.6 s; others may run here as well
    assert after.busy_s > before.busy_s


def test_outliers_of_random_turns_are_rare():
    rng = np.random.default_rng(0)
    found = dataclasses.replace(point(1, 400), intervals_s=(tuple(rng.normal(1, 0.05, 2000)),)).outliers
    # Of a normal distribution 0.7 % lie beyond the inner fences, 0.0002 % beyond the outer ones.
    assert (found.severe, found.turns) == (0, 2000)
    assert 5 <= found.mild <= 25
