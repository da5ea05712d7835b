"""`memory.checkpoint`: the RAM of a host, injected, against the exact bytes of a checkpoint."""

import dataclasses

import pytest
from healthy import GIB, SLOW, context, spoken

from bench.results import MemoryBudget, PointResult, SweepResult
from bench.statistics import Estimate
from checks import CHECKLIST, memory_checkpoint
from checks.memory_checkpoint import CHECK
from checks.trace import state_bytes
from preflight.checklist import run_checks
from preflight.runs import load_run
from preflight.telemetry.devices import PresentGpu
from preflight.telemetry.memory import MemoryLimit
from preflight.telemetry.targets import parse_target

FULL = "pi0_lighter_cup_trossen"
H100 = PresentGpu(index=0, name="NVIDIA H100 80GB HBM3", total_bytes=80 * GIB, free_bytes=80 * GIB, driver="570")
MANY = ["save_interval=100", "keep_period=none"]


def machine(available, *, gpus=(H100,), **environ):
    limit = MemoryLimit(int(available), int(available), "MemAvailable")
    return {"memory": lambda: limit, "gpus": lambda: list(gpus), "environ": environ}


def full(available, *assignments, target=None, stack="another", **probes):
    run = load_run(FULL, assignments=assignments)
    run.facts = dataclasses.replace(run.facts, stack=stack)  # whose trainer does not give back what a save leaves
    return context(
        run=run,
        target=None if target is None else parse_target(target),
        probes=machine(available, **probes),
    )


def all_but_the_accelerator(checked):
    """No test has a GPU for jax to see."""
    without = {*SLOW, "env.accelerator", "storage.write", CHECK.id}
    results = run_checks([*(c for c in CHECKLIST if c.id not in without), CHECK], checked, max_parallel=1)
    return {result.check.id: result for result in results}


def test_a_healthy_run_passes_with_its_figures():
    results = all_but_the_accelerator(context())
    assert spoken(results) == set()
    outcome = results[CHECK.id].outcome
    assert outcome.summary == (
        "a save takes 5.9 MiB to 11.7 MiB of RAM, of 16.0 GiB (MemAvailable without the state; 2 workers not counted)"
    )


def test_a_checkpoint_that_does_not_fit_trips_this_check_alone():
    results = all_but_the_accelerator(context(probes=machine(5 * 2**20)))
    assert spoken(results) == {CHECK.id}
    outcome = results[CHECK.id].outcome
    assert outcome.status == "fail"
    assert outcome.summary.startswith("no checkpoint can be saved: a save takes 5.9 MiB to 11.7 MiB of RAM, of 5.0 MiB")


def test_the_full_model_is_judged_by_one_copy_and_warned_of_by_three_and_a_half():
    outcome = CHECK.run(full(30 * GIB))
    assert outcome.status == "fail"
    assert outcome.measured["checkpoint_gib"] == 36.19
    assert outcome.expected == {"available_gib": "at least 36.2"}
    assert outcome.hint.text == (
        "a host with 36.2 GiB of RAM free; the last step is saved too, so saving less often does not help"
    )
    outcome = CHECK.run(full(100 * GIB))
    assert outcome.status == "warn"
    assert outcome.summary == (
        "saves may run out of RAM: a save takes 36.2 GiB to 126.7 GiB of RAM, of 100.0 GiB (MemAvailable; 8 workers "
        "not counted)"
    )
    assert "measured 36.2 GiB to 72.4 GiB (which fits)" in outcome.hint.text
    assert outcome.hint.commands == (
        f"MALLOC_ARENA_MAX=2 preflight check {FULL}",
        f"preflight check {FULL} --set num_workers=4",
        f"preflight check {FULL} --set save_interval=10000 --set keep_period=10000",
    )
    assert CHECK.run(full(130 * GIB)).status == "pass"


def test_the_native_loop_gives_back_what_a_save_leaves():
    assert CHECK.run(full(80 * GIB, stack="native")).status == "pass"
    assert CHECK.run(full(60 * GIB, stack="native")).status == "warn"


def test_few_arenas_bound_what_is_kept():
    assert CHECK.run(full(80 * GIB, MALLOC_ARENA_MAX="2")).status == "pass"
    outcome = CHECK.run(full(60 * GIB, MALLOC_ARENA_MAX="2"))
    assert outcome.status == "warn"
    assert "36.2 GiB to 72.4 GiB" in outcome.summary
    assert not any("MALLOC" in command for command in outcome.hint.commands)
    for other in ("0", "64", "two"):
        assert CHECK.run(full(80 * GIB, MALLOC_ARENA_MAX=other)).status == "warn"


def test_a_single_save_keeps_nothing_for_a_next_one():
    outcome = CHECK.run(full(80 * GIB, "save_interval=20000"))
    assert outcome.status == "pass"
    assert outcome.measured["saves"] == 1
    assert outcome.measured["most_gib"] == 72.38


def test_the_average_is_named_where_it_is_what_does_not_fit():
    outcome = CHECK.run(full(40 * GIB, "ema_decay=0.99"))
    assert outcome.status == "fail"
    assert outcome.measured["checkpoint_gib"] == 48.25
    assert outcome.hint.text.startswith("it fits with no moving average (12.1 GiB less in each checkpoint); or a host")
    assert outcome.hint.commands == (f"preflight check {FULL} --set ema_decay=none",)
    assert "no moving average" not in CHECK.run(full(30 * GIB, "ema_decay=0.99")).hint.text


def measured_workers(checked, pss_mib):
    point = PointResult(
        num_workers=8,
        samples_per_s=Estimate(100.0, 99.0, 101.0),
        batch_interval_s={},
        first_batch_s=1.0,
        cpu_cores_used=1.0,
        pss_mib=pss_mib,
        uss_mib=1.0,
        growth_per_min_mib=None,
        growth_error_mib=None,
        queued_mib=0.0,
        parent_mib=None,
        intervals_s=(),
    )
    budget = MemoryBudget(baseline_mib=1.0, per_worker_mib=pss_mib, limit_mib=1e6, limit_source="MemAvailable")
    sweep = SweepResult(
        batch_size=32,
        environment={},
        points=(point,),
        demand_samples_per_s=None,
        memory=budget,
        recommended_num_workers=8,
        reason="",
    )
    checked.once("loader-sweep", lambda: sweep)
    return checked


def test_workers_are_subtracted_where_they_were_measured():
    outcome = CHECK.run(measured_workers(full(40 * GIB), 1024.0))
    assert outcome.status == "fail"
    assert outcome.summary.endswith("of 32.0 GiB (MemAvailable without 8 workers)")
    # 36.2 GiB are needed: 4.2 of the workers' 8 must go.
    assert outcome.hint.commands == (f"preflight check {FULL} --set num_workers=3",)
    assert outcome.hint.text.startswith("it fits with fewer workers (all 8 take 8.0 GiB)")


def test_no_sweep_is_started_for_it():
    checked = full(200 * GIB)
    CHECK.run(checked)
    assert "loader-sweep" not in checked._made


def test_without_a_gpu_the_state_lies_in_the_same_ram():
    checked = context(probes=machine(14 * 2**20, gpus=()))
    held = state_bytes(checked)
    outcome = CHECK.run(checked)
    assert outcome.status == "fail"
    assert outcome.measured["available_gib"] == round((14 * 2**20 - held.total) / GIB, 2)
    outcome = CHECK.run(full(16 * GIB, gpus=()))
    assert outcome.status == "skip"
    assert outcome.summary == (
        "without a GPU the state itself lies in RAM, where it does not fit (memory.device); a save takes 36.2 GiB to "
        "126.7 GiB of RAM"
    )


def test_the_ram_beside_a_gpu_that_is_not_here_is_not_known():
    outcome = CHECK.run(full(16 * GIB, gpus=(), target="h100-80gb"))
    assert outcome.status == "skip"
    assert outcome.summary == (
        "how much RAM goes with NVIDIA H100 SXM 80 GB is not known: a save takes 36.2 GiB to 126.7 GiB of RAM beside "
        "what the run holds"
    )
    assert outcome.measured["least_gib"] == 36.19
    assert CHECK.run(full(16 * GIB, target="h100-80gb")).status == "fail"


@pytest.mark.parametrize(
    ("version", "leaks"),
    [
        ("0.11.8", False),
        ("0.11.13", False),
        ("0.11.14", True),
        ("0.11.19", True),
        ("0.11.20", False),
        ("0.12.8", False),
        ("0.11.19.dev1", True),
        ("unknown", False),
    ],
)
def test_a_version_that_was_reported_to_leak_is_warned_of_where_saves_are_many(monkeypatch, version, leaks):
    monkeypatch.setattr(memory_checkpoint, "_orbax_version", lambda: version)
    checked = context(*MANY, probes=machine(64 * GIB))
    outcome = CHECK.run(checked)
    assert outcome.status == ("warn" if leaks else "pass")
    assert outcome.measured["orbax"] == version
    if leaks:
        assert outcome.summary.startswith(f"RAM may grow with each of 13 saves: on a GPU, Orbax {version} was reported")
        assert "--set save_interval=200" in outcome.hint.commands[0]
    # Three saves are not many, and no leak was reported of a CPU.
    assert CHECK.run(context(probes=machine(64 * GIB))).status == "pass"
    assert CHECK.run(dataclasses.replace(context(*MANY, probes=machine(64 * GIB, gpus=())))).status == "pass"


def test_the_installed_version_is_read():
    assert memory_checkpoint._orbax_version().count(".") >= 2
