import dataclasses

import pytest

from bench.decision import decide
from bench.results import MemoryBudget, PointResult
from bench.statistics import Estimate

ROOMY = MemoryBudget(baseline_mib=500.0, per_worker_mib=200.0, limit_mib=16_000.0, limit_source="MemAvailable")


def point(num_workers: int, median: float, lo: float, hi: float, *, mib_per_worker: float = 188.0) -> PointResult:
    return PointResult(
        num_workers=num_workers,
        samples_per_s=Estimate(median, lo, hi),
        batch_interval_s={"p50": 0.01, "p95": 0.02, "p99": 0.03},
        first_batch_s=1.0,
        cpu_cores_used=1.0,
        pss_mib=mib_per_worker if num_workers else None,
        uss_mib=mib_per_worker / 2 if num_workers else None,
        growth_per_min_mib=None,
        growth_error_mib=None,
        queued_mib=0.0,
        parent_mib=500.0,
        intervals_s=((0.01, 0.02),),
    )


def test_fewest_workers_that_reach_the_fastest() -> None:
    points = [point(2, 412, 405, 419), point(4, 409, 400, 418), point(8, 415, 401, 428)]
    assert decide(points, memory=ROOMY, usable_cpus=2) == (
        2,
        (
            "2 workers: as fast as 8 within the measurement's interval (412 [405, 419] against 415 [401, 428] "
            "samples/s), and 1.1 GiB less RAM."
        ),
    )


def test_the_fastest_stands_alone() -> None:
    points = [point(2, 200, 195, 205), point(4, 390, 380, 400), point(8, 700, 690, 710)]
    assert decide(points, memory=ROOMY, usable_cpus=16) == (
        8,
        "8 workers: the fastest measured, 700 [690, 710] samples/s against 390 [380, 400] with 4.",
    )


def test_more_workers_being_slower_is_a_finding() -> None:
    points = [point(2, 400, 390, 410), point(4, 700, 690, 710), point(8, 500, 490, 510)]
    assert decide(points, memory=ROOMY, usable_cpus=2) == (
        4,
        (
            "4 workers: the fastest measured, 700 [690, 710] samples/s against 500 [490, 510] with 8. "
            "More are slower: 8 load 500 [490, 510] samples/s on 2 usable CPUs."
        ),
    )


def test_demand_beyond_what_ties_can_give_takes_the_one_that_meets_it() -> None:
    points = [point(2, 395, 380, 410), point(4, 412, 405, 419)]
    assert decide(points, memory=ROOMY, usable_cpus=4, demand_samples_per_s=400)[0] == 4
    assert decide(points, memory=ROOMY, usable_cpus=4, demand_samples_per_s=300)[0] == 2


def test_unmet_demand_is_said() -> None:
    points = [point(2, 200, 195, 205), point(4, 400, 390, 410)]
    number, reason = decide(points, memory=ROOMY, usable_cpus=4, demand_samples_per_s=500)
    assert number == 4
    assert reason.endswith("The training step asks for 500 samples/s, so it will wait for data (20% too slow).")


def test_demand_inside_the_interval_is_not_called_met() -> None:
    number, reason = decide([point(2, 200, 195, 205)], memory=ROOMY, usable_cpus=4, demand_samples_per_s=198)
    assert number == 2
    assert reason.endswith("198 samples/s, which lies within the interval: it may have to wait.")


def test_small_demand_names_the_cheaper_choice() -> None:
    points = [point(2, 200, 195, 205), point(8, 700, 690, 710)]
    assert decide(points, memory=ROOMY, usable_cpus=16, demand_samples_per_s=40) == (
        8,
        (
            "8 workers: the fastest measured, 700 [690, 710] samples/s against 200 [195, 205] with 2. "
            "The training step asks for only 40 samples/s: 2 workers would do (200 [195, 205]) and 1.1 GiB less RAM."
        ),
    )


def test_workers_that_do_not_fit_are_not_recommended() -> None:
    tight = dataclasses.replace(ROOMY, limit_mib=500.0 + 1000.0, limit_source="cgroup v2 memory.max (/box)")
    points = [point(2, 200, 195, 205), point(4, 390, 380, 400), point(8, 700, 690, 710)]
    assert decide(points, memory=tight, usable_cpus=16) == (
        4,
        (
            "4 workers: the fastest that fits into RAM, 390 [380, 400] samples/s. "
            "8 workers would need 1.5 GiB of RAM; 1000 MiB is free (cgroup v2 memory.max (/box))."
        ),
    )


def test_when_nothing_fits_the_least_is_named_with_a_warning() -> None:
    full = dataclasses.replace(ROOMY, limit_mib=600.0)
    assert decide([point(2, 200, 195, 205), point(4, 390, 380, 400)], memory=full, usable_cpus=16) == (
        2,
        (
            "2 workers: the least memory of all measured, yet 376 MiB where 100 MiB is free (MemAvailable); "
            "expect to run out of RAM."
        ),
    )


def test_loading_in_the_process_is_a_last_resort() -> None:
    points = [point(0, 420, 410, 430), point(1, 400, 395, 405)]
    assert decide(points, memory=ROOMY, usable_cpus=2) == (
        1,
        (
            "1 worker: 400 [395, 405] samples/s; loading in the process itself is faster (420 [410, 430]), "
            "but then every step waits for its batch."
        ),
    )
    assert decide(points[:1], memory=ROOMY, usable_cpus=2) == (
        0,
        "0 workers: the only number measured, 420 [410, 430] samples/s.",
    )


def test_what_was_not_measured_is_said() -> None:
    number, reason = decide(
        [point(2, 400, 390, 410)], memory=ROOMY, usable_cpus=2, not_measured={8: "they need 9.0 GiB of RAM"}
    )
    assert number == 2
    assert reason == (
        "2 workers: the only number measured, 400 [390, 410] samples/s. "
        "8 workers were not measured: they need 9.0 GiB of RAM."
    )


def test_workers_that_start_slowly_do_not_pay_in_a_short_run() -> None:
    slow_start = dataclasses.replace(point(8, 700, 690, 710), first_batch_s=27.0)
    points = [point(2, 200, 195, 205), slow_start]
    assert decide(points, memory=ROOMY, usable_cpus=16, samples=3200) == (
        2,
        (
            "2 workers: the run's 3,200 samples are there after 17 s, with 8 after 32 s: they load 700 [690, 710] "
            "samples/s against 200 [195, 205], and take 27.0 s to the first batch against 1.0."
        ),
    )
    assert decide(points, memory=ROOMY, usable_cpus=16, samples=640_000)[0] == 8
    assert decide(points, memory=ROOMY, usable_cpus=16)[0] == 8


@pytest.mark.parametrize(("limit_mib", "workers"), [(500.0, 0), (899.0, 1), (900.0, 2), (400.0, 0)])
def test_workers_that_fit(limit_mib: float, workers: int) -> None:
    assert dataclasses.replace(ROOMY, limit_mib=limit_mib).max_workers == workers
    assert dataclasses.replace(ROOMY, per_worker_mib=None).max_workers is None
